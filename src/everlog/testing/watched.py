"""An app's declaration with an eye on each handler: what it was called for and what it did is noted, and faults come between."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast

from msgspec.structs import replace

from everlog.subscriptions.declaration import AppDeclaration, Branch, SubscriptionDeclaration, ThreadBranch
from everlog.subscriptions.handler import Handler
from everlog.subscriptions.tx import PlainTx, Tx, twin
from everlog.testing.calls import Calls
from everlog.testing.life import Life

Lifespan = Callable[[], AbstractAsyncContextManager[Any]]


def watched(declaration: AppDeclaration, life: Life, calls: Calls, lifespan: Lifespan | None) -> AppDeclaration:
    """Return the declaration with handlers that are watched.

    Args:
        declaration: Of the app.
        life: Which start of it.
        calls: Where its calls are noted.
        lifespan: What its handlers are given comes from here.
    """
    subscriptions = [_subscription(one, life, calls) for one in declaration.subscriptions]
    return replace(declaration, subscriptions=subscriptions, lifespan=lifespan)


def given(resources: object) -> Lifespan:
    """Return a lifespan that yields something of the test's."""

    @asynccontextmanager
    async def lifespan() -> AsyncGenerator[Any]:
        yield resources

    return lifespan


def _subscription(declaration: SubscriptionDeclaration, life: Life, calls: Calls) -> SubscriptionDeclaration:
    known: dict[int, Handler] = {}  # a batch is of one handler, which is known by its identity
    branches: dict[str, Branch] = {}
    for name, branch in declaration.branches.items():
        handler = known.get(id(branch.handler))
        if handler is None:
            handler = known[id(branch.handler)] = _handler(branch.handler, declaration, life, calls)
        # A plain one is awaited as well, so that the world knows of its call before its thread begins.
        branches[name] = (
            Branch(branch.contract, handler) if isinstance(branch, ThreadBranch) else replace(branch, handler=handler)
        )
    return replace(declaration, branches=branches)


def _handler(handler: Handler, declaration: SubscriptionDeclaration, life: Life, calls: Calls) -> Handler:
    place = declaration.app if declaration.name == declaration.app else f"{declaration.app}/{declaration.name}"

    async def call(event: Any, tx: Tx[Any]) -> Any:
        __tracebackhide__ = True  # what failed is the user's handler
        arguments = (event, tx) if handler.takes_tx else (event,)
        if handler.is_plain:
            return await _in_thread(handler.function, arguments, tx)
        return await cast("Awaitable[Any]", handler.function(*arguments))

    @functools.wraps(handler.function)
    async def run(event: Any, tx: Tx[Any]) -> Any:
        __tracebackhide__ = True
        told = calls.begin(declaration.app, declaration.name, place, handler.name, tx)
        with life.motion.calling():
            try:
                await life.reach("before_handler", in_handler=True)
                if life.plan.takes_repeat():
                    told.is_repeated = True
                    await _thrown_away(call, event, tx)
                result = await call(event, tx)
                told.returned(result, tx)
                await life.reach("after_handler", in_handler=True)
            except asyncio.CancelledError:
                told.ended("was killed" if life.is_dead else "was cancelled")
                raise
            except BaseException as error:
                if (
                    life.fell.done()
                ):  # another member has its slots: it may have read what that one wrote, and nothing of it is stored
                    told.ended(f"raised {type(error).__name__} after it had lost its slots")
                else:
                    told.raised(error)
                raise
            return result

    return replace(handler, function=run, takes_tx=True, is_plain=False)


async def _thrown_away(call: Callable[[Any, Tx[Any]], Awaitable[Any]], event: Any, tx: Tx[Any]) -> None:
    """Call a handler, and let nothing of it stay, as when its process is killed before the commit."""
    other = twin(tx)
    try:
        await call(event, other)
    except Exception:  # the call that counts says what is wrong  # noqa: S110
        pass
    finally:
        other.abandon()
        other.close()


async def _in_thread(function: Callable[..., Any], arguments: tuple[Any, ...], tx: Tx[Any]) -> Any:
    """Run a plain function as the platform does: in a thread, with a `tx` that cannot read."""
    __tracebackhide__ = True
    plain = twin(tx, PlainTx)
    try:
        result = await asyncio.to_thread(function, arguments[0], *([plain] if len(arguments) == 2 else []))
    finally:
        plain.close()
    tx.writes.update(plain.writes)
    tx.outgoing.extend(plain.outgoing)
    return result
