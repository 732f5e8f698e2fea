"""Calling a handler in a lane or for a batch: under its time limit, in its thread where it is a plain function, and what it published looked after."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from everlog.errors import HandlerExited, PoisonAt
from everlog.subscriptions.call import BatchCall, Call
from everlog.subscriptions.declaration import Branch, SubscriptionDeclaration
from everlog.subscriptions.handler import Handler
from everlog.subscriptions.progress import SlotWork
from everlog.subscriptions.surroundings import Surroundings
from everlog.subscriptions.threads import Threads
from everlog.subscriptions.tx import PlainTx, Tx, TxContext
from everlog.subscriptions.worker import Worker


class Calls:
    """Calls the handlers of one subscription.

    Args:
        declaration: Whose.
        around: What the process's engines share.
    """

    def __init__(self, declaration: SubscriptionDeclaration, around: Surroundings) -> None:
        self._delivery = declaration.delivery
        self._outlets = around.outlets
        self.context: TxContext[Any] = TxContext(around.overlay, declaration.name, around.resources, around.committer.enter)
        """What every `Tx` of the subscription is made from."""
        has_plain = any(branch.handler.is_plain for branch in declaration.branches.values())
        self._threads = Threads(declaration.delivery.concurrency) if has_plain else None

    async def invoke(
        self, me: Worker, branch: Branch, events: Sequence[object], call: Call | BatchCall, work: SlotWork
    ) -> tuple[Tx[Any] | None, object]:
        """Call a handler, under its time limit. A batch handler is given all events, another one the only one.

        Raises:
            HandlerTimeout, HandlerCancelled: It was cancelled, by its limit or by what it awaited.
            HandlerExited: It called `sys.exit`.
            Exception: What it raised; what a `PoisonAt` follows from, where it is about a single event.
        """
        handler = branch.handler
        tx: Tx[Any] | None = None
        event = events[0] if handler.batching is None else list(events)
        me.call, me.work, me.watched = call, work, object()
        try:
            if handler.takes_tx:
                tx = PlainTx(call, self.context) if handler.is_plain else Tx(call, self.context)
            arguments = (event,) if tx is None else (event, tx)
            if handler.is_plain:
                result = await self._in_thread(me, handler, arguments, tx)
            else:
                result = await handler.function(*arguments)
            if result is not None or (tx is not None and tx.outgoing):
                await self.open_outlets(tx, result)
            self.check_limit(me, branch)
        except asyncio.CancelledError:
            _abandon(tx)
            failure = self.cancelled(me, branch)
            if failure is None:
                raise
            raise failure from None
        except SystemExit as error:
            _abandon(tx)
            self.check_limit(me, branch)
            raise HandlerExited(handler.name, error.code) from error
        except PoisonAt as error:
            _abandon(tx)
            self.check_limit(me, branch)
            if len(events) == 1 and isinstance(error.__cause__, Exception):  # alone, there is nothing more to say than why
                raise error.__cause__ from None
            raise
        except BaseException:
            _abandon(tx)
            self.check_limit(me, branch)
            raise
        else:
            return tx, result
        finally:
            me.watched = me.call = me.work = None
            if tx is not None:
                tx.close()

    async def _in_thread(self, me: Worker, handler: Handler, arguments: tuple[Any, ...], tx: Tx[Any] | None) -> object:
        """Run a plain function. One that is past its limit is waited for all the same, since nobody can stop a thread; unless the app ends."""
        assert self._threads is not None
        done = self._threads.call(handler.function, *arguments)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            if tx is not None:
                tx.close()
            done.add_done_callback(_look_at)
            if me.is_timed_out:
                await asyncio.wait([done])
            raise

    async def open_outlets(self, tx: Tx[Any] | None, result: object) -> None:
        """Make the topics that a handler publishes to for the first time; a missing one fails the handler."""
        missing = self._outlets.missing(tx, result)
        if missing:
            await self._outlets.open(missing)

    def cancelled(self, me: Worker, branch: Branch) -> Exception | None:
        """Return what a cancellation that came out of a handler means; ``None`` where the worker itself is to end."""
        return me.cancelled(branch.handler.name, self._delivery.time_limit_s)

    def check_limit(self, me: Worker, branch: Branch) -> None:
        """Refuse what a handler did that swallowed its cancellation, or answered it with an error of its own.

        Raises:
            HandlerTimeout: It did.
            CancelledError: It did, and the worker itself is to end.
        """
        if me.is_cancelled:
            failure = self.cancelled(me, branch)
            raise failure if failure is not None else asyncio.CancelledError

    def close(self) -> None:
        """Let go of idle threads."""
        if self._threads is not None:
            self._threads.close()


def _look_at(done: asyncio.Future[Any]) -> None:
    """Look at what a function raised that nobody waits for, so that nobody is warned of it."""
    if not done.cancelled():
        done.exception()


def _abandon(tx: Tx[Any] | None) -> None:
    if tx is not None:
        tx.abandon()
