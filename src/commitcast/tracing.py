"""OpenTelemetry: request, commit and delivery as one trace; needs the extra ``opentelemetry``.

Only its API is used: providers, samplers and exporters are the application's. A trace is carried
through the log as the event's W3C ``traceparent``, so that it goes on in other nodes and after a
restart; ``tracestate`` and baggage are not carried.

No event data, no statement and no exception's message goes into a span: of an exception the class.
Attributes follow the semantic conventions for messaging. What an SDK or exporter raises is logged
and changes nothing: no transaction fails for its trace.
"""

from __future__ import annotations

import logging
import weakref
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.metrics import Observation
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from commitcast.readings import READINGS, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from opentelemetry.context import Context
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider
    from opentelemetry.trace import SpanKind, TracerProvider

    from commitcast.coordinator import Coordinator
    from commitcast.event import CommittedEvent, EncodedEvent
    from commitcast.readings import Reading, Sample

_logger = logging.getLogger("commitcast")
_NAME: Final = "commitcast"
_W3C: Final = TraceContextTextMapPropagator()
_MOST_LINKS: Final = 32


class OpenTelemetry:
    """Traces a coordinator: ``Coordinator(engine, tracing=OpenTelemetry())``."""

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        """Use these providers.

        Args:
            tracer_provider: where spans go; default is the global one, also if that is set later.
            meter_provider: has the readings of `commitcast.readings` as observable instruments;
                without one there are none.
        """
        self._tracer = trace.get_tracer(_NAME, version(_NAME), tracer_provider)
        self._meter_provider = meter_provider

    def current(self) -> str | None:
        """The W3C ``traceparent`` of the span that the caller is in, if it is in one."""
        return _text(trace.get_current_span().get_span_context())

    def commit(self, events: Sequence[EncodedEvent]) -> _Span:
        """``commitcast commit``: a child of the current span, or else of the first emit's.

        Emits of other traces are linked.
        """
        parent: Context | None = None
        around = trace.get_current_span().get_span_context()
        emitted = {e.trace_parent: None for e in events if e.trace_parent is not None}
        if not around.is_valid:
            for text in emitted:
                found = _context(text)
                around = trace.get_current_span(found).get_span_context()
                if around.is_valid:
                    parent = found
                    break
        others = (trace.get_current_span(_context(t)).get_span_context() for t in emitted)
        links = [
            trace.Link(other)
            for other in others
            if other.is_valid and other.trace_id != around.trace_id
        ]
        attributes: dict[str, str | int] = {
            "messaging.system": _NAME,
            "messaging.operation.name": "commit",
            "messaging.operation.type": "send",
        }
        streams = {e.stream for e in events}
        if len(streams) == 1:
            attributes["messaging.destination.name"] = events[0].stream
        if len(events) == 1:
            attributes["messaging.message.id"] = events[0].id
        else:
            attributes["messaging.batch.message_count"] = len(events)
        return self._start(
            "commitcast commit", trace.SpanKind.PRODUCER, attributes, parent, links[:_MOST_LINKS]
        )

    def deliver(self, event: CommittedEvent) -> _Span:
        """``commitcast deliver``: a child of the commit, wherever and whenever that was.

        An event without a ``traceparent``, or with one that cannot be read, begins a trace.
        """
        attributes: dict[str, str | int] = {
            "messaging.system": _NAME,
            "messaging.operation.name": "deliver",
            "messaging.operation.type": "process",
            "messaging.destination.name": event.stream,
            "messaging.message.id": event.id,
        }
        return self._start(
            "commitcast deliver", trace.SpanKind.CONSUMER, attributes, _context(event.trace_parent)
        )

    def operation(self, name: str, id: str) -> _Span:  # noqa: A002 - as the protocol has it
        """``commitcast operation <name>``: from entry to outcome."""
        return self._start(
            f"commitcast operation {name}",
            trace.SpanKind.INTERNAL,
            {"commitcast.operation.id": id},
            None,
        )

    def watch(self, coordinator: Coordinator) -> None:
        """Offer the coordinator's readings to the meter provider, as long as it lives.

        Raises ValueError if the provider has another's that is attached: they would mix.
        """
        if self._meter_provider is None:
            return
        watched = _watched.get(self._meter_provider)
        if watched is None:
            meter = self._meter_provider.get_meter(_NAME, version(_NAME))
            watched = _watched[self._meter_provider] = _Watched()
            for reading in READINGS:
                _instrument(meter, reading, watched)
        before = watched.coordinator()
        if before is not None and before is not coordinator and before.attached:
            raise ValueError(
                "the meter provider has the instruments of another coordinator; give each one of "
                "its own, whose resource tells them apart, or detach that one first"
            )
        watched.coordinator = weakref.ref(coordinator)

    def _start(
        self,
        name: str,
        kind: SpanKind,
        attributes: Mapping[str, str | int],
        parent: Context | None,
        links: Sequence[trace.Link] = (),
    ) -> _Span:
        try:
            span = self._tracer.start_span(
                name, parent, kind=kind, attributes=attributes, links=links
            )
        except Exception:
            _logger.exception("commitcast: the tracer provider raised; this span is not traced")
            span = trace.INVALID_SPAN
        return _Span(span)


