"""Spans of one node, as an exporter is given them, and a way to wait for them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from commitcast.tracing import OpenTelemetry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExportResult
    from opentelemetry.trace import Tracer

PATIENCE_S = 20.0
COMMIT = "commitcast commit"
DELIVER = "commitcast deliver"


class Spans(InMemorySpanExporter):
    """What has ended on one node."""

    def __init__(self, node: str = "one") -> None:
        super().__init__()
        self.provider = TracerProvider(resource=Resource({"service.instance.id": node}))
        self.provider.add_span_processor(SimpleSpanProcessor(self))
        self._loop = asyncio.get_running_loop()
        self._more = asyncio.Event()

    @property
    def tracer(self) -> Tracer:
        """The application's own."""
        return self.provider.get_tracer("app")

    def tracing(self, **options: Any) -> OpenTelemetry:
        return OpenTelemetry(tracer_provider=self.provider, **options)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        self._loop.call_soon_threadsafe(self._more.set)
        return result

    def of(self, name: str) -> list[ReadableSpan]:
        """Those that have ended, in that order."""
        return [span for span in self.get_finished_spans() if span.name == name]

    async def wait(self, name: str, count: int = 1) -> list[ReadableSpan]:
        """`count` spans of this name, as soon as they have ended; no more than that."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.of(name)) < count:
                self._more.clear()
                await self._more.wait()
        found = self.of(name)
        assert len(found) == count, [s.attributes for s in found]
        return found


def ids(span: Any) -> tuple[int, int]:
    """Trace and span."""
    found = span.get_span_context()
    return found.trace_id, found.span_id


def parent(span: ReadableSpan) -> tuple[int, int] | None:
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


def text(span: Any) -> str:
    """As W3C Trace Context has it."""
    found = span.get_span_context()
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"


def attribute(span: ReadableSpan, name: str) -> Any:
    return (span.attributes or {}).get(name)
