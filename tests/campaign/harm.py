"""What is done to the processes of a campaign."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from tests.campaign.crew import Crew
from tests.campaign.part import Role
from tests.campaign.plan import WORKERS, Plan, Result
from tests.campaign.points import points_of

from everlog.position import BEGINNING
from everlog.store import Again, Store


class Harm:
    """Injects one fault at a time by the dice."""

    def __init__(
        self,
        crew: Crew,
        plan: Plan,
        result: Result,
        dice: random.Random,
        stores: Mapping[str, Store],
        server: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._server = server
        self._crew = crew
        self._plan = plan
        self._result = result
        self._dice = dice
        self._stores = stores
        self._kinds = _WEIGHTS if plan.faults is None else plan.faults
        self._points: dict[Role, list[str]] = {}
        self._done: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def inject(self) -> None:
        """Inject a fault by the dice; but first each kind once."""
        kinds = self._kinds
        if not kinds:
            return
        if len(self._done) < len(kinds):
            kind = self._dice.choice([kind for kind in kinds if kind not in self._done])
        else:
            (kind,) = self._dice.choices(list(kinds), list(kinds.values()))
        before = self._count()
        await _FAULTS[kind](self)
        if self._count() > before:  # there was somebody to do it to
            self._done.add(kind)

    def _count(self) -> int:
        return self._result.injected.total() + len(self._crew.armed)

    async def over(self) -> None:
        """Wait until nobody is stopped any more."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _kill_one(self) -> None:
        role: Role = self._dice.choice(("producer", "billing", "shipping"))
        process = self._crew.mortal(role)
        if process is None:
            return
        self._result.injected[f"kill -9 of a {_WHAT[role]}"] += 1
        self._crew.live[role].remove(process)
        await self._crew.kill(process)
        await self._crew.start(role)
        self._result.survived[f"kill -9 of a {_WHAT[role]}"] += 1

    async def _kill_at_point(self) -> None:
        """Replace a process by one that will kill itself. Each point has its turn."""
        role: Role = self._dice.choice(("producer", "billing", "billing", "shipping", "janitor", "janitor"))
        process = self._crew.live[role][0] if role == "janitor" and self._crew.live[role] else self._crew.mortal(role)
        if process is None or process in self._crew.armed:
            return
        if not self._points.get(role):
            self._points[role] = list(points_of(role))
            self._dice.shuffle(self._points[role])
        point = self._points[role].pop()
        often = 1 if role == "janitor" or point.startswith("takeover") else self._dice.choice((1, 2, 5, 20))
        self._crew.live[role].remove(process)
        if role == "janitor":
            await process.end(signal.SIGTERM)
        else:
            await self._crew.kill(process)
        await self._crew.start(role, (point, often))

    async def _stop_one(self) -> None:
        """Stop a process for longer than its lease, as a suspended virtual machine would be; it goes on as if nothing had been."""
        role: Role = self._dice.choice(("billing", "shipping", "billing", "shipping", "producer"))
        process = self._crew.stoppable(role)
        if process is None:
            return
        kind = f"SIGSTOP of a {_WHAT[role]} beyond its lease"
        self._result.injected[kind] += 1
        self._crew.stopped.add(process)
        process.send(signal.SIGSTOP)
        seconds = self._plan.lease_s * self._dice.uniform(1.2, 3.0)

        async def go_on() -> None:
            await asyncio.sleep(seconds)
            process.send(signal.SIGCONT)
            self._crew.stopped.discard(process)
            if process.child.returncode is None:
                self._result.survived[kind] += 1

        task = asyncio.create_task(go_on())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self) -> None:
        role: Role = self._dice.choice(("billing", "shipping"))
        if len(self._crew.live[role]) <= WORKERS:
            self._result.injected["a worker joins"] += 1
            await self._crew.start(role)
            self._result.survived["a worker joins"] += 1

    async def _leave(self) -> None:
        role: Role = self._dice.choice(("billing", "shipping"))
        process = self._crew.mortal(role)
        if process is None or len(self._crew.live[role]) <= WORKERS:
            return
        self._result.injected["a worker leaves"] += 1
        self._crew.live[role].remove(process)
        await self._crew.leave_in_order(process)
        self._result.survived["a worker leaves"] += 1

    async def _roll(self) -> None:
        """Restart the workers of a service one after the other, as a deploy does."""
        role: Role = self._dice.choice(("billing", "shipping"))
        self._result.injected["rolling restart"] += 1
        for process in list(self._crew.live[role][1:]):
            if process in self._crew.stopped or process in self._crew.armed or process.child.returncode is not None:
                continue
            self._crew.live[role].remove(process)
            await self._crew.leave_in_order(process)
            await self._crew.start(role)
        self._result.survived["rolling restart"] += 1

    async def _replay(self) -> None:
        """Have a service handle everything again, from the beginning and with empty state."""
        app = self._dice.choice(("billing", "shipping"))
        store = self._stores[app]
        after = {one.where: BEGINNING for stood in (await store.status()).subscriptions for one in stood.progress}
        if after:
            self._result.injected[REPLAY] += 1
            await store.start_again(Again(app, after, rebuilds=True))
            self._result.survived[REPLAY] += 1

    async def _kill_server(self) -> None:
        """Kill the server of log and stores, and start it again."""
        assert self._server is not None
        self._result.injected[SERVER] += 1
        await self._server()
        self._result.survived[SERVER] += 1


SERVER: Final = "kill -9 of the server"
REPLAY: Final = "replay from the beginning"
_WHAT: Final[Mapping[Role, str]] = {"producer": "producer", "billing": "worker", "shipping": "worker"}
_FAULTS: Final[Mapping[str, Callable[[Harm], Awaitable[None]]]] = {
    "kill": Harm._kill_one,
    "kill at a point": Harm._kill_at_point,
    "stop": Harm._stop_one,
    "join": Harm._join,
    "leave": Harm._leave,
    "roll": Harm._roll,
    "replay": Harm._replay,
    "kill the server": Harm._kill_server,
}
_WEIGHTS: Final[Mapping[str, int]] = {"kill": 3, "kill at a point": 6, "stop": 6, "join": 1, "leave": 1, "roll": 1}
"""How often each kind is injected, for one time of the rarest. No replay: the janitor deletes what was handled."""
