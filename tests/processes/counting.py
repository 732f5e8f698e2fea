"""An app that counts what comes, and notes what came out of order or twice: for tests that kill what it works on."""

from __future__ import annotations

from everlog import App, Delivery, Event, Topic, Tx

steps = Topic("counting.steps", key="walker", partitions=8)
echoes = Topic("counting.echoes", key="walker", partitions=8)


@steps.event("counting.stepped/1")
class Stepped(Event):
    walker: str
    number: int


@echoes.event("counting.echoed/1")
class Echoed(Event):
    walker: str
    number: int


counting = App("counting", delivery=Delivery(start="beginning"))
seen = counting.state("seen/1", int)  # key: walker; how many of its steps came
faults = counting.state("faults/1", int)  # key: walker


@counting.on(Stepped)
async def count(step: Stepped, tx: Tx) -> Echoed:
    before = await tx.get(seen, step.walker, 0)
    if step.number != before:
        tx.add(faults, step.walker, 1)
    tx.put(seen, step.walker, before + 1)
    return Echoed(step.walker, step.number)
