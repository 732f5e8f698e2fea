"""A state machine that does to a subscription whatever can happen to it, and compares what is left with a model and with the judge."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule
from tests.subscriptions import machine_shop as shop
from tests.subscriptions.chaos import GROUPS
from tests.subscriptions.machine_ledger import SUBSCRIPTIONS, Ledger
from tests.subscriptions.machine_store import LEASE_S
from tests.subscriptions.machine_world import Process, Restless, World

from everlog.key import partition_of
from everlog.position import Offset, Position, TopicPartition
from everlog.record import NewRecord
from everlog.store import Cause, StoreStatus

PLACES = st.sampled_from(("a", "b"))
KINDS: dict[str, type[Any]] = {"left": shop.Left, "right": shop.Right, "new": shop.NewLeft}
MODES: st.SearchStrategy[shop.Mode] = st.sampled_from(("fails", "once", "points", "hangs", "kills"))
_MOST_SECONDS = 300
"""So long on the moved clock a mended world may take until nothing is left to do."""


class SubscriptionMachine(RuleBasedStateMachine):
    """Two processes of one app, which come and go, and everything that befalls them."""

    keys: Bundle[str] = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self._world: World | None = None
        self._ledger: Ledger | None = None
        self._count = 0
        self._is_new = False
        self._is_wrong = False

    @property
    def world(self) -> World:
        assert self._world is not None
        return self._world

    @property
    def ledger(self) -> Ledger:
        assert self._ledger is not None
        return self._ledger

    @initialize(target=keys, seed=st.integers(0, 1_000_000), count=st.integers(2, 6), is_alone=st.booleans())
    def open(self, seed: int, count: int, is_alone: bool) -> Any:
        self._world = World(random.Random(seed))
        self._ledger = Ledger(self._world)
        for place in "a" if is_alone else "ab":
            self.world.start(place, is_new=False)
        self.world.rest()
        self._count = 100
        apart = self.world.dice.choice((1, GROUPS))  # or all of them share their rows
        return multiple(*[f"k{apart * n + 1}" for n in range(count)])

    # ---- what is published ----

    @rule(target=keys)
    def key(self) -> str:
        self._count += 1
        return f"k{self._count}"

    @rule(
        events=st.lists(st.tuples(keys, st.sampled_from(("left", "left", "right", "new"))), min_size=1, max_size=12),
        is_batch=st.booleans(),
    )
    def publish(self, events: Sequence[tuple[str, str]], is_batch: bool) -> None:
        self._publish(events, is_batch=is_batch)

    def _publish(self, events: Sequence[tuple[str, str]], *, is_batch: bool) -> None:
        made = [
            (self.ledger.sends("right" if kind == "right" else "left", key), key, kind) for key, kind in events
        ]  # in the order of the list
        batch = [KINDS[kind](key, n) for n, key, kind in made]
        for part in [batch] if is_batch else [[one] for one in batch]:
            self.world.do(self.world.client.publish(*part))
        for n, _, _ in made:
            self.ledger.stored(n)

    @rule(count=st.integers(1, 5))
    def publish_without_key(self, count: int) -> None:
        numbers = [self.ledger.sends("free", None) for _ in range(count)]
        self.world.do(self.world.client.publish(*[shop.Free(n) for n in numbers]))
        for n in numbers:
            self.ledger.stored(n)

    @rule(key=keys, what=st.sampled_from(("broken", "stranger")))
    def publish_what_nobody_can_read(self, key: str, what: str) -> None:
        is_broken = what == "broken"
        n = self.ledger.sends("left", key, is_broken=True) if is_broken else -1
        kind = "machine.left/1" if is_broken else "machine.stranger/1"
        record = NewRecord(kind, b'{"key": 7}', key, partition_of(key, shop.PARTITIONS), "stranger", 1)
        appended = self.world.do(self.world.log.append(shop.left.name, [record]))
        if is_broken:
            self.ledger.stored(n, TopicPartition(shop.left.name, record.partition), appended.offsets[0])

    # ---- processes and time ----

    @rule(place=PLACES)
    def start(self, place: str) -> None:
        self.world.start(place, is_new=self._is_new)

    @rule(turns=st.sampled_from((1, 3, 10, 30, 100)))
    def turn(self, turns: int) -> None:
        for _ in range(turns):
            self.world.turn()

    @rule(seconds=st.sampled_from((0.05, 0.3, 1.0, 3.0, 1.2 * LEASE_S, 30.0)))
    def move_the_clock(self, seconds: float) -> None:
        self.world.rest()
        self.world.advance(seconds)

    @precondition(lambda self: self._live())
    @rule(place=PLACES, work=st.lists(keys, max_size=6), turns=st.integers(0, 40), is_taken_over=st.booleans())
    def kill(self, place: str, work: Sequence[str], turns: int, is_taken_over: bool) -> None:
        self._begin(work, turns)
        if place in self.world.processes:
            self.world.processes[place].kill()
            self.world.bury()
        if is_taken_over:
            self.world.advance(1.2 * LEASE_S)
            self.start(place)

    def _begin(self, work: Sequence[str], turns: int) -> None:
        """Let there be something to do, and get somewhere in the midst of it."""
        if work:
            self._publish([(key, "left") for key in work], is_batch=True)
        self.turn(turns)

    @precondition(lambda self: self._live())
    @rule(place=PLACES)
    def stop(self, place: str) -> None:
        process = self.world.processes.get(place)
        if process is not None and process.store is not None:
            process.stop()

    @precondition(lambda self: self._live())
    @rule(place=PLACES, work=st.lists(keys, max_size=6), turns=st.integers(0, 40), is_for_long=st.booleans())
    def stall(self, place: str, work: Sequence[str], turns: int, is_for_long: bool) -> None:
        self._begin(work, turns)
        if place in self.world.processes:
            self.world.processes[place].is_stalled = True
        if is_for_long:
            self.start("b" if place == "a" else "a")
            self.world.advance(1.2 * LEASE_S)
            self.go_on()

    @precondition(lambda self: any(process.is_stalled for process in self._live()))
    @rule()
    def go_on(self) -> None:
        for process in self.world.processes.values():
            process.is_stalled = False

    @rule()
    def deploy(self) -> None:
        self._is_new = True

    def _live(self) -> list[Process]:
        return list(self.world.processes.values()) if self._world is not None else []

    # ---- faults ----

    @rule(what=st.sampled_from(("the disk is full", "the disk has room", "a commit has no answer", "appends have no answer")))
    def break_a_port(self, what: str) -> None:
        faults = self.world.faults
        match what:
            case "the disk is full":
                faults.is_full = True
            case "the disk has room":
                faults.is_full = False
            case "a commit has no answer":
                faults.lost_commits = 1
            case _:
                faults.lost_appends = 2

    @rule(key=keys, mode=MODES)
    def strike(self, key: str, mode: shop.Mode) -> None:
        self.world.weather.modes[key] = mode

    @rule()
    def mend(self) -> None:
        self.world.weather.clear()
        self.world.faults.is_full = False

    @rule()
    def begin_an_outage(self) -> None:
        self.world.weather.is_down = True

    # ---- people ----

    @rule(subscription=st.sampled_from(SUBSCRIPTIONS))
    def redrive(self, subscription: str) -> None:
        """As from the command line, by whoever does not know what the process is about to do."""
        self.world.do(self.world.store.request(subscription, None, "redrive"))

    @rule(subscription=st.sampled_from(SUBSCRIPTIONS), key=keys)
    def skip(self, subscription: str, key: str) -> None:
        self.world.do(self.world.store.request(subscription, key, "skip"))

    @rule(topic=st.sampled_from((shop.left, shop.right, shop.free)), most=st.integers(0, 30))
    def let_retention_delete(self, topic: Any, most: int) -> None:
        self.world.do(self._trim(topic.name, most))

    async def _trim(self, topic: str, most: int) -> None:
        """Delete all but the newest records, whoever has handled them."""
        log, ledger = self.world.log, self.ledger
        await ledger.read()
        head = (await log.head(topic)).offsets
        before = Position(log.identity, {where: Offset(max(-1, last - most)) for where, last in head.items()})
        status = await self.world.store.status()
        await log.trim(topic, before)
        for where, first in (await log.first(topic)).offsets.items():
            ledger.deleted(where, first, status)

    # ---- what must hold ----

    @invariant()
    def nothing_is_seen_that_must_never_be(self) -> None:
        if self._world is not None:
            self._check(self.ledger.look(self.world.do(self.world.store.status())))

    def _check(self, wrong: Sequence[str]) -> None:
        if wrong:
            self._is_wrong = True
            raise AssertionError("\n".join(wrong))

    def settle(self) -> None:
        """Mend everything, run the newest code, redrive what is parked, and skip what no code can read, until nothing is left."""
        world = self.world
        world.weather.clear()
        world.faults.is_full, world.faults.lost_commits, world.faults.lost_appends = False, 0, 0
        self.go_on()
        for process in world.processes.values():
            if process.store is not None:
                process.stop()
        for second in range(_MOST_SECONDS):
            for place in "ab":
                world.start(place, is_new=True)
            world.advance(1.0)
            status = world.do(world.store.status())
            self._check(self.ledger.look(status))
            if world.do(self._is_settled(status)):
                return
            if second % 10 == 5:
                world.do(self._release())
        raise Restless(f"not settled after {_MOST_SECONDS} s: {world.do(world.store.status())}")

    async def _is_settled(self, status: StoreStatus) -> bool:
        """Tell whether all that is kept of the log is finished. That a gap was passed is stored with the next record behind it."""
        log = self.world.log
        heads: dict[TopicPartition, Offset] = {}
        gone: dict[TopicPartition, Offset] = {}
        for topic in (shop.left, shop.right, shop.free):
            heads.update((await log.head(topic.name)).offsets)
            gone.update((await log.first(topic.name)).offsets)
        progress = [one for subscription in status.subscriptions for one in subscription.progress]
        return (
            bool(progress)
            and not status.outbox
            and not any(one.held_records for one in status.subscriptions)
            and all(max(one.through, gone[one.where]) >= heads[one.where] for one in progress)
            and not any(offset > gone[one.where] for one in progress for offset in one.unfinished)
        )

    async def _release(self) -> None:
        store = self.world.store
        for name in SUBSCRIPTIONS:
            await store.request(name, None, "redrive")
            for parked in await store.parked(name):
                first = parked.first
                if first.cause is Cause.UNREADABLE and first.record.data == b'{"key": 7}':
                    await store.request(name, parked.key, "skip")

    def teardown(self) -> None:
        if self._world is None:
            return
        try:
            if not self._is_wrong:
                self.settle()
                self._check(self.world.do(self.ledger.wrong()))
        finally:
            self.world.close()
