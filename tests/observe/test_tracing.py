"""Spans from the publisher to the handler, and from there to the next one: one trace."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from tests.observe.running import PATIENCE_S, running, settings_in, until

from everlog import App, Delivery, Event, Retry, Settings, Topic, Tx
from everlog.observe.tracing import tracing
from everlog.position import Offset
from everlog.record import TRACEPARENT, StoredRecord

orders = Topic("traced.orders", key="customer", partitions=2)
bills = Topic("traced.bills", key="customer", partitions=2)


@orders.event("traced.order_placed/1")
class OrderPlaced(Event):
    customer: str


@bills.event("traced.billed/1")
class Billed(Event):
    customer: str


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What takes the spans of a provider that is set for one test."""
    made, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(made))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield made
    provider.shutdown()


async def spans(exporter: InMemorySpanExporter, count: int) -> list[ReadableSpan]:
    """Return so many spans, by their start."""
    await until(lambda: len(exporter.get_finished_spans()) >= count)
    return sorted(exporter.get_finished_spans(), key=lambda span: span.start_time or 0)


def id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def trace_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@pytest.mark.parametrize("way", ["returned", "published", "plain"])
async def test_publisher_handler_and_the_handler_of_what_it_emits_are_one_trace(
    way: str, exporter: InMemorySpanExporter, tmp_path: Path
) -> None:
    billing, mail, settings = App("billing"), App("mail"), settings_in(tmp_path)
    mailed: list[dict[str, str]] = []

    if way == "returned":

        @billing.on(OrderPlaced)
        async def bill(order: OrderPlaced) -> Billed:
            await asyncio.sleep(0)
            return Billed(order.customer)

    elif way == "published":

        @billing.on(OrderPlaced)
        async def bill_by_tx(order: OrderPlaced, tx: Tx) -> None:
            tx.publish(Billed(order.customer), headers={"who": "billing"})

    else:

        @billing.on(OrderPlaced)
        def bill_in_thread(order: OrderPlaced) -> list[Billed]:
            return [Billed(order.customer)]

    @mail.on(Billed)
    async def send(billed: Billed, tx: Tx) -> None:
        mailed.append(dict(tx.record.headers))

    async with running(billing, mail, settings=settings), billing.connect(settings) as client:
        await client.publish(OrderPlaced("ada"))
        published, handled, sent = await spans(exporter, 3)
    assert [span.name for span in (published, handled, sent)] == [
        "publish traced.orders",
        "process traced.orders",
        "process traced.bills",
    ]
    assert [span.kind for span in (published, handled, sent)] == [SpanKind.PRODUCER, SpanKind.CONSUMER, SpanKind.CONSUMER]
    assert {trace_of(span) for span in (published, handled, sent)} == {trace_of(published)}
    assert (parent_of(published), parent_of(handled), parent_of(sent)) == (None, id_of(published), id_of(handled))
    assert mailed[0][TRACEPARENT].startswith(f"00-{trace_of(handled):032x}-{id_of(handled):016x}-")
    assert mailed[0].get("who") == ("billing" if way == "published" else None)
    assert attributes(published) == {
        "messaging.system": "everlog",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "traced.orders",
    }
    said = attributes(handled)
    assert said["messaging.system"] == "everlog"
    assert said["messaging.operation.type"] == "process"
    assert said["messaging.consumer.group.name"] == "billing/billing"
    assert said["cloudevents.event_type"] == "traced.order_placed/1"
    assert said["cloudevents.event_source"] == "billing"
    assert said["code.function.name"].endswith(("bill", "bill_by_tx", "bill_in_thread"))


async def test_the_span_of_whoever_publishes_is_the_parent(exporter: InMemorySpanExporter, tmp_path: Path) -> None:
    app, settings = App("web"), settings_in(tmp_path)
    async with app.connect(settings) as client:
        with trace.get_tracer("web").start_as_current_span("POST /orders") as request:
            await asyncio.gather(client.publish(OrderPlaced("a")), client.publish(OrderPlaced("b"), OrderPlaced("c")))
    found = [span for span in exporter.get_finished_spans() if span.kind is SpanKind.PRODUCER]
    assert [parent_of(span) for span in found] == [request.get_span_context().span_id] * 2
    assert sorted(attributes(span).get("messaging.batch.message_count", 1) for span in found) == [1, 2]


async def test_a_traceparent_that_is_given_stays(exporter: InMemorySpanExporter, tmp_path: Path) -> None:
    app, settings, seen = App("web"), settings_in(tmp_path), list[str]()
    given = f"00-{1:032x}-{2:016x}-01"

    @app.on(OrderPlaced)
    async def note(order: OrderPlaced, tx: Tx) -> None:
        seen.append(tx.record.headers[TRACEPARENT])

    async with running(app, settings=settings), app.connect(settings) as client:
        await client.publish(OrderPlaced("a"), headers={TRACEPARENT: given})
        (handled,) = await spans(exporter, 1)
    assert seen == [given]
    assert (trace_of(handled), parent_of(handled)) == (1, 2)


