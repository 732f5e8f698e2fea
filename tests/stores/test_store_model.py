"""Whatever two members do to a store, it holds what a dictionary would hold."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from everlog.position import Offset, TopicPartition
from everlog.record import NewRecord, StoredRecord
from everlog.rules import applying
from everlog.store import (
    Add,
    AppSpec,
    Cause,
    Delete,
    Emitted,
    Hold,
    Lease,
    Outcome,
    Progress,
    Put,
    Room,
    ScanRead,
    Slot,
    StateKey,
    Store,
    SubscriptionSpec,
    Unit,
    Write,
)
from everlog.stores.sqlite import commit, open_store
from everlog.testing.clock import ManualClock

STATE = "stock/1"
APP = AppSpec("a", [SubscriptionSpec("a", {"t": ["t.happened/1"]}, [STATE])])
SLOT = Slot("a", 0)
HERE = TopicPartition("t", 0)
LEASE_S = 600.0  # no heartbeat within a run
KEYS = ['["a"]', '["a","b"]', '["aa"]', "[1]"]
LANES = [None, "x", "y"]
WRITES: st.SearchStrategy[Write] = st.one_of(
    st.integers(-9, 9).map(lambda n: Put(b"%d" % n)), st.just(Put(b'"text"')), st.integers(-9, 9).map(Add), st.just(Delete())
)


@dataclass
class Wish:
    """What a drawn unit does; reads name how many changes ago a row was read."""

    lane: str | None
    reads: dict[str, int]
    scan_age: int | None
    writes: dict[str, Write]
    emits: int
    holds: list[str]
    most_held: int | None


WISHES = st.builds(
    Wish,
    lane=st.sampled_from(LANES),
    reads=st.dictionaries(st.sampled_from(KEYS), st.sampled_from([0, 0, 0, 1, 2]), max_size=2),
    scan_age=st.sampled_from([None, None, 0, 1]),
    writes=st.dictionaries(st.sampled_from(KEYS), WRITES, max_size=2),
    emits=st.integers(0, 2),
    holds=st.lists(st.sampled_from(["k", "l"]), max_size=2),
    most_held=st.sampled_from([None, None, 1, 3, 6]),
)


@dataclass
class Member:
    """One handle of the store, and what it believes to own."""

    store: Store
    version: int
    lease: Lease | None = None
    is_live: bool = True


@dataclass
class Model:
    """What the store should hold."""

    rows: dict[str, tuple[int | str, int]] = field(default_factory=dict[str, tuple[int | str, int]])
    past: list[dict[str, tuple[int | str, int]]] = field(default_factory=list[dict[str, tuple[int | str, int]]])
    outbox: list[int] = field(default_factory=list[int])
    held: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    through: int = -1
    unfinished: set[int] = field(default_factory=set[int])
    owner: int | None = None

    @property
    def held_records(self) -> int:
        return sum(len(offsets) for offsets in self.held.values())

    def seen(self, age: int) -> dict[str, tuple[int | str, int]]:
        """Return the rows as they were `age` commits ago."""
        return self.rows if age == 0 or not self.past else self.past[-min(age, len(self.past))]

    def apply(self, unit: Unit) -> Outcome:
        if unit.holds and unit.room is not None and self.held_records + len(unit.holds) > unit.room.records:
            return Outcome.FULL
        for (_, key), version in unit.reads.items():
            if self.rows.get(key, (None, 0))[1] != version:
                return Outcome.CONFLICT
        if any(dict(scan.rows) != _under_a(self.rows) for scan in unit.scans):
            return Outcome.CONFLICT
        changed = dict(self.rows)
        for (_, key), write in unit.writes.items():
            match write:
                case Put(value):
                    changed[key] = ("text" if value == b'"text"' else int(value), unit.version)
                case Add(amount):
                    before = changed.get(key, (0, 0))[0]
                    if isinstance(before, str):
                        return Outcome.REFUSED
                    changed[key] = (before + int(amount), unit.version)
                case Delete():
                    changed.pop(key, None)
        self.rows = changed
        self.outbox += [emitted.record.time_us for emitted in unit.emits]
        for hold in unit.holds:
            self.held.setdefault(hold.key, []).append(hold.record.offset)
        return Outcome.COMMITTED


def _under_a(rows: dict[str, tuple[int | str, int]]) -> dict[str, int]:
    return {key: version for key, (_, version) in rows.items() if key in ('["a"]', '["a","b"]')}


class TwoMembers(RuleBasedStateMachine):
    """Two members of one file: both believe what they like, and only one of them commits."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = ManualClock()
        self.model = Model()
        self.members: list[Member] = []
        self.count = 0

    @initialize()
    def start(self) -> None:
        self.members = [self._opened() for _ in range(2)]

    def _opened(self) -> Member:
        async def opened() -> Member:
            store = await open_store(f"sqlite:{Path(self.folder.name) / 'a.db'}", clock=self.clock, lease_s=LEASE_S)
            await store.register(APP, log=uuid4())
            return Member(store, (await store.join({"a": []}, alive_s=0.001)).version_base)

        return self.runner.run(opened())

    @rule(who=st.integers(0, 1))
    def acquire(self, who: int) -> None:
        member, owner = self.members[who], self.model.owner
        lease = self.runner.run(member.store.acquire(SLOT))
        if owner == who:
            assert lease is not None
            assert member.lease is not None
            assert (lease.slot, lease.epoch) == (member.lease.slot, member.lease.epoch)
        elif owner is not None and self.members[owner].is_live:
            assert lease is None
        else:
            assert lease is not None
            member.lease, member.is_live, self.model.owner = lease, True, who

    @rule()
    def silence(self) -> None:
        self.clock.advance(LEASE_S + 1)
        for member in self.members:
            member.is_live = False

    @rule(who=st.integers(0, 1))
    def take_over(self, who: int) -> None:
        self.silence()
        self.acquire(who)

    @precondition(lambda self: any(member.lease for member in self.members))
    @rule(who=st.integers(0, 1))
    def release(self, who: int) -> None:
        member = self.members[who]
        if member.lease is not None:
            self.runner.run(member.store.release(member.lease))
            if self.model.owner == who:
                self.model.owner = None

    @rule(who=st.integers(0, 1))
    def reopen(self, who: int) -> None:
        self.runner.run(self.members[who].store.aclose())
        if self.model.owner == who:
            self.model.owner = None
        self.members[who] = self._opened()

    @rule(who=st.integers(0, 1), wishes=st.lists(WISHES, min_size=1, max_size=5))
    def commit(self, who: int, wishes: Sequence[Wish]) -> None:
        member, model = self.members[who], self.model
        if member.lease is None:
            return
        units = [self._unit(member, wish) for wish in wishes]
        through = max(model.through, self.count)
        progress = Progress(HERE, Offset(through), [Offset(offset) for offset in sorted(model.unfinished)])
        before = dict(model.rows)
        expected, put_back = self._expected(who, units)
        found = self.runner.run(member.store.commit(units, [member.lease], [(SLOT, progress)]))
        assert list(found) == expected
        if model.owner == who:
            model.past = [*model.past[-3:], before]
            model.through, model.unfinished = through, model.unfinished | put_back

    def _unit(self, member: Member, wish: Wish) -> Unit:
        member.version += 1
        self.count += 1
        scans: list[ScanRead] = []
        if wish.scan_age is not None:
            scans.append(ScanRead(STATE, '["a"]', tuple(sorted(_under_a(self.model.seen(wish.scan_age)).items()))))
        return Unit(
            slot=SLOT,
            lane=wish.lane,
            version=member.version,
            finishes=[(HERE, Offset(self.count))],
            reads={self._row(key): self.model.seen(age).get(key, (None, 0))[1] for key, age in wish.reads.items()},
            scans=scans,
            writes={self._row(key): write for key, write in wish.writes.items()},
            emits=[_emitted(self.count * 10 + n) for n in range(wish.emits)],
            holds=[_hold(key, self.count * 10 + n) for n, key in enumerate(wish.holds)],
            room=None if wish.most_held is None else Room(wish.most_held, 1 << 30),
        )

    def _row(self, key: str) -> StateKey:
        return (STATE, key)

    def _expected(self, who: int, units: Sequence[Unit]) -> tuple[list[Outcome], set[int]]:
        if self.model.owner != who:
            return [Outcome.FENCED] * len(units), set()
        outcomes: list[Outcome] = []
        put_back: set[int] = set()
        stopped: set[str] = set()
        for unit in units:
            outcome = Outcome.DROPPED if unit.lane in stopped else self.model.apply(unit)
            outcomes.append(outcome)
            if outcome is not Outcome.COMMITTED:
                put_back |= {offset for _, offset in unit.finishes}
                if unit.lane is not None:
                    stopped.add(unit.lane)
        return outcomes, put_back

    @invariant()
    def both_handles_show_what_the_model_holds(self) -> None:
        for member in self.members:
            self.runner.run(self._compare(member.store))

    async def _compare(self, store: Store) -> None:
        model = self.model
        found = {key: (row.value, row.version) for key, row in await store.scan(STATE, "[]")}
        assert found == {key: (_json(value), version) for key, (value, version) in model.rows.items()}
        rows = await store.read([(STATE, key) for key in KEYS])
        assert [row.version for row in rows] == [model.rows.get(key, (None, 0))[1] for key in KEYS]
        assert {key: row.version for key, row in await store.scan(STATE, '["a"]')} == _under_a(model.rows)
        assert [row.emitted.record.time_us for row in await store.outbox(after=0, limit=10_000)] == model.outbox
        held = {one.key: one.records for one in await store.due(SLOT)}
        assert held == {key: len(offsets) for key, offsets in model.held.items()}
        for key, offsets in model.held.items():
            assert [one.record.offset for one in await store.held(SLOT, key, limit=10_000)] == offsets
        progress = [(at.through, set(at.unfinished)) for one in (await store.status()).subscriptions for at in one.progress]
        (status,) = (await store.status()).subscriptions
        assert status.held_records == model.held_records
        assert await store.verify() == []
        assert progress == ([(model.through, model.unfinished)] if model.through >= 0 else [])

    def teardown(self) -> None:
        for member in self.members:
            self.runner.run(member.store.aclose())
        self.runner.close()
        self.folder.cleanup()


