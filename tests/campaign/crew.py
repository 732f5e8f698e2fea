"""The processes of a campaign: starts them, replaces those that died, and ends them."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from tests.campaign.part import GRACE_S, Part, Role
from tests.campaign.plan import READY_S, Plan, Result
from tests.processes.yard import ROOT, Process

import everlog

PRODUCERS: Final = 4


class Crew:
    """All processes, by their roles. The first of each role is never killed: its memory and files are watched over the whole run."""

    def __init__(self, folder: Path, plan: Plan, result: Result, dice: random.Random) -> None:
        self._folder = folder
        self._plan = plan
        self._result = result
        self._dice = dice
        self._numbers = itertools.count()
        self.live: dict[Role, list[Process]] = {role: [] for role in ("producer", "billing", "shipping", "follower", "janitor")}
        self.armed: dict[Process, str] = {}
        """Who will kill itself, and where."""
        self.stopped: set[Process] = set()

    async def start(self, role: Role, kill_at: tuple[str, int] | None = None) -> Process:
        """Start one more of a role; where it shall kill itself at a point, do not wait until it is ready."""
        number = next(self._numbers)
        plan = self._plan
        part = Part(
            role, str(self._folder), f"{role}-{number}", number, seed=plan.seed * 1_000 + number, rate=plan.rate / PRODUCERS,
            lease_s=plan.lease_s, kill_at=kill_at, kept_behind=plan.kept_behind, keys=plan.keys, bug=plan.bug,
            log_url=plan.log_url or f"sqlite:{self._folder}/log.db", store_urls=plan.store_url or f"sqlite:{self._folder}/{{app}}.db",
        )  # fmt: skip
        source = str(Path(everlog.__file__).parents[1])
        with (self._folder / "stderr.txt").open("ab") as errors:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.campaign.part", msgspec.json.encode(part).decode(),
                stdout=asyncio.subprocess.PIPE, stderr=errors, cwd=ROOT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([source, str(ROOT)])},
            )  # fmt: skip
        process = Process(child)
        self.live[role].append(process)
        if kill_at is not None:
            self.armed[process] = kill_at[0]
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

    async def replace_dead(self) -> None:
        """Start what has killed itself, or died of what was done to it, again."""
        for role, processes in self.live.items():
            for process in [process for process in processes if process.child.returncode is not None]:
                processes.remove(process)
                self.stopped.discard(process)
                point = self.armed.pop(process, None)
                if point is None and self._plan.bug is None:
                    raise AssertionError(
                        f"a {role} ended with {process.child.returncode}, and nobody had killed it:\n{self.errors}"
                    )
                await self.start(role)
                if point is not None:
                    self._result.injected[f"kill at {point}"] += 1
                    self._result.survived[f"kill at {point}"] += 1

    async def kill(self, process: Process) -> None:
        """Kill -9, whatever else was to become of it."""
        self.armed.pop(process, None)
        self.stopped.discard(process)
        await process.end()

    def mortal(self, role: Role) -> Process | None:
        """Return a process that may be killed: not the first of its role."""
        return self._any(self.live[role][1:])

    def stoppable(self, role: Role) -> Process | None:
        """Return a process that may be stopped for a while: the first one too, which keeps the relay if nothing is done to it."""
        return self._any(self.live[role])

    def _any(self, among: Sequence[Process]) -> Process | None:
        found = [process for process in among if process not in self.stopped and process not in self.armed]
        return self._dice.choice(found) if found else None

    async def leave_in_order(self, process: Process) -> None:
        """Ask a worker to stop, and see that it does so without an error."""
        async with asyncio.timeout(GRACE_S + READY_S):
            code = await process.end(signal.SIGTERM)
        if code and self._plan.bug is None:
            raise AssertionError(f"a worker that was asked to stop ended with {code}:\n{self.errors}")

    async def calm(self) -> None:
        """Undo what was done to the living: who is stopped goes on, and who was to kill itself and has not come by its point is killed."""
        for process in self.stopped:
            process.send(signal.SIGCONT)
        for process in list(self.armed):
            for processes in self.live.values():
                if process in processes:
                    processes.remove(process)
            await self.kill(process)

    async def end_in_order(self, role: Role) -> None:
        """Ask all of a role to stop."""
        for process in self.live[role]:
            await process.end(signal.SIGTERM)
        self.live[role].clear()

    async def end_all(self) -> None:
        """Kill whoever still lives."""
        for processes in self.live.values():
            for process in processes:
                if process.child.returncode is None:
                    await process.end()
