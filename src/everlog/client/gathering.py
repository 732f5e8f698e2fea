"""Gathering: what single events are published within one turn of the event loop goes to the log as one append.

Alone, an event costs a proof, an append, a timer and a hand-over to the writer; among others, a share of one. Nothing waits for more to come:
the turn that is under way ends, and then everything leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from everlog.client.published import Published
from everlog.client.publisher import Publisher, Sending
from everlog.contracts.envelope import Origin, address
from everlog.contracts.event import AnyEvent
from everlog.errors import EverlogError, PublishUnknown


class _Call(NamedTuple):
    event: AnyEvent
    done: asyncio.Future[Published]


class _Round:
    """Calls that leave together."""

    __slots__ = ("calls", "sending", "timeout_s")

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.calls: list[_Call] = []
        self.sending: Sending | None = None


class Gathering:
    """The single events of one client that wait for the end of the turn.

    Args:
        publisher: Sends them.
        origin: Returns what the records of a call have in common, at the time of the call.
    """

    def __init__(self, publisher: Publisher, origin: Callable[[], Origin]) -> None:
        self._publisher = publisher
        self._origin = origin
        self._round: _Round | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, event: AnyEvent, timeout_s: float) -> asyncio.Future[Published]:
        """Publish an event with what else comes in this turn; what waits already keeps its place before it."""
        round_ = self._round
        if round_ is not None and (timeout_s != round_.timeout_s or len(round_.calls) >= self._publisher.most_at_once):
            self.flush()
            round_ = None
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Published] = loop.create_future()
        if round_ is None:
            round_ = self._round = _Round(timeout_s)
            task = loop.create_task(self._send(round_))  # its first step is taken at the end of this turn
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, round_))
        round_.calls.append(_Call(event, done))
        return done

    def flush(self) -> None:
        """Send what waits, before anything that is published behind it."""
        round_, self._round = self._round, None
        if round_ is None:
            return
        calls = round_.calls
        try:
            addressed = address([call.event for call in calls], self._origin())
        except EverlogError:  # one of them is at fault, and the others are not
            calls = round_.calls = [call for call in calls if self._is_right(call)]
            if not calls:
                return
            addressed = address([call.event for call in calls], self._origin())
        try:
            round_.sending = self._publisher.begin(addressed)
        except EverlogError as error:  # the log was closed
            for call in calls:
                if not call.done.done():
                    call.done.set_exception(error)

    def _is_right(self, call: _Call) -> bool:
        try:
            address([call.event], self._origin())
        except EverlogError as error:
            if not call.done.done():
                call.done.set_exception(error)
            return False
        return True

    async def _send(self, round_: _Round) -> None:
        if round_ is self._round:
            self.flush()
        sending = round_.sending
        if sending is None:
            return
        error: EverlogError | None = None
        try:
            await sending.finish(round_.timeout_s)
        except EverlogError as fault:
            error = fault
        for at, call in enumerate(round_.calls):
            if call.done.done():  # nobody waits any more
                continue
            reason = _error_of(sending, at, error)
            if reason is None:
                call.done.set_result(sending.published(at))
            else:
                call.done.set_exception(reason)

    def _ended(self, round_: _Round, task: asyncio.Task[None]) -> None:
        """Let nobody wait for ever for a task that was cancelled, perhaps before it began."""
        self._tasks.discard(task)
        if round_ is self._round:
            self._round = None
        for call in round_.calls:
            call.done.cancel()  # of those that are told, nothing changes


def _error_of(sending: Sending, at: int, error: EverlogError | None) -> EverlogError | None:
    """Return what is told of one event: as `Sending.error_of`, with a retry of its own."""
    reason = sending.error_of(at, error)
    return PublishUnknown(str(reason), partial(_retry, sending, at)) if isinstance(reason, PublishUnknown) else reason


async def _retry(sending: Sending, at: int, timeout_s: float = 30.0) -> Published:
    """Send again what left together with one event, under the same numbers, and return what became of that one."""
    error: EverlogError | None = None
    try:
        await sending.again(at, timeout_s)
    except EverlogError as fault:
        error = fault
    reason = _error_of(sending, at, error)
    if reason is not None:
        raise reason from error
    return sending.published(at)
