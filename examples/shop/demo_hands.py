"""What a person does to the services by hand while the demo runs, and what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from demo_processes import Processes
from demo_view import Picture, View


@dataclass(frozen=True)
class Stop:
    """A service that is down by hand."""

    how: str
    order: int
    """So many orders had been placed."""

    def __str__(self) -> str:
        return f"{self.how} by you at order {self.order:,}"


class Hands:
    """Carries out one key after the other. A service that an act works with is out of reach meanwhile.

    Attributes:
        down: The services that are killed or paused by hand.
        done: What was done and made good again, a line each.
    """

    def __init__(
        self, processes: Processes, picture: Picture, view: View, start: Callable[[str], None], end: Callable[[], None]
    ) -> None:
        self._processes = processes
        self._picture = picture
        self._view = view
        self._start = start
        self._end = end
        self._names = list(picture.services)
        self._reserved: set[str] = set()
        self._keys: asyncio.Queue[str] = asyncio.Queue()
        self._turn = asyncio.Lock()
        self.down: dict[str, Stop] = {}
        self.done: list[str] = []

    def press(self, key: str) -> None:
        """Take a key; it is carried out after those before it."""
        self._keys.put_nowait(key)

    async def work(self) -> None:
        """Carry out the keys, for ever."""
        while True:
            key = await self._keys.get()
            async with self._turn:
                await self._carry_out(key)

    async def _carry_out(self, key: str) -> None:
        name = self._picture.chosen
        if key == "q":
            self._end()
        elif key.isdecimal() and 1 <= int(key) <= len(self._names):
            self._picture.chosen = self._names[int(key) - 1]
            self._view.refresh()
        elif key in ("k", "p", "r"):
            if self._picture.services[name].state == "not yet":
                self._view.say(f"{name} comes later")
            elif name in self._reserved:
                self._view.say(f"not now: the act needs {name}")
            elif key == "r":
                await self._bring_back(name)
            else:
                await self._take_down(name, "killed" if key == "k" else "paused")

    async def _take_down(self, name: str, how: str) -> None:
        stop = self.down.get(name)
        if not self._processes.is_running(name) or (stop is not None and stop.how == how):
            self._view.say(f"{name} is down already: r brings it back")
            return
        self.down[name] = Stop(how, self._picture.counts["placed"])  # at once: no act may count on it from now on
        self._picture.services[name].by_hand = str(self.down[name])
        if how == "killed":
            await self._processes.kill(name)
        else:
            await self._processes.pause(name)
        self._view.say(f"{name} {self.down[name]}: what is meant for it waits in the log")

    async def _bring_back(self, name: str) -> None:
        if name in self.down:
            self._make_good(name, "you")
        elif self._processes.is_running(name):
            await self._processes.stop_one(name)
            self._start(name)
            self.done.append(f"{name} restarted by you at order {self._picture.counts['placed']:,}")
            self._view.say(self.done[-1])

    def _make_good(self, name: str, who: str) -> None:
        stop, service = self.down.pop(name), self._picture.services[name]
        service.by_hand = ""
        if stop.how == "paused":
            self._processes.resume(name)
            what = "resumed"
        else:
            self._start(name)
            what = "started again"
        self._view.say(f"{name} {what} by {who}: {service.backlog} waited for it")
        self.done.append(f"{name} {stop}, {what} by {who} at {self._picture.counts['placed']:,}: {service.backlog} waited")

    async def make_all_good(self) -> None:
        """Bring back whatever is down by hand, and say so."""
        async with self._turn:
            for name in list(self.down):
                self._make_good(name, "the demo")

    @contextmanager
    def off(self, names: Sequence[str]) -> Generator[None]:
        """Keep some services out of reach for the length of the block."""
        self._reserved.update(names)
        try:
            yield
        finally:
            self._reserved.difference_update(names)
