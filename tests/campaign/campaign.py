"""A campaign: producers, workers of two services, a follower and a janitor on one log, while a director kills, stops and restarts them.

At the end the faults stop, everything settles, and the history of all processes is judged.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
from tests.campaign import services
from tests.campaign.journal import Happened, read_into
from tests.campaign.part import GRACE_S, Part, Role, name_of
from tests.campaign.points import points_of
from tests.campaign.services import APPS, LEDGERS, SHARED_EVERY, TOPICS, Row
from tests.processes.yard import ROOT, Process

import everlog
from everlog.clock import SystemClock
from everlog.conformance.history import Effect, History
from everlog.conformance.judge import Fault, judge
from everlog.log import Log
from everlog.logs.sqlite import open_log
from everlog.position import BEGINNING, Offset, TopicPartition
from everlog.store import Store
from everlog.stores.sqlite import open_store

PRODUCERS: Final = 4
WORKERS: Final = 2
"""Of each service."""
READY_S: Final = 30.0
SETTLE_S: Final = 60.0
SETTLE_WITH_A_BUG_S: Final = 8.0
_ROWS = msgspec.json.Decoder(Row)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a campaign does.

    Attributes:
        seconds: For how long faults are injected.
        seed: Of all dice. The same seed injects the same faults at the same times, as far as the machine keeps pace.
        rate: Events that all producers together publish in a second, at most.
        pause_s: Between two faults, about.
        faults: Kind → weight; ``None`` for all.
        keys: So many are used in ten seconds.
        points_once: Kill at each named point once, do nothing else, and end when that is done; fail after `seconds`.
        bug: Seeded into all processes.
        lease_s: Of the workers.
    """

    seconds: float
    seed: int
    rate: float = 1_200.0
    pause_s: float = 0.25
    faults: Mapping[str, int] | None = None
    bug: str | None = None
    lease_s: float = 0.5
    kept_behind: int = 100
    keys: int = 100
    points_once: bool = False


@dataclass(slots=True)
class Sample:
    """What the processes that are never killed looked like at one moment."""

    at_s: float
    memory_kib: Mapping[str, int]
    files: Mapping[str, int]
    wal_bytes: int


@dataclass(slots=True)
class Result:
    """What came of a campaign."""

    plan: Plan
    injected: Counter[str] = field(default_factory=Counter[str])
    survived: Counter[str] = field(default_factory=Counter[str])
    faults: Sequence[Fault] = ()
    published: int = 0
    emitted: int = 0
    unanswered: int = 0
    ran_s: float = 0.0
    settled_s: float = 0.0
    samples: list[Sample] = field(default_factory=list[Sample])
    latencies: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """When each call of a producer was answered, and how long it took, in seconds."""


class NeverSettles(AssertionError):
    """Faults are over, and something is still not handled: that is lost too."""


