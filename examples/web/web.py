"""The door for browsers: takes orders, and pushes what becomes of them. It holds nothing: any number of them may run.

Run it with `uvicorn web:web --timeout-graceful-shutdown 2`: without the option uvicorn waits, before it ends, for streams that never end.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Final
from uuid import UUID

import msgspec
from fastapi import Depends, FastAPI, Header, Query, Request
from fastapi.responses import FileResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field

from everlog import App, Client, Record
from everlog.errors import PositionRefused, RecordsGone
from orders import OrderCleared, OrderPlaced, OrderSuspected, StockRefused, StockReserved

Fact = OrderPlaced | OrderCleared | OrderSuspected | StockReserved | StockRefused
FACTS: Final = (OrderPlaced, OrderCleared, OrderSuspected, StockReserved, StockRefused)

Customer = Annotated[str, Field(min_length=1, max_length=40)]

shop = App("web")


@asynccontextmanager
async def connected(web: FastAPI) -> AsyncGenerator[None, None]:
    async with shop.connect() as client:
        web.state.client = client
        yield


web = FastAPI(lifespan=connected)


def the_client(request: Request) -> Client:
    client: Client = request.app.state.client
    return client


ClientDep = Annotated[Client, Depends(the_client)]


class Basket(BaseModel):
    order: UUID
    """Chosen by the browser, so that a request whose answer was lost can be sent again: the order is placed once."""
    customer: Customer
    item: Annotated[str, Field(min_length=1, max_length=40)]
    pieces: Annotated[int, Field(ge=1, le=1_000)]


@web.post("/orders", status_code=202)
async def place(basket: Basket, client: ClientDep) -> None:
    fact = OrderPlaced(basket.customer, str(basket.order), basket.item, basket.pieces)
    await client.publish(fact, idempotency_key=fact.order)


@web.get("/customers/{customer}/events", response_class=EventSourceResponse)
async def events(
    customer: Customer,
    client: ClientDep,
    last_event_id: Annotated[str | None, Header()] = None,
    after: Annotated[str | None, Query()] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Push a customer's facts: those behind `Last-Event-ID`, which a browser sends by itself when it connects again, or all of them.

    A browser that does not read is not read for: its stream waits, and nobody else's.
    """
    seen = last_event_id or after
    try:
        async for record in client.follow(*FACTS, start="beginning", after=seen or None, key=customer):
            yield pushed(record)
    except (PositionRefused, RecordsGone):  # of a log that was put back, deleted by retention, or made up: start anew, and say so
        yield ServerSentEvent(event="reset", data="from the beginning")
        async for record in client.follow(*FACTS, start="beginning", key=customer):
            yield pushed(record)


def pushed(record: Record[Fact]) -> ServerSentEvent:
    fact = {"type": record.type, "id": record.id, "data": msgspec.to_builtins(record.event)}
    return ServerSentEvent(data=fact, id=record.position.token(), retry=500)


@web.get("/")
async def page() -> FileResponse:
    return FileResponse(Path(__file__).parent / "index.html")
