"""An app on files whose machine has a bad clock: a run of random jumps, sleeps, crashes and reboots, and a history of what was seen."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import msgspec
import pytest
from tests.subscriptions import world as worlds
from tests.subscriptions.chaos import read_rows
from tests.subscriptions.world import PARTITIONS, Left, Out, World, left, make_world, out

from everlog import App, Delivery, Retry, Tx
from everlog.clock import to_datetime
from everlog.conformance.history import Effect, History, Told
from everlog.conformance.judge import judge
from everlog.drivers.process import Process, this_process
from everlog.key import partition_of
from everlog.log import ProducerBatch, Status, TopicSpec
from everlog.position import Offset, TopicPartition
from everlog.record import NewRecord, StoredRecord
from everlog.runtime import REPORT_EVERY_S
from everlog.store import Slot
from everlog.stores.sqlite import store as store_file
from everlog.subscriptions.report import read_lags
from everlog.testing.clock import ManualClock

HOUR_S: Final = 3_600.0
YEAR_S: Final = 365 * 86_400.0
JUMPS_S: Final = (HOUR_S, -HOUR_S, YEAR_S, -YEAR_S)
LONGEST_S: Final = 30.0
"""The longest pause before a retry."""
KEEP_S: Final = HOUR_S
_PATIENCE_S: Final = 600.0
"""Much less than the smallest jump back. More than one pause: an outage is probed once a minute, and time goes on while the app works."""
_MARGIN_S: Final = 61.0
"""Retention forgives a minute of a jump."""
_STEP_S: Final = 0.5
_NOTES: Final = TopicSpec("test.notes", key="key", partitions=1, keep_s=KEEP_S)


class _Numbered(NamedTuple):
    """A record that a session sent under a number, and may send again."""

    record: NewRecord
    producer: ProducerBatch


class ClockShop:
    """One run. What is wrong is collected in `wrong`; `history` is judged at the end.

    Args:
        seed: Of all dice.
        folder: For log and store.
        patch: Puts another boot and another clock in the place of this machine's.
    """

    def __init__(
        self,
        seed: int,
        folder: Path,
        patch: pytest.MonkeyPatch,
    ) -> None:
        self.dice = random.Random(seed)
        self.history = History()
        self.wrong: list[str] = []
        self._folder = folder
        self._patch = patch
        self._fails = 0.0
        self._asleep_s = 0.0  # what passed while no clock ran
        self._earlier_s = 0.0  # what passed before this boot
        self._booted_s = 0.0  # where the monotonic time of this boot began
        self._ahead_s = 0.0  # how far the wall time is from that
        self._number = 0
        self._boots = 0
        self._handled: set[int] = set()
        self._notes: list[float] = []  # when each was published; where the log's time was behind the truth, that of the log
        self._sessions: dict[str, dict[int, int]] = {}
        self._numbered: list[_Numbered] = []
        self._w: World
        self.app = App(
            "app",
            delivery=Delivery(start="beginning", on_error={Exception: Retry(attempts=1_000_000, first_s=1, most_s=LONGEST_S)}),
        )
        self._journal = self.app.state("journal/1", list[int])
        self.app.on(Left)(self._handle)

    async def _handle(self, event: Left, tx: Tx) -> Out:
        began = asyncio.get_running_loop().time()
        mine = await tx.get(self._journal, event.key, list[int]())
        failed = self.dice.random() < self._fails
        self.history.ran(f"boot {self._boots}", event.n, event.key, began, asyncio.get_running_loop().time())
        if failed:
            raise RuntimeError("dice")
        self._handled.add(event.n)
        tx.put(self._journal, event.key, [*mine, event.n])
        return Out(event.key, event.n)

    # ---- the machine ----

    @property
    def _true_s(self) -> float:
        """What a right clock would have counted since the run began."""
        return self._earlier_s + self._asleep_s + self._w.clock.monotonic_s() - self._booted_s

    async def boot(self, *, slept_s: float = 0.0) -> None:
        """Begin, or begin anew after the machine was off: another boot id, and a monotonic time near 0."""
        self._boots += 1
        self._earlier_s += slept_s
        self._booted_s = self.dice.uniform(1, 10)
        self._ahead_s = 0.0  # no process can know a wrong time with which it begins
        now_us = ManualClock().wall_us() + round((self._earlier_s + self._asleep_s) * 1e6)
        clock = ManualClock(wall_us=now_us, monotonic_s=self._booted_s)
        process = replace(this_process(), boot=f"boot-{self._boots}")

        def booted() -> Process:
            return process

        def given() -> ManualClock:
            return clock

        self._patch.setattr(store_file, "this_process", booted)
        self._patch.setattr(worlds, "ManualClock", given)
        self._w = await make_world(self.app, self._patch, folder=self._folder)
        if self._boots == 1:
            await self._w.log.ensure_topic(left.spec())
            await self._w.log.ensure_topic(_NOTES)
        await self._w.start()

    async def reboot(self) -> None:
        """Crash, and begin anew. What the old owner held is free at once: an event is handled though no time passes."""
        await self.shut()
        await self.boot(slept_s=self.dice.choice((1.0, HOUR_S)))
        self._fails = 0.0
        event = self._next("client", f"boot-{self._boots}")
        await self._publish_all([event])
        await self._w.until(lambda: event.n in self._handled)

    async def shut(self) -> None:
        """Crash and let go of the files."""
        await self._w.aclose()
        self._earlier_s += self._w.clock.monotonic_s() - self._booted_s

    async def _jump(self) -> None:
        """Set the clock, ahead, back, or right again; or have the machine sleep while the monotonic time stands still."""
        seconds = self.dice.choice((*JUMPS_S, -self._ahead_s, HOUR_S))
        self._ahead_s += seconds
        self._w.clock.jump(seconds)

    async def _suspend(self) -> None:
        """Sleep for an hour, of which the monotonic time shows nothing, or all of it."""
        if self.dice.random() < 0.5:
            self._asleep_s += HOUR_S
            self._w.clock.jump(HOUR_S)
        else:
            self._w.clock.advance(HOUR_S)

    async def _crash(self) -> None:
        await self._w.crash()
        await self._w.start()

    # ---- its users ----

    def _next(self, sender: str, key: str | None = None) -> Left:
        event = Left(key or f"k{self.dice.randrange(6)}", self._number)
        self._number += 1
        self.history.sends(sender, event.n, left.name, event.key)
        return event

    async def _publish(self) -> None:
        await self._publish_all([self._next("client") for _ in range(self.dice.randrange(1, 6))])

    async def _publish_all(self, events: list[Left]) -> None:
        await self._w.client.publish(*events)
        for event in events:
            self.history.told(event.n, Told.STORED)

    async def _send(self) -> None:
        """Append under a number of a session, as a client does that may have to send it again."""
        name = f"session-{self.dice.randrange(4)}"
        event = self._next(name)
        part = partition_of(event.key, PARTITIONS)
        numbers = self._sessions.setdefault(name, {})
        number = numbers[part] = numbers.get(part, -1) + 1
        record = NewRecord("test.left/1", msgspec.json.encode(event), event.key, part, "shop", event.n)
        sent = _Numbered(record, ProducerBatch(name, {part: number}))
        (status,) = (await self._w.log.append(left.name, [record], producer=sent.producer)).statuses
        if status is not Status.STORED:
            self.wrong.append(f"event {event.n}, sent for the first time, is told to be {status}")
        self.history.told(event.n, Told.STORED)
        self._numbered.append(sent)

    async def _send_again(self) -> None:
        if self._numbered:
            record, producer = self.dice.choice(self._numbered)
            (status,) = (await self._w.log.append(left.name, [record], producer=producer)).statuses
            if status is not Status.DUPLICATE:
                self.wrong.append(f"{producer} is sent again, and told to be {status}")

    async def _note(self) -> None:
        number = len(self._notes)
        await self._w.log.append(_NOTES.name, [NewRecord("test.note/1", b"%d" % number, "k", 0, "shop", number)])
        logged_at_us = (await self._w.log.backlog(_NOTES.name, {0: Offset(number - 1)})).oldest_us
        assert logged_at_us is not None
        self._notes.append(min(self._true_s, (logged_at_us - ManualClock().wall_us()) / 1e6))

    async def _retain(self) -> None:
        await self._w.log.retain()
        where = TopicPartition(_NOTES.name, 0)
        first = (await self._w.log.first(_NOTES.name)).offsets[where]
        for number, published_s in enumerate(self._notes):
            if number <= first and self._true_s - published_s < KEEP_S - _MARGIN_S:
                self.wrong.append(f"note {number} was deleted when it was {self._true_s - published_s:.0f} s old")

    async def _rest(self) -> None:
        """Nothing fails any more: what is held is tried again after its pause, wherever the wall time stands."""
        self._fails = 0.0
        before = self._w.clock.monotonic_s()
        self._w._since = None
        await self._w.settle(step_s=_STEP_S)
        passed_s = self._w.clock.monotonic_s() - before
        if passed_s > _PATIENCE_S:
            self.wrong.append(f"what was held took {passed_s} s to be tried again")

    async def _work(self) -> None:
        """Let the app work for some seconds, with handlers that fail."""
        self._fails = self.dice.choice((0.1, 0.5))
        for _ in range(self.dice.randrange(1, 8)):
            await self._w.tick(self.dice.choice((0.0, 1.0, 5.0)))

    # ---- the run and its judgement ----

    async def run(self, steps: int) -> list[str]:
        """Do so many random things with an app that was booted, and say what is wrong at the end."""
        await self._publish()
        does: list[tuple[Callable[[], Any], int]] = [
            (self._publish, 6), (self._send, 4), (self._send_again, 3), (self._note, 4), (self._retain, 4), (self._work, 8), (self._jump, 6),
            (self._suspend, 1), (self._crash, 1), (self.reboot, 1), (self._rest, 1),
        ]  # fmt: skip
        for _ in range(steps):
            (do,) = self.dice.choices([step for step, _ in does], [weight for _, weight in does])
            await do()
        await self._jump()
        await self._rest()
        await self._report()
        await self._look()
        await self._w.stop(step_s=0.01)
        return [*self.wrong, *map(str, judge(self.history)), *self._w.store.unfinished_again]

    async def _report(self) -> None:
        """A report of how the app stands is due, wherever the wall time stands."""
        lags: list[int] = []
        held = (await self._w.store.status()).subscriptions[0].held_records
        for _ in range(100):
            await self._w.tick(REPORT_EVERY_S)
            lags = [lag.count for lag in await read_lags(self._w.log, self._w.clock.wall_us())]
            if lags == [held]:
                return
        self.wrong.append(f"the reports say that {lags} events wait, and {held} do")

    async def _look(self) -> None:
        """Note what the log and the store hold in the end."""
        records = await self._w.records(left)
        numbered = [(cast("int", msgspec.json.decode(one.data)["n"]), one) for one in records]
        for number, one in numbered:
            self.history.read("the last reader", TopicPartition(left.name, one.partition), one.offset, number, one.key)
            self.history.emits("app", number, f"out-{number}")
        self.history.reads_all("the last reader")
        for one in await self._w.records(out):
            number = msgspec.json.decode(one.data)["n"]
            self.history.read("the last reader", TopicPartition(out.name, one.partition), one.offset, f"out-{number}", one.key)
        for key, effects in read_rows(await self._w.rows("journal/1")).items():
            self.history.applied("app", key, [Effect(number) for number in cast("list[int]", effects)])
        self.history.subscribes("app", [left.name])
        # After some crashes the innocent may be parked too, which is no matter of time.
        for parked in await self._w.store.parked("app"):
            for held in await self._w.store.held(Slot("app", parked.first.slot), parked.key, limit=1_000):
                self.history.held("app", cast("int", msgspec.json.decode(held.record.data)["n"]))
        self._look_at_times(sorted(numbered, key=lambda pair: (pair[0], pair[1].offset)))
        await self._look_at_moments(records)

    def _look_at_times(self, numbered: list[tuple[int, StoredRecord]]) -> None:
        latest = 0
        for number, one in numbered:
            if one.logged_at_us < latest:
                self.wrong.append(f"event {number} was logged {(latest - one.logged_at_us) / 1e6} s before an earlier one")
            latest = one.logged_at_us

    async def _look_at_moments(self, records: list[StoredRecord]) -> None:
        for moment_us in {one.logged_at_us for one in self.dice.sample(records, min(5, len(records)))}:
            offsets = (await self._w.log.position_at(left.name, to_datetime(moment_us))).offsets
            for one in records:
                is_behind = one.offset > offsets[TopicPartition(left.name, one.partition)]
                if is_behind != (one.logged_at_us >= moment_us):
                    self.wrong.append(
                        f"position_at({moment_us}) puts offset {one.offset}, logged at {one.logged_at_us}, elsewhere"
                    )