def _json(value: Any) -> bytes:
    return b'"text"' if value == "text" else b"%d" % value


def _emitted(number: int) -> Emitted:
    return Emitted("t", NewRecord("t.happened/1", b"{}", "k", 0, "a", number))


def _hold(key: str, offset: int) -> Hold:
    record = StoredRecord("t", 0, Offset(offset), f"{offset}", "t.happened/1", b"{}", key, "a", 0, 0, {}, 0, "", -1)
    return Hold(key, record, Cause.FAILED, 1, "ValueError", "", None)


TestTwoMembers = TwoMembers.TestCase
TestTwoMembers.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


# ---- the model sees what it is there to see ----


def _no_epoch_check(patch: pytest.MonkeyPatch) -> None:
    def is_valid(*_: object) -> bool:
        return True

    patch.setattr(commit, "is_valid", is_valid)


def _no_validation(patch: pytest.MonkeyPatch) -> None:
    whole = applying.Rows.apply

    def apply(self: applying.Rows, unit: Unit) -> Outcome:
        unit.reads, unit.scans = {}, []
        return whole(self, unit)

    patch.setattr(applying.Rows, "apply", apply)


def _nothing_put_back(patch: pytest.MonkeyPatch) -> None:
    whole = applying._unfinished

    def unfinished(progress: Progress, _: set[Offset] | None) -> bytes:
        return whole(progress, None)

    patch.setattr(applying, "_unfinished", unfinished)


def _room_is_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    def has_room(*_: object) -> bool:
        return True

    patch.setattr(applying.Holding, "has_room", has_room)


@pytest.mark.parametrize("plant", [_no_epoch_check, _no_validation, _nothing_put_back, _room_is_not_looked_at])
def test_a_planted_bug_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    unshrunk = settings(TestTwoMembers.settings, max_examples=200, phases=[Phase.generate], database=None, print_blob=False)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(TwoMembers, settings=unshrunk)