class Campaign:
    """One run. Makes its files in `folder`, which is empty."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder = folder
        self._plan = plan
        self._dice = random.Random(plan.seed)
        self._numbers = itertools.count()
        self._live: dict[Role, list[Process]] = {role: [] for role in ("producer", "billing", "shipping", "follower", "janitor")}
        self._armed: dict[Process, str] = {}
        self._points: dict[Role, list[str]] = {}
        self._stopped: set[Process] = set()
        self._done: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._log: Log
        self._stores: dict[str, Store] = {}
        self.result = Result(plan)

    # ---- from beginning to end ----

    async def run(self) -> Result:
        """Do all of it; what broke is in the result."""
        for name in ("journals", "backups"):
            (self._folder / name).mkdir()
        self._log = await open_log(f"sqlite:{self._folder}/log.db", clock=SystemClock())
        try:
            for topic in (services.orders, services.returns, services.bills):
                await self._log.ensure_topic(topic.spec())
            for app in APPS:
                self._stores[app] = await open_store(f"sqlite:{self._folder}/{app}.db", clock=SystemClock())
            await self._inject()
            await self._settle()
            history = await self._history()
            self.result.faults = await asyncio.to_thread(judge, history)
        finally:
            await self._end_all()
            for store in self._stores.values():
                await store.aclose()
            await self._log.aclose()
        return self.result

    async def _inject(self) -> None:
        await asyncio.gather(
            *[self._start("producer") for _ in range(PRODUCERS)],
            *[self._start(role) for role in ("billing", "shipping") for _ in range(WORKERS)],
            self._start("follower"),
            self._start("janitor"),
        )
        if self._plan.points_once:
            await self._each_point()
            return
        kinds = (
            self._plan.faults if self._plan.faults is not None else dict.fromkeys(_FAULTS, 1) | {"kill": 3, "kill at a point": 6}
        )
        began_s = time.monotonic()
        sampling = asyncio.create_task(self._sample(began_s))
        try:
            while time.monotonic() - began_s < self._plan.seconds:
                await asyncio.sleep(self._dice.uniform(0.5, 1.5) * self._plan.pause_s)
                if kinds:
                    await self._inject_one(kinds)
                await self._replace_dead()
        finally:
            sampling.cancel()
        self.result.ran_s = time.monotonic() - began_s
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _inject_one(self, kinds: Mapping[str, int]) -> None:
        """Inject a fault by the dice; but first each kind once."""
        if len(self._done) < len(kinds):
            kind = self._dice.choice([kind for kind in kinds if kind not in self._done])
        else:
            (kind,) = self._dice.choices(list(kinds), list(kinds.values()))
        before = self.result.injected.total() + len(self._armed)
        await _FAULTS[kind](self)
        if self.result.injected.total() + len(self._armed) > before:  # there was somebody to do it to
            self._done.add(kind)

    async def _each_point(self) -> None:
        """Kill at each named point: one of each role at a time, each as soon as its predecessor has died."""

        async def of_role(role: Role) -> None:
            for point in points_of(role):
                # What only one process of an app does at a time, none of the others may be doing.
                alone = "relay" in point
                for _ in range(len(self._live[role]) if alone else 1):
                    await self._live[role].pop().end(signal.SIGTERM)
                process = await self._start(role, (point, 1))
                try:
                    async with asyncio.timeout(READY_S):
                        code = await process.child.wait()
                except TimeoutError:
                    raise AssertionError(f"a {role} never comes by {point!r}:\n{self.errors}") from None
                if code != -signal.SIGKILL:
                    raise AssertionError(f"{role} was to kill itself at {point!r}, and ended with {code}:\n{self.errors}")
                self._live[role].remove(process)
                self._armed.pop(process)
                for _ in range(WORKERS if alone else 1):
                    await self._start(role)
                self.result.injected[f"kill at {point}"] += 1
                self.result.survived[f"kill at {point}"] += 1

        roles: Sequence[Role] = ("producer", "billing", "shipping", "janitor")
        async with asyncio.timeout(self._plan.seconds):
            await asyncio.gather(*[of_role(role) for role in roles])

    # ---- processes ----

    async def _start(self, role: Role, kill_at: tuple[str, int] | None = None) -> Process:
        number = next(self._numbers)
        plan = self._plan
        part = Part(
            role, str(self._folder), f"{role}-{number}", number, seed=plan.seed * 1_000 + number, rate=plan.rate / PRODUCERS,
            lease_s=plan.lease_s, kill_at=kill_at, kept_behind=plan.kept_behind, keys=plan.keys, bug=plan.bug,
        )  # fmt: skip
        source = str(Path(everlog.__file__).parents[1])
        with (self._folder / "stderr.txt").open("ab") as errors:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.campaign.part", msgspec.json.encode(part).decode(),
                stdout=asyncio.subprocess.PIPE, stderr=errors, cwd=ROOT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([source, str(ROOT)])},
            )  # fmt: skip
        process = Process(child)
        self._live[role].append(process)
        if kill_at is not None:
            self._armed[process] = kill_at[0]
            return process  # it may die of it before it is ready
        async with asyncio.timeout(READY_S):
            is_ready = await process.said(1)
        if not is_ready and plan.bug is None:
            raise AssertionError(f"{part.name} ended before it was ready:\n{self.errors}")
        return process

    @property
    def errors(self) -> str:
        """What the processes said last."""
        return (self._folder / "stderr.txt").read_text()[-4_000:]

    async def _replace_dead(self) -> None:
        """Start what has killed itself, or died of what was done to it, again."""
        for role, processes in self._live.items():
            for process in [process for process in processes if process.child.returncode is not None]:
                processes.remove(process)
                self._stopped.discard(process)
                point = self._armed.pop(process, None)
                if point is None and self._plan.bug is None:
                    raise AssertionError(
                        f"a {role} ended with {process.child.returncode}, and nobody had killed it:\n{self.errors}"
                    )
                await self._start(role)
                if point is not None:
                    self.result.injected[f"kill at {point}"] += 1
                    self.result.survived[f"kill at {point}"] += 1

    async def _kill(self, process: Process) -> None:
        self._armed.pop(process, None)
        self._stopped.discard(process)
        await process.end()

    def _mortal(self, role: Role) -> Process | None:
        """Return a process that may be hurt: not the first of its role, whose memory and files are watched over the whole run."""
        found = [process for process in self._live[role][1:] if process not in self._stopped and process not in self._armed]
        return self._dice.choice(found) if found else None

    # ---- faults ----

    async def _kill_one(self) -> None:
        role: Role = self._dice.choice(("producer", "billing", "shipping"))
        process = self._mortal(role)
        if process is None:
            return
        self.result.injected[f"kill -9 of a {_WHAT[role]}"] += 1
        self._live[role].remove(process)
        await self._kill(process)
        await self._start(role)
        self.result.survived[f"kill -9 of a {_WHAT[role]}"] += 1

    async def _kill_at_point(self) -> None:
        """Replace a process by one that will kill itself. Each point has its turn."""
        role: Role = self._dice.choice(("producer", "billing", "billing", "shipping", "janitor", "janitor"))
        process = self._live[role][0] if role == "janitor" and self._live[role] else self._mortal(role)
        if process is None or process in self._armed:
            return
        if not self._points.get(role):
            self._points[role] = list(points_of(role))
            self._dice.shuffle(self._points[role])
        point = self._points[role].pop()
        often = 1 if role == "janitor" or point.startswith("takeover") else self._dice.choice((1, 2, 5, 20))
        self._live[role].remove(process)
        if role == "janitor":
            await process.end(signal.SIGTERM)
        else:
            await self._kill(process)
        await self._start(role, (point, often))

    async def _stop_one(self) -> None:
        """Stop a process for longer than its lease, as a suspended virtual machine would be; it goes on as if nothing had been."""
        role: Role = self._dice.choice(("billing", "shipping", "billing", "shipping", "producer"))
        process = self._mortal(role)
        if process is None:
            return
        kind = f"SIGSTOP of a {_WHAT[role]} beyond its lease"
        self.result.injected[kind] += 1
        self._stopped.add(process)
        process.send(signal.SIGSTOP)
        seconds = self._plan.lease_s * self._dice.uniform(1.2, 3.0)

        async def go_on() -> None:
            await asyncio.sleep(seconds)
            process.send(signal.SIGCONT)
            self._stopped.discard(process)
            if process.child.returncode is None:
                self.result.survived[kind] += 1

        task = asyncio.create_task(go_on())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self) -> None:
        role: Role = self._dice.choice(("billing", "shipping"))
        if len(self._live[role]) <= WORKERS:
            self.result.injected["a worker joins"] += 1
            await self._start(role)
            self.result.survived["a worker joins"] += 1

    async def _leave(self) -> None:
        role: Role = self._dice.choice(("billing", "shipping"))
        process = self._mortal(role)
        if process is None or len(self._live[role]) <= WORKERS:
            return
        self.result.injected["a worker leaves"] += 1
        self._live[role].remove(process)
        await self._leave_in_order(process)
        self.result.survived["a worker leaves"] += 1

    async def _leave_in_order(self, process: Process) -> None:
        async with asyncio.timeout(GRACE_S + READY_S):
            code = await process.end(signal.SIGTERM)
        if code and self._plan.bug is None:
            raise AssertionError(f"a worker that was asked to stop ended with {code}:\n{self.errors}")

    async def _roll(self) -> None:
        """Restart the workers of a service one after the other, as a deploy does."""
        role: Role = self._dice.choice(("billing", "shipping"))
        self.result.injected["rolling restart"] += 1
        for process in list(self._live[role][1:]):
            if process in self._stopped or process in self._armed or process.child.returncode is not None:
                continue
            self._live[role].remove(process)
            await self._leave_in_order(process)
            await self._start(role)
        self.result.survived["rolling restart"] += 1

    # ---- the end ----

    async def _settle(self) -> None:
        """Stop the faults and the producers, and wait until everything is handled."""
        for process in self._stopped:
            process.send(signal.SIGCONT)
        for process in list(self._armed):  # it has not come by its point
            for processes in self._live.values():
                if process in processes:
                    processes.remove(process)
            await self._kill(process)
        await self._end_in_order("producer")
        await self._end_in_order("janitor")
        began_s = time.monotonic()
        for app in APPS:
            while not await self._is_settled(app):
                await self._replace_dead()
                if time.monotonic() - began_s > (SETTLE_S if self._plan.bug is None else SETTLE_WITH_A_BUG_S):
                    if self._plan.bug is None:
                        raise NeverSettles(f"{app}: {await self._stores[app].status()}\n{self.errors}")
                    break  # the judge says what is missing
                await self._stores[app].wait(0.1)
        self.result.settled_s = time.monotonic() - began_s
        await self._end_in_order("follower")
        for role in ("billing", "shipping"):
            if self._plan.bug is None:
                await self._end_in_order(role)

    async def _end_in_order(self, role: Role) -> None:
        for process in self._live[role]:
            await process.end(signal.SIGTERM)
        self._live[role].clear()

    async def _is_settled(self, app: str) -> bool:
        status = await self._stores[app].status()
        heads = await self._heads(app)
        progress = {one.where: one for subscription in status.subscriptions for one in subscription.progress}
        return (
            not status.outbox
            and not any(subscription.held_records for subscription in status.subscriptions)
            and all(head < 0 or (where in progress and progress[where].through >= head) for where, head in heads.items())
            and not any(one.unfinished for one in progress.values())
        )

    async def _heads(self, app: str) -> Mapping[TopicPartition, Offset]:
        return {where: offset for name in TOPICS[app] for where, offset in (await self._log.head(name)).offsets.items()}

    async def _end_all(self) -> None:
        for processes in self._live.values():
            for process in processes:
                if process.child.returncode is None:
                    await process.end()

    # ---- what was seen ----

    async def _history(self) -> History:
        history = History()
        for path in sorted((self._folder / "journals").iterdir()):
            for line in read_into(history, path):
                if isinstance(line, Happened):
                    self.result.injected[line.kind] += 1
                    self.result.survived[line.kind] += 1
                else:
                    self.result.latencies.append((line.at_s, line.took_s))
            if path.name.startswith("follower"):
                history.reads_all(path.stem)
        self.result.published = len(history.sent)
        self.result.unanswered = len(history.sent) - len(history.answers)
        names = sorted({name for topics in TOPICS.values() for name in topics})
        for name in names:
            for where, offset in (await self._log.first(name)).offsets.items():
                history.gone(where, offset)
            await self._read_all(history, name)
        for app in APPS:
            await self._effects(history, app)
        for event in [seen for row in history.effects["billing"].values() for seen in row]:
            history.emits("billing", event.event, -int(event.event))
        self.result.emitted = len(history.emitted)
        return history

    async def _read_all(self, history: History, topic: str) -> None:
        first, head = (await self._log.first(topic)).offsets, (await self._log.head(topic)).offsets
        for where, last in head.items():
            reader = self._log.reader({where: first.get(where, BEGINNING)})
            through = first.get(where, BEGINNING)
            while through < last:
                batch = await reader.next()
                for chunk in batch.chunks:
                    for index in range(chunk.start, chunk.length):
                        record = chunk.record(index)
                        history.read("the end", where, record.offset, name_of(record.type, record.data), record.key)
                through = batch.through[where]
            reader.close()

    async def _effects(self, history: History, app: str) -> None:
        store = self._stores[app]
        history.subscribes(app, TOPICS[app])
        for row, effects in await self._rows(store, LEDGERS[app]):
            history.applied(app, row, effects)
        for key in await store.parked():
            raise AssertionError(f"{app} has parked key {key.key!r}: nothing here is parked")
        if app == "billing":
            history.subscribes("billing's shared rows", TOPICS[app], lambda name: int(name) % SHARED_EVERY == 0)
            for row, effects in await self._rows(store, "shared/1"):
                history.applied("billing's shared rows", row, effects)

    async def _rows(self, store: Store, state: str) -> Sequence[tuple[str, Sequence[Effect]]]:
        rows: list[tuple[str, Sequence[Effect]]] = []
        for key, row in await store.scan(state, "[]"):
            if row.value is not None:
                effects = [Effect(name, epoch) for name, epoch in _ROWS.decode(row.value)]
                rows.append((str(msgspec.json.decode(key)[0]), effects))
        return rows

    async def _sample(self, began_s: float) -> None:
        """Look at the processes that are never hurt, now and then."""
        while True:
            await asyncio.sleep(max(0.5, self._plan.seconds / 200))
            memory: dict[str, int] = {}
            files: dict[str, int] = {}
            for role, processes in self._live.items():
                if role != "janitor" and processes and processes[0].child.returncode is None:
                    memory[role] = _memory_kib(processes[0].child.pid)
                    files[role] = _open_files(processes[0].child.pid)
            self.result.samples.append(
                Sample(
                    time.monotonic() - began_s, memory, files,
                    max([path.stat().st_size for path in self._folder.glob("*-wal")], default=0),
                )
            )  # fmt: skip


def _memory_kib(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS")), 0)


def _open_files(pid: int) -> int:
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return 0


_WHAT: Final[Mapping[Role, str]] = {"producer": "producer", "billing": "worker", "shipping": "worker"}
_FAULTS: Final[Mapping[str, Callable[[Campaign], Awaitable[None]]]] = {
    "kill": Campaign._kill_one,
    "kill at a point": Campaign._kill_at_point,
    "stop": Campaign._stop_one,
    "join": Campaign._join,
    "leave": Campaign._leave,
    "roll": Campaign._roll,
}
