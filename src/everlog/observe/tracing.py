"""Spans: one for each call of `publish`, and one for each call of a handler, whose parent is the publisher's.

The publisher's span travels as the header `traceparent` (and `tracestate`) of its records, as W3C Trace Context has it. Names and attributes
follow OpenTelemetry's conventions for messaging. Imported where somebody asks for spans: its package is an extra.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from everlog.record import TRACEPARENT, StoredRecord

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

_PROVIDER: Final = "OTEL_PYTHON_TRACER_PROVIDER"


def tracing() -> Tracing | None:
    """Return what makes spans; ``None`` where no tracer provider is set in this process, so that nobody would see them."""
    if "opentelemetry.trace" not in sys.modules and _PROVIDER not in os.environ:  # who sets one has imported it
        return None
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    from importlib.metadata import version  # it costs 15 ms

    return Tracing(provider.get_tracer("everlog", version("everlog")))


class Tracing:
    """Makes spans.

    Args:
        tracer: Of OpenTelemetry.
    """

    def __init__(self, tracer: Tracer) -> None:
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = tracer
        self._trace = trace
        self._nowhere = context.Context()
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def publishing(self, topics: Collection[str], count: int) -> Generator[Mapping[str, str]]:
        """Make the span of a call of `publish` the current one; yields the headers that its records carry."""
        destination = ",".join(sorted(topics))
        attributes: dict[str, str | int] = {
            "messaging.system": "everlog",
            "messaging.operation.name": "publish",
            "messaging.operation.type": "send",
            "messaging.destination.name": destination,
        }
        if count > 1:
            attributes["messaging.batch.message_count"] = count
        with self._tracer.start_as_current_span(
            f"publish {destination}", kind=self._trace.SpanKind.PRODUCER, attributes=attributes
        ):
            yield self._headers()

    @contextmanager
    def handling(
        self, records: Sequence[StoredRecord], *, handler: str, group: str, is_replayed: bool
    ) -> Generator[Mapping[str, str]]:
        """Make the span of a handler's call the current one; yields the headers of what the handler publishes.

        Its parent is the span in which its events were published. Where these are several, and when a replay handles what was published long ago,
        it begins a trace of its own, with links to them.

        Args:
            records: What is handled: at least one, of one handler.
            handler: The function's name.
            group: Who handles: app and subscription.
            is_replayed: They were handled before a replay.
        """
        first = records[0]
        attributes: dict[str, str | int] = {
            "messaging.system": "everlog",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": first.topic,
            "messaging.consumer.group.name": group,
            "code.function.name": handler,
        }
        if len(records) == 1:
            attributes["messaging.destination.partition.id"] = str(first.partition)
            attributes["messaging.message.id"] = first.id
            attributes["everlog.offset"] = first.offset
            attributes["cloudevents.event_id"] = first.id
            attributes["cloudevents.event_source"] = first.source
            attributes["cloudevents.event_type"] = first.type
        else:
            attributes["messaging.batch.message_count"] = len(records)
        published = self._published(records)
        is_child = len(published) == 1 and not is_replayed
        with self._tracer.start_as_current_span(
            f"process {first.topic}",
            context=published[0] if is_child else self._nowhere,
            kind=self._trace.SpanKind.CONSUMER,
            attributes=attributes,
            links=[]
            if is_child
            else [self._trace.Link(self._trace.get_current_span(one).get_span_context()) for one in published],
        ):
            yield self._headers()

    def _published(self, records: Sequence[StoredRecord]) -> list[Context]:
        """Return the contexts in which records were published, each once."""
        carriers = {carrier: record.headers for record in records if (carrier := record.headers.get(TRACEPARENT)) is not None}
        found = [self._propagator.extract(headers, self._nowhere) for headers in carriers.values()]
        return [context for context in found if self._trace.get_current_span(context).get_span_context().is_valid]

    def _headers(self) -> Mapping[str, str]:
        headers: dict[str, str] = {}
        self._propagator.inject(headers)
        return headers