async def test_a_failed_attempt_has_a_span_with_its_error_and_so_has_the_next_one(
    exporter: InMemorySpanExporter, tmp_path: Path
) -> None:
    app = App("billing", delivery=Delivery(on_error={RuntimeError: Retry(attempts=5, first_s=0.01)}))
    settings, failures = settings_in(tmp_path), [RuntimeError("no money")]

    @app.on(OrderPlaced)
    async def bill(order: OrderPlaced) -> None:
        if failures:
            raise failures.pop()

    async with running(app, settings=settings), app.connect(settings) as client:
        await client.publish(OrderPlaced("a"))
        published, failed, handled = await spans(exporter, 3)
    assert (failed.status.status_code, handled.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)
    assert [event.name for event in failed.events] == ["exception"]
    assert parent_of(failed) == parent_of(handled) == id_of(published)


async def test_a_batch_of_several_publishers_has_a_trace_of_its_own_with_a_link_to_each(
    exporter: InMemorySpanExporter, tmp_path: Path
) -> None:
    app, settings, sizes = App("billing"), settings_in(tmp_path), list[int]()

    @app.on_batch(OrderPlaced, most=10)
    async def bill(several: list[OrderPlaced]) -> None:
        sizes.append(len(several))

    async with app.connect(settings) as client:
        await client.publish(OrderPlaced("a"), OrderPlaced("a"))
        await client.publish(OrderPlaced("a"))
    async with running(app, settings=settings):
        first, second, handled = await spans(exporter, 3)
    assert sizes == [3]
    assert handled.parent is None
    assert {link.context.span_id for link in handled.links} == {id_of(first), id_of(second)}
    assert len(handled.links) == 2
    assert attributes(handled)["messaging.batch.message_count"] == 3


async def test_handlers_that_wait_side_by_side_have_spans_of_their_own(exporter: InMemorySpanExporter, tmp_path: Path) -> None:
    app, settings, gate = App("billing"), settings_in(tmp_path), asyncio.Event()
    inside: list[str] = []

    @app.on(OrderPlaced)
    async def bill(order: OrderPlaced) -> None:
        inside.append(order.customer)
        if len(inside) == 8:
            gate.set()
        await gate.wait()
        with trace.get_tracer("bank").start_as_current_span(order.customer):
            pass

    async with running(app, settings=settings), app.connect(settings) as client:
        for customer in "abcdefgh":
            await client.publish(OrderPlaced(customer))
        found = await spans(exporter, 24)
    calls = {id_of(span): span for span in found if span.kind is SpanKind.CONSUMER}
    banks = [span for span in found if span.kind is SpanKind.INTERNAL]
    assert len({parent_of(span) for span in banks}) == 8
    assert all(parent_of(span) in calls for span in banks)


async def test_what_a_handler_returns_that_is_no_event_fails_it_as_without_spans(
    exporter: InMemorySpanExporter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = App("billing", delivery=Delivery(on_error={Exception: "park"}))
    settings = settings_in(tmp_path)

    @app.on(OrderPlaced)
    async def bill(order: OrderPlaced) -> Any:
        return "paid"

    async with running(app, settings=settings), app.connect(settings) as client:
        await client.publish(OrderPlaced("a"))
        await until(lambda: "expected None, an event or a sequence of events" in caplog.text)


async def test_a_setting_turns_it_off_though_a_provider_is_set(exporter: InMemorySpanExporter, tmp_path: Path) -> None:
    base = settings_in(tmp_path)
    settings = Settings(log_url=base.log_url, store_url=base.store_url, tracing=False)
    app, seen = App("billing"), list[dict[str, str]]()

    @app.on(OrderPlaced)
    async def bill(order: OrderPlaced, tx: Tx) -> None:
        seen.append(dict(tx.record.headers))

    async with running(app, settings=settings), app.connect(settings) as client:
        await client.publish(OrderPlaced("a"))
        await until(lambda: bool(seen))
    assert exporter.get_finished_spans() == ()
    assert seen == [{}]


def test_a_replay_begins_a_trace_of_its_own_with_a_link_to_the_old_one(exporter: InMemorySpanExporter) -> None:
    made = tracing()
    assert made is not None
    headers = {TRACEPARENT: f"00-{1:032x}-{2:016x}-01"}
    record = StoredRecord("t", 0, Offset(7), "id", "t/1", b"{}", "a", "web", 0, 0, headers, 0, "", -1)
    with made.handling([record], handler="bill", group="billing/billing", is_replayed=True):
        pass
    (handled,) = exporter.get_finished_spans()
    assert handled.parent is None
    assert trace_of(handled) != 1
    assert [(link.context.trace_id, link.context.span_id) for link in handled.links] == [(1, 2)]


@pytest.mark.parametrize("given", ["", "00-zz-1-01", f"00-{0:032x}-{0:016x}-00"])
def test_a_traceparent_that_is_none_is_passed_over(given: str, exporter: InMemorySpanExporter) -> None:
    made = tracing()
    assert made is not None
    record = StoredRecord("t", 0, Offset(7), "id", "t/1", b"{}", "a", "web", 0, 0, {TRACEPARENT: given}, 0, "", -1)
    with made.handling([record], handler="bill", group="billing/billing", is_replayed=False):
        pass
    (handled,) = exporter.get_finished_spans()
    assert (handled.parent, list(handled.links)) == (None, [])


def test_without_a_provider_there_are_no_spans() -> None:
    assert tracing() is None


def test_an_app_that_nobody_traces_imports_nothing_of_it() -> None:
    code = "import sys, everlog.app, everlog.runtime, everlog.observe.tracing as t; assert t.tracing() is None; print('opentelemetry' in sys.modules, 'prometheus_client' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert ended.stdout.split() == ["False", "False"]
