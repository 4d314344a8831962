"""Prometheus: a collector over one coordinator; needs the extra ``metrics``.

``/metrics`` of `Coordinator.asgi` has it in a registry of its own. To add it to one that a team
has: ``REGISTRY.register(CoordinatorCollector(coordinator))``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from commitcast.readings import READINGS, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from commitcast.coordinator import Coordinator
    from commitcast.readings import Reading


class CoordinatorCollector(Collector):
    """The readings of `commitcast.readings`, as they are when they are collected."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def collect(self) -> Iterator[Metric]:
        """All of them; what is not known has no samples."""
        for reading in READINGS:
            yield self._family(reading)

    def describe(self) -> Iterator[Metric]:
        """Names alone, so that registering it reads nothing."""
        for reading in READINGS:
            yield _empty(reading)

    def _family(self, reading: Reading) -> Metric:
        family = _empty(reading)
        for sample in reading.read(self._coordinator):
            if isinstance(family, HistogramMetricFamily):
                family.add_metric(sample.labels, sample.buckets, sample.value)
            else:
                family.add_metric(sample.labels, sample.value)
        return family


def _empty(
    reading: Reading,
) -> CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily:
    name = f"commitcast_{reading.name}"
    match reading.kind:
        case Kind.COUNTER:
            return CounterMetricFamily(name, reading.help, labels=reading.labels)
        case Kind.GAUGE:
            return GaugeMetricFamily(name, reading.help, labels=reading.labels, unit=reading.unit)
        case Kind.DISTRIBUTION:
            return HistogramMetricFamily(
                name, reading.help, labels=reading.labels, unit=reading.unit
            )


class Exposition:
    """What ``/metrics`` answers."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(CoordinatorCollector(coordinator))

    def text(self, accept: str) -> tuple[bytes, str]:
        """The text, in the format that a scraper asks for in ``Accept``; and its content type.

        The default format where that cannot be read.
        """
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # as of ``version=x``, in prometheus_client 0.26
            encode, content_type = choose_encoder("")
        return encode(self._registry), content_type
