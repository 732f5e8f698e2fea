"""The app as users write it: a declaration of handlers and state, without I/O, until it is run or connected."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Generic, Protocol, TypeVar, overload

from typing_extensions import TypeVar as DefaultTypeVar

from everlog.blocking import BlockingClient
from everlog.client import Client
from everlog.clock import SystemClock
from everlog.contracts.event import AnyEvent
from everlog.errors import DeclarationError
from everlog.observe import Meters
from everlog.observe.tracing import tracing
from everlog.settings import Settings
from everlog.subscriptions.declaration import AppDeclaration, Branch, SubscriptionDeclaration, ThreadBranch
from everlog.subscriptions.delivery import Delivery
from everlog.subscriptions.handler import Batching, make_handler
from everlog.subscriptions.reset import Reset
from everlog.subscriptions.state import State
from everlog.subscriptions.tx import Tx

R = DefaultTypeVar("R", default=None)
V = TypeVar("V")
Hook = TypeVar("Hook", bound=Reset)
E1 = TypeVar("E1", bound=AnyEvent)
E2 = TypeVar("E2", bound=AnyEvent)
E3 = TypeVar("E3", bound=AnyEvent)
E = TypeVar("E")
Emits = TypeVar("Emits", bound=AnyEvent | Sequence[AnyEvent] | None)

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class On(Protocol[E, R]):
    """Takes a function of an event, or of an event and a `Tx`, async or plain, and returns it unchanged."""

    @overload
    def __call__(self, function: Callable[[E], Coroutine[Any, Any, Emits]], /) -> Callable[[E], Coroutine[Any, Any, Emits]]: ...
    @overload
    def __call__(
        self, function: Callable[[E, Tx[R]], Coroutine[Any, Any, Emits]], /
    ) -> Callable[[E, Tx[R]], Coroutine[Any, Any, Emits]]: ...
    @overload
    def __call__(self, function: Callable[[E], Emits], /) -> Callable[[E], Emits]: ...
    @overload
    def __call__(self, function: Callable[[E, Tx[R]], Emits], /) -> Callable[[E, Tx[R]], Emits]: ...


class OnBatch(Protocol[E, R]):
    """Takes a function of a list of events, or of that and a `Tx`, async or plain, and returns it unchanged."""

    @overload
    def __call__(
        self, function: Callable[[list[E]], Coroutine[Any, Any, Emits]], /
    ) -> Callable[[list[E]], Coroutine[Any, Any, Emits]]: ...
    @overload
    def __call__(
        self, function: Callable[[list[E], Tx[R]], Coroutine[Any, Any, Emits]], /
    ) -> Callable[[list[E], Tx[R]], Coroutine[Any, Any, Emits]]: ...
    @overload
    def __call__(self, function: Callable[[list[E]], Emits], /) -> Callable[[list[E]], Emits]: ...
    @overload
    def __call__(self, function: Callable[[list[E], Tx[R]], Emits], /) -> Callable[[list[E], Tx[R]], Emits]: ...


class Subscription(Generic[R]):
    """A name with its own progress, failures and state, whose handlers share the order per key. Made by `App.subscription`."""

    def __init__(self, app: str, name: str, delivery: Delivery, renamed_from: str | None = None) -> None:
        if not _NAME.fullmatch(name):
            raise DeclarationError(
                f"expected a subscription name of letters, digits, dots, dashes and underscores, found {name!r}"
            )
        self.name = name
        self._app = app
        self._delivery = delivery
        self._renamed_from = renamed_from
        self._branches: dict[str, Branch] = {}
        self._states: dict[str, State[Any]] = {}
        self._reset: Reset | None = None

    @overload
    def on(self, type1: type[E1], /) -> On[E1, R]: ...
    @overload
    def on(self, type1: type[E1], type2: type[E2], /) -> On[E1 | E2, R]: ...
    @overload
    def on(self, type1: type[E1], type2: type[E2], type3: type[E3], /) -> On[E1 | E2 | E3, R]: ...
    @overload
    def on(self, *types: type[AnyEvent]) -> On[Any, R]: ...
    def on(self, *types: type[Any]) -> Any:
        """Return a decorator that makes a function the handler of these types. It returns the function unchanged.

        A plain function runs in a thread, and may write and publish through its `Tx`, but not read.

        Raises:
            DeclarationError: The function takes or returns something else, or a type has a handler already.
        """
        return self._on(types, None)

    @overload
    def on_batch(self, type1: type[E1], /, *, most: int = ..., wait_s: float = ...) -> OnBatch[E1, R]: ...
    @overload
    def on_batch(self, type1: type[E1], type2: type[E2], /, *, most: int = ..., wait_s: float = ...) -> OnBatch[E1 | E2, R]: ...
    @overload
    def on_batch(
        self, type1: type[E1], type2: type[E2], type3: type[E3], /, *, most: int = ..., wait_s: float = ...
    ) -> OnBatch[E1 | E2 | E3, R]: ...
    @overload
    def on_batch(self, *types: type[AnyEvent], most: int = ..., wait_s: float = ...) -> OnBatch[Any, R]: ...
    def on_batch(self, *types: type[Any], most: int = 1_000, wait_s: float = 0.0) -> Any:
        """Return a decorator that makes a function the handler of batches of these types: it is given a list of events.

        A batch is one unit: all that it changes is committed together. Its events are in the log's order, of any keys. One that fails is
        tried again in halves until the bad event is alone, whose key is then blocked; raise `everlog.errors.PoisonAt(index)` to say
        which it is. A subscription has batch handlers or others, not both.

        Args:
            types: What it handles.
            most: Most events of a batch.
            wait_s: How long to wait for more events after the first, in seconds.

        Raises:
            DeclarationError: The function takes or returns something else, or a type has a handler already.
        """
        return self._on(types, Batching(most, wait_s))

    def _on(self, types: Sequence[type[AnyEvent]], batching: Batching | None) -> Any:
        def declare(function: Callable[..., Any]) -> Callable[..., Any]:
            handler = make_handler(function, types, batching)
            for other in self._branches.values():
                if (other.handler.batching is None) != (batching is None):
                    raise DeclarationError(
                        f"subscription {self.name!r} has {other.handler.name}, which takes {'one event' if batching else 'batches'}: give "
                        f'{handler.name} a subscription of its own: @{self._app}.subscription("…").{"on_batch" if batching else "on"}(…)'
                    )
            for contract in handler.contracts:
                known = self._branches.get(contract.name)
                if known is not None:
                    raise DeclarationError(
                        f"{contract.name!r} is handled by {known.handler.name} in subscription {self.name!r} already: give {handler.name} a "
                        f'subscription of its own: @{self._app}.subscription("…").on({contract.cls.__name__})'
                    )
            kind = ThreadBranch if handler.is_plain else Branch
            for contract in handler.contracts:
                self._branches[contract.name] = kind(contract, handler)
            return function

        return declare

    def state(self, name: str, type: type[V]) -> State[V]:  # noqa: A002 the word that reads best where it is called
        """Declare a state that this subscription writes.

        Raises:
            DeclarationError: The name has no version or is taken, or values of the type cannot be read back from JSON.
        """
        if name in self._states:
            raise DeclarationError(
                f"state {name!r} is declared already in subscription {self.name!r}: use what that returned, or another name"
            )
        state = self._states[name] = State(name, type, subscription=self.name)
        return state

    def reset(self, function: Hook) -> Hook:
        """Have an async function of a `Tx` empty the tables that the handlers fill with `tx.sql`, when a replay begins. Return it unchanged.

        Raises:
            DeclarationError: There is one already, or it is not async.
        """
        if self._reset is not None:
            raise DeclarationError(f"subscription {self.name!r} has a reset hook already: empty all its tables in that one")
        if not inspect.iscoroutinefunction(function):
            raise DeclarationError("expected an async function of a Tx as reset hook: async def empty(tx: Tx) -> None")
        self._reset = function
        return function

    def declaration(self) -> SubscriptionDeclaration:
        """Return what it is, frozen."""
        return SubscriptionDeclaration(
            self._app, self.name, dict(self._branches), list(self._states), self._delivery, self._reset, self._renamed_from
        )

    @property
    def is_empty(self) -> bool:
        """It handles nothing and keeps nothing."""
        return not self._branches and not self._states


class App(Generic[R]):
    """A service: what it handles, what it keeps, and what its handlers are given. Importing it does nothing.

    Args:
        name: Its name in the log and the store, for ever; the source of what it publishes.
        lifespan: A function that returns an async context manager; what that yields is `tx.resources`.
        delivery: How its own subscription is delivered to.

    Raises:
        DeclarationError: The name is none.
    """

    @overload
    def __init__(self: App[None], name: str, *, lifespan: None = None, delivery: Delivery = ...) -> None: ...
    @overload
    def __init__(
        self, name: str, *, lifespan: Callable[[], AbstractAsyncContextManager[R]], delivery: Delivery = ...
    ) -> None: ...
    def __init__(
        self,
        name: str,
        *,
        lifespan: Callable[[], AbstractAsyncContextManager[R]] | None = None,
        delivery: Delivery = Delivery(),  # noqa: B008 frozen
    ) -> None:
        if not _NAME.fullmatch(name):
            raise DeclarationError(f"expected an app name of letters, digits, dots, dashes and underscores, found {name!r}")
        self.name = name
        self._lifespan = lifespan
        self._main: Subscription[R] = Subscription(name, name, delivery)
        self._others: dict[str, Subscription[R]] = {}
        self._stager = BlockingClient(self, None, closes_at_exit=True)

    def __repr__(self) -> str:
        return f"App({self.name!r})"

    @overload
    def on(self, type1: type[E1], /) -> On[E1, R]: ...
    @overload
    def on(self, type1: type[E1], type2: type[E2], /) -> On[E1 | E2, R]: ...
    @overload
    def on(self, type1: type[E1], type2: type[E2], type3: type[E3], /) -> On[E1 | E2 | E3, R]: ...
    @overload
    def on(self, *types: type[AnyEvent]) -> On[Any, R]: ...
    def on(self, *types: type[Any]) -> Any:
        """Return a decorator that makes a function the handler of these types, in the app's own subscription.

        A plain function runs in a thread, and may write and publish through its `Tx`, but not read.

        Raises:
            DeclarationError: The function takes or returns something else, or a type has a handler already.
        """
        return self._main.on(*types)

    @overload
    def on_batch(self, type1: type[E1], /, *, most: int = ..., wait_s: float = ...) -> OnBatch[E1, R]: ...
    @overload
    def on_batch(self, type1: type[E1], type2: type[E2], /, *, most: int = ..., wait_s: float = ...) -> OnBatch[E1 | E2, R]: ...
    @overload
    def on_batch(
        self, type1: type[E1], type2: type[E2], type3: type[E3], /, *, most: int = ..., wait_s: float = ...
    ) -> OnBatch[E1 | E2 | E3, R]: ...
    @overload
    def on_batch(self, *types: type[AnyEvent], most: int = ..., wait_s: float = ...) -> OnBatch[Any, R]: ...
    def on_batch(self, *types: type[Any], most: int = 1_000, wait_s: float = 0.0) -> Any:
        """Return a decorator that makes a function the handler of batches, in the app's own subscription. See `Subscription.on_batch`.

        Raises:
            DeclarationError: The function takes or returns something else, or a type has a handler already.
        """
        return self._main.on_batch(*types, most=most, wait_s=wait_s)

    def state(self, name: str, type: type[V]) -> State[V]:  # noqa: A002 the word that reads best where it is called
        """Declare a state that the app's own subscription writes, and its other subscriptions may read.

        Raises:
            DeclarationError: The name has no version or is taken, or values of the type cannot be read back from JSON.
        """
        return self._main.state(name, type)

    def reset(self, function: Hook) -> Hook:
        """Have an async function empty the tables of the app's own subscription when a replay begins. See `Subscription.reset`.

        Raises:
            DeclarationError: There is one already, or it is not async.
        """
        return self._main.reset(function)

    def subscription(
        self,
        name: str,
        *,
        delivery: Delivery = Delivery(),  # noqa: B008 frozen
        renamed_from: str | None = None,
    ) -> Subscription[R]:
        """Return another subscription of the app, with its own progress and failures.

        Args:
            name: Its name in the store.
            delivery: How it is delivered to.
            renamed_from: The name that it had before. The store gives what it has under that one to the new one, at the first start without
                processes of the older code. Leave it in the code.

        Raises:
            DeclarationError: A name is none, or taken.
        """
        if name == self.name or name in self._others:
            raise DeclarationError(f"app {self.name!r} has a subscription {name!r} already: use that one, or another name")
        other: Subscription[R] = Subscription(self.name, name, delivery, renamed_from)
        self._others[name] = other
        return other

    def declaration(self) -> AppDeclaration:
        """Return what it is, frozen: all that the runtime is given.

        Raises:
            DeclarationError: It has no handler, a state is declared twice, or a former name belongs to another subscription.
        """
        subscriptions = [one.declaration() for one in (self._main, *self._others.values()) if not one.is_empty]
        if not subscriptions:
            raise DeclarationError(f"app {self.name!r} handles nothing: give it a handler with @{self.name}.on(…)")
        names = [name for one in subscriptions for name in (one.name, one.renamed_from) if name is not None]
        for name in names:
            if names.count(name) > 1:
                raise DeclarationError(
                    f"{name!r} is named twice among the subscriptions of app {self.name!r} and what they were renamed from: one goes on with it"
                )
        states = [state for subscription in subscriptions for state in subscription.states]
        for state in states:
            if states.count(state) > 1:
                raise DeclarationError(
                    f"state {state!r} is declared by two subscriptions of app {self.name!r}: one writes it, all may read it"
                )
        return AppDeclaration(self.name, subscriptions, self._lifespan)

    @asynccontextmanager
    async def connect(self, settings: Settings | None = None) -> AsyncGenerator[Client]:
        """Open the log and lend a client that publishes under the app's name.

        Args:
            settings: ``None`` is what the environment says.

        Raises:
            StartRefused: The log, or a topic in it, is not as declared.
            FileError: The log's file cannot be used.
        """
        from everlog.runtime import opened_log  # the engine and asyncio cost 60 ms: whoever only declares an app does without
        from everlog.staging import Staging

        chosen = settings if settings is not None else Settings().from_env()
        clock = SystemClock()
        has_handlers = not (self._main.is_empty and not self._others)
        topics = self.declaration().topics if has_handlers else ()
        async with (
            opened_log(chosen, clock, topics) as log,
            Staging(self.name, log, chosen, clock) as staging,
            Client(
                log,
                source=self.name,
                clock=clock,
                create_topics=chosen.create_topics,
                tracing=tracing() if chosen.tracing else None,
                staging=staging,
            ) as client,
        ):
            yield client

    async def run(self, settings: Settings | None = None, *, meters: Meters | None = None) -> None:
        """Handle events until SIGTERM, SIGINT or cancellation; then finish what is in flight and return.

        Args:
            settings: ``None`` is what the environment says.
            meters: Counts what it does, for a registry of `prometheus_client`: made by `everlog.observe.prometheus()`.

        Raises:
            StartRefused: Something does not fit together; nothing was handled.
            EverlogError: The log or the store cannot be used any more; what is committed stays.
        """
        from everlog.runtime import run_apps  # as in `connect`

        await run_apps([self.declaration()], settings if settings is not None else Settings().from_env(), meters=meters)

    def stage(self, connection: object, *events: AnyEvent) -> None:
        """Put events into the transaction of a connection to the database that the app's store is in: they are sent once *you* commit.

        For code that does not await: Django, SQLAlchemy's Session, psycopg's Connection; from any thread. The first call in a process opens
        the log and the store that the environment names, and sends from then on what is committed, in a thread of its own, beside the
        workers of the app.

        Args:
            connection: Its transaction has begun: `django.db.connection` inside `transaction.atomic()`, a session or connection of SQLAlchemy,
                a connection of psycopg.
            events: Instances of classes that were given to a topic.

        Raises:
            EventRefused: An event breaks its contract; names the field. Nothing was changed.
            FeatureMissing: The store is not in a database that the app shares.
            StoreError: No transaction, or one of another database. Roll it back.
        """
        self._stager.open().stage(connection, events)
