"""A folder in which apps are deployed: their modules, `everlog` commands, and processes that run them, as on a machine of their user."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.processes.yard import Process
from typer.testing import CliRunner

from everlog.cli.root import app

PATIENCE_S = 40.0
"""Within so long everything happens that is waited for, on a busy machine too."""
_LOOK_EVERY_S = 0.1

Numbers = Mapping[str, list[int]]
"""Key → numbers, in order."""


class Premises:
    """The folder, and what runs in it.

    Args:
        folder: The current one of all processes. The search for `.everlog/` ends there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.published: dict[str, list[int]] = {}
        self._processes: list[Process] = []
        self._path = list(sys.path)

    async def __aenter__(self) -> Premises:
        return self

    async def __aexit__(self, *error: object) -> None:
        for process in self._processes:
            if process.child.returncode is None:
                await process.end()
        sys.path[:] = self._path
        for name, module in list(sys.modules.items()):  # what a command has imported from here
            if str(getattr(module, "__file__", None) or "").startswith(str(self.folder)):
                del sys.modules[name]

    # ---- commands ----

    async def cli(self, *arguments: str, stdin: str = "") -> str:
        """Run a command, and return what it says. In this process: a new one for each would keep the others from the processor."""
        result = await asyncio.to_thread(CliRunner().invoke, app, arguments, input=stdin, prog_name="everlog")
        assert result.exit_code == 0, f"everlog {' '.join(arguments)} ended with {result.exit_code}: {result.output}"
        return result.stdout

    async def publish(self, module: str, type_name: str, *events: tuple[str, int], **fields: Any) -> None:
        """Publish an event for each key and number."""
        lines = [json.dumps({"key": key, "n": n, **fields}) for key, n in events]
        await self.cli("publish", module, type_name, stdin="\n".join(lines))
        for key, n in events:
            self.published.setdefault(key, []).append(n)

    async def status(self) -> dict[str, dict[str, Any]]:
        """Return what `everlog status` says of each subscription."""
        return {one["name"]: one for one in (await self._ask("status"))["subscriptions"]}

    async def parked(self, name: str) -> dict[str, dict[str, Any]]:
        """Return what `everlog parked list` says of each key."""
        return {one["key"]: one for one in await self._ask("parked", "list", name)}

    async def events(self, topic: str, type_name: str) -> list[dict[str, Any]]:
        """Return the data of all events of a type, in the log's order."""
        (count,) = [one["events"] for one in await self._ask("topics") if one["name"] == topic]
        if not count:
            return []
        lines = (await self.cli("tail", "--topic", topic, "--from", "beginning", "--limit", str(count), "--json")).splitlines()
        return [one["data"] for one in map(json.loads, lines) if one["type"] == type_name]

    async def _ask(self, *arguments: str) -> Any:
        return json.loads(await self.cli(*arguments, "--json"))

    # ---- processes ----

    async def run(self, *arguments: str, until: str = " is running") -> Process:
        """Start `everlog run` in a process of its own, and wait until it says that it is running."""
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "everlog", "run", *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=self.folder,
        )  # fmt: skip
        process = Process(child)
        self._processes.append(process)
        await said(process, until)
        return process


async def said(process: Process, text: str, *, times: int = 1) -> None:
    """Wait until a process has said so many lines with `text` in them."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while sum(text in line for line in process.lines) < times:
                assert await process.said(len(process.lines) + 1), f"it has ended before {text!r}:\n{text_of(process)}"
    except TimeoutError:
        raise AssertionError(f"{text!r} did not come {times} times:\n{text_of(process)}") from None


def text_of(process: Process) -> str:
    return "\n".join(process.lines)


async def until(condition: Callable[[], Awaitable[bool]], *processes: Process) -> None:
    """Ask again and again until it is so."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + PATIENCE_S
    while not await condition():
        assert loop.time() < end_s, "it never comes to that:\n" + "\n---\n".join(map(text_of, processes))
        await asyncio.sleep(_LOOK_EVERY_S)


async def end(process: Process, number: signal.Signals) -> None:
    """End a process by a signal, which is in order for a SIGTERM."""
    async with asyncio.timeout(PATIENCE_S):
        code = await process.end(number)
    assert code == (-signal.SIGKILL if number is signal.SIGKILL else 0), text_of(process)


def by_key(events: Iterable[tuple[str, int]]) -> Numbers:
    found: dict[str, list[int]] = {}
    for key, n in events:
        found.setdefault(key, []).append(n)
    return found
