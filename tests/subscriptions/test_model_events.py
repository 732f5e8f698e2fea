"""Pydantic models on their whole way: published, handled, and beside structs."""

from __future__ import annotations

from decimal import Decimal

from tests.contracts.test_models import Placed, placed
from tests.subscriptions.world import Make, Out

from everlog import App, Delivery, Tx


async def test_a_model_is_published_handled_and_kept_beside_structs(world: Make) -> None:
    app = App("app", delivery=Delivery(start="beginning"))
    total = app.state("total/1", int)
    seen: list[Placed] = []

    @app.on(Placed)
    async def handle(order: Placed, tx: Tx) -> Out:
        seen.append(order)
        tx.add(total, order.customer, sum(line.quantity for line in order.lines))
        return Out(order.customer, int(order.price * 100))

    w = await world(app)
    sent = [placed(), placed(customer="bob", note="x"), placed(price=Decimal("9.99"))]
    await w.client.publish(*sent)
    await w.client.publish(sent[0])
    await w.start()
    await w.settle()
    assert sorted(seen, key=str) == sorted([*sent, sent[0]], key=str)
    assert await w.rows("total/1") == {'["ann"]': b"9", '["bob"]': b"3"}
    assert sorted(event.n for event in await w.events(Out)) == [110, 110, 110, 999]
