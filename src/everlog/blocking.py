"""The client for code that does not await: scripts, notebooks, Flask, Celery; shared by any number of threads."""

from __future__ import annotations

from collections.abc import Coroutine, Generator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload

from everlog.contracts.event import AnyEvent
from everlog.errors import Closed

if TYPE_CHECKING:
    import asyncio
    import concurrent.futures
    from threading import RLock, Thread

    from everlog.app import App
    from everlog.client import Client
    from everlog.client.follower import Start
    from everlog.client.published import Published
    from everlog.contracts.record import Record
    from everlog.position import Position
    from everlog.settings import Settings

E = TypeVar("E", bound=AnyEvent)
E2 = TypeVar("E2", bound=AnyEvent)
T = TypeVar("T")

_TIMEOUT_S: Final = 30.0
_LOOK_S: Final = 1.0
_AHEAD: Final = 1_000
"""Records of a `follow` that are read before they are asked for."""


def blocking(app: App[Any], settings: Settings | None = None) -> BlockingClient:
    """Return a client of an app whose calls block: use it in a `with`, or `open` and `close` it.

    Args:
        app: Whose name it publishes under.
        settings: ``None`` is what the environment says.
    """
    return BlockingClient(app, settings)


class BlockingClient:
    """An app's client on an event loop in a thread of its own. Safe to share among threads, and refused in a process that was forked.

    Made by `everlog.blocking`. Calls of several threads leave together, as those of several tasks do.
    """

    def __init__(self, app: App[Any], settings: Settings | None, *, closes_at_exit: bool = False) -> None:
        self._closes_at_exit = closes_at_exit
        self._app = app
        self._settings = settings
        self._thread: Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._client: Client
        self._process = 0
        self._locks: dict[int, RLock] = {}
        """By process: a fork may inherit one that a thread of its parent holds."""

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def open(self) -> Self:
        """Open the log; idempotent in one process, and safe to call in each request. A process that is forked later opens it for itself.

        Raises:
            StartRefused: The log, or a topic in it, is not as declared.
            FileError: The log's file cannot be used; a `FilePlace` where this process was forked from one that had it open.
        """
        import os

        if self._thread is None or self._process != os.getpid():
            with self._lock():
                self._open()
        return self

    def _lock(self) -> RLock:
        import os
        import threading

        return self._locks.setdefault(os.getpid(), threading.RLock())

    def _open(self) -> None:
        import concurrent.futures  # whoever only declares an app does without all of this
        import os
        import threading

        if self._thread is not None and self._process == os.getpid():
            return
        opened: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = None
        thread = threading.Thread(target=self._work, args=(opened,), name="everlog-blocking", daemon=True)
        thread.start()
        opened.result()
        self._process, self._thread = os.getpid(), thread
        if self._closes_at_exit:
            import atexit

            atexit.register(self.close)

    def close(self) -> None:
        """Finish, and let go of the log. Idempotent; calls that other threads have under way are told `Closed`."""
        import os

        with self._lock():
            thread, self._thread = self._thread, None
            if thread is not None and self._process == os.getpid():
                self._loop.call_soon_threadsafe(self._stop.set)
                thread.join()

    def _work(self, opened: concurrent.futures.Future[None]) -> None:
        import asyncio

        async def lend() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            async with self._app.connect(self._settings) as self._client:
                opened.set_result(None)
                await self._stop.wait()

        try:
            asyncio.run(lend())
        except BaseException as error:
            if opened.done():
                raise
            opened.set_exception(error)

    def publish(
        self,
        *events: AnyEvent,
        key: object = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> Published:
        """Store events and return when they survive a crash. Arguments and errors are those of `Client.publish`.

        Raises:
            Closed: It is not open, was closed meanwhile, or was opened in the process that this one was forked from.
        """
        client = self._check_open()
        return self._call(client.publish(*events, key=key, headers=headers, idempotency_key=idempotency_key, timeout_s=timeout_s))

    @overload
    def follow(
        self,
        type1: type[E],
        /,
        *,
        start: Start = ...,
        after: Position | str | None = ...,
        key: object = ...,
        timeout_s: float | None = ...,
    ) -> Iterator[Record[E]]: ...
    @overload
    def follow(
        self,
        type1: type[E],
        type2: type[E2],
        /,
        *,
        start: Start = ...,
        after: Position | str | None = ...,
        key: object = ...,
        timeout_s: float | None = ...,
    ) -> Iterator[Record[E | E2]]: ...
    @overload
    def follow(
        self,
        *types: type[Any],
        start: Start = ...,
        after: Position | str | None = ...,
        key: object = ...,
        timeout_s: float | None = ...,
    ) -> Iterator[Record[Any]]: ...
    def follow(
        self,
        *types: type[Any],
        start: Start = "now",
        after: Position | str | None = None,
        key: object = None,
        timeout_s: float | None = None,
    ) -> Iterator[Record[Any]]:
        """Yield the records of some types as they are stored. Arguments and errors are those of `Client.follow`, and these.

        Args:
            types: Classes that were given to a topic.
            start: Where to begin.
            after: Begin behind a record's position.
            key: Only records of this key.
            timeout_s: End when nothing has come for so long; ``None``: never.

        Raises:
            Closed: As `publish`.
        """
        client = self._check_open()
        return self._records(client, types, {"start": start, "after": after, "key": key}, timeout_s)

    def stage(self, connection: object, events: Sequence[AnyEvent]) -> None:
        """Put events into a transaction of the app's own. Arguments and errors are those of `App.stage`, and `Closed` as `publish`."""
        client = self._check_open()
        store, emits = self._call(client.staged(events))
        store.stage_blocking(connection, emits)  # here: the connection belongs to this thread

    def _records(
        self, client: Client, types: tuple[type[Any], ...], options: dict[str, Any], timeout_s: float | None
    ) -> Generator[Record[Any]]:
        import asyncio

        async def begin() -> tuple[asyncio.Queue[Record[Any] | BaseException], asyncio.Task[None]]:
            queue: asyncio.Queue[Record[Any] | BaseException] = asyncio.Queue(_AHEAD)

            async def read() -> None:
                try:
                    async for record in client.follow(*types, **options):
                        await queue.put(record)
                except Exception as error:
                    await queue.put(error)

            return queue, asyncio.create_task(read())

        async def take() -> list[Record[Any] | BaseException]:
            try:
                async with asyncio.timeout(timeout_s):
                    found = [await queue.get()]
            except TimeoutError:
                return []
            while not queue.empty():
                found.append(queue.get_nowait())
            return found

        queue, reading = self._call(begin())
        try:
            while found := self._call(take()):
                for one in found:
                    if isinstance(one, BaseException):
                        raise one
                    yield one
        finally:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(reading.cancel)

    def _check_open(self) -> Client:
        import os

        if self._thread is None:
            raise Closed("the client is not open: use it in `with everlog.blocking(app) as client:`, or call its open()")
        if self._process != os.getpid():
            raise Closed(
                f"the client was opened in process {self._process}, and this one (process {os.getpid()}) was forked from it: call open() after "
                f"the fork and not before, as in the first request or task of a worker"
            )
        return self._client

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop, and wait for it."""
        import asyncio
        import concurrent.futures

        try:
            self._check_open()
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except BaseException as error:  # closed meanwhile
            work.close()
            if isinstance(error, RuntimeError):
                raise Closed("the client was closed") from error
            raise
        thread = self._thread
        try:
            while not concurrent.futures.wait([future], timeout=_LOOK_S).done:
                if thread is None or not thread.is_alive():  # it was handed over as the loop ended
                    future.cancel()
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise Closed("the client was closed while the call was under way: whether it was carried out is unknown") from error
        except BaseException:
            future.cancel()  # Ctrl-C: nobody waits any more
            raise