class _Span:
    """See `commitcast.telemetry.Span`."""

    __slots__ = ("_before", "_ended", "_span")

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self._before: Context | None = None
        self._ended = False

    def parent_for(self, trace_parent: str | None) -> str | None:
        own = self._span.get_span_context()
        if trace_parent is not None:
            emitted = trace.get_current_span(_context(trace_parent)).get_span_context()
            if emitted.trace_id != own.trace_id:  # also what cannot be read stays as it was given
                return trace_parent
        return _text(own)

    def enter(self) -> None:
        self._before = contexts.get_current()
        contexts.attach(trace.set_span_in_context(self._span))

    def leave(self) -> None:
        # A framework may leave in another context than it entered in; there is nothing to undo
        # there, and `detach` with the token of `attach` would log an error.
        if self._before is not None and trace.get_current_span() is self._span:
            contexts.attach(self._before)
        self._before = None

    def note(self, name: str, value: str | int) -> None:
        if self._ended:
            return
        try:
            self._span.set_attribute(name, value)
        except Exception:
            _logger.exception("commitcast: a span refused an attribute")

    def end(self, error: BaseException | str | None = None) -> None:
        if self._ended:
            return
        self._ended = True
        try:
            if error is not None:
                kind = error if isinstance(error, str) else type(error).__name__
                self._span.set_attribute("error.type", kind)
                self._span.set_status(trace.StatusCode.ERROR, kind)
            self._span.end()
        except Exception:
            _logger.exception("commitcast: a span processor raised; its span may be lost")


class _Watched:
    """Whose readings the instruments of one meter provider have."""

    def __init__(self) -> None:
        self.coordinator: Callable[[], Coordinator | None] = lambda: None


# An SDK ignores the callbacks of an instrument that it has already, so each is made once.
_watched: weakref.WeakKeyDictionary[MeterProvider, _Watched] = weakref.WeakKeyDictionary()


def _instrument(meter: Meter, reading: Reading, watched: _Watched) -> None:
    """Observable instruments for one reading: names in dots, units in UCUM, not in the name.

    There is no observable histogram: a distribution becomes three counters.
    """

    def observe(take: Callable[[Sample], Iterator[tuple[float, dict[str, str]]]]) -> Any:
        def callback(_options: CallbackOptions) -> Iterator[Observation]:
            coordinator = watched.coordinator()
            if coordinator is None:
                return
            for sample in reading.read(coordinator):
                labels = dict(zip(reading.labels, sample.labels, strict=True))
                for value, more in take(sample):
                    yield Observation(value, {**labels, **more})

        return [callback]

    name = f"{_NAME}.{reading.name.removesuffix(f'_{reading.unit}')}"
    unit = {"seconds": "s", "": ""}[reading.unit]
    match reading.kind:
        case Kind.COUNTER:
            meter.create_observable_counter(name, observe(_value), unit, reading.help)
        case Kind.GAUGE:
            meter.create_observable_gauge(name, observe(_value), unit, reading.help)
        case Kind.DISTRIBUTION:
            for part, take, of in (
                ("sum", _value, unit), ("count", _how_many, ""), ("bucket", _buckets, ""),
            ):  # fmt: skip
                meter.create_observable_counter(f"{name}.{part}", observe(take), of, reading.help)


def _value(sample: Sample) -> Iterator[tuple[float, dict[str, str]]]:
    yield sample.value, {}


def _how_many(sample: Sample) -> Iterator[tuple[float, dict[str, str]]]:
    yield sample.buckets[-1][1], {}


def _buckets(sample: Sample) -> Iterator[tuple[float, dict[str, str]]]:
    for bound, count in sample.buckets:
        yield count, {"le": bound}


def _text(span: trace.SpanContext) -> str | None:
    """W3C Trace Context, version 00."""
    if not span.is_valid:
        return None
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"


def _context(trace_parent: str | None) -> Context:
    """A context with the span that a ``traceparent`` names; with none if it cannot be read."""
    empty = contexts.Context()
    if trace_parent is None:
        return empty
    return _W3C.extract({"traceparent": trace_parent}, empty)
