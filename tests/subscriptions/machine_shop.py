"""The app of the state machine, and the weather that it is in: which keys fail, hang or kill, and what is down."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any, Literal

from tests.subscriptions.chaos import group_of

from everlog import App, Delivery, Event, Retry, State, Topic, Tx
from everlog.errors import PoisonAt

PARTITIONS = 3
TIME_LIMIT_S = 8.0
SINGLE, BATCH = "shop", "batch"

left = Topic("machine.left", key="key", partitions=PARTITIONS)
right = Topic("machine.right", key="key", partitions=PARTITIONS)
free = Topic("machine.free", key=None, partitions=PARTITIONS)
out = Topic("machine.out", key="key", partitions=PARTITIONS)


@left.event("machine.left/1")
class Left(Event):
    key: str
    n: int


@left.event("machine.left/2")
class NewLeft(Event):
    key: str
    n: int
    extra: str = ""


@right.event("machine.right/1")
class Right(Event):
    key: str
    n: int


@free.event("machine.free/1")
class Free(Event):
    n: int


@out.event("machine.out/1")
class Out(Event):
    key: str
    n: int
    by: str


Keyed = Left | NewLeft | Right
Mode = Literal["fails", "once", "points", "hangs", "kills"]


def topic_of(event: Keyed) -> str:
    return "right" if isinstance(event, Right) else "left"


class Call:
    """A handler at work."""

    def __init__(self, worker: str, events: Sequence[tuple[str, int]], began: int) -> None:
        self.worker = worker
        self.events = events
        self.began = began
        self.ended: int | None = None


class Weather:
    """What befalls the handlers, in whichever process they run, and what they did.

    Args:
        dice: Decides where they suspend.
        process: Names the process that runs now.
        end: Ends that process at once.
    """

    def __init__(self, dice: random.Random, process: Callable[[], str], end: Callable[[], None]) -> None:
        self.dice = dice
        self.suspends = dice.choice((0.0, 0.3, 0.6, 0.9))
        self.modes: dict[str, Mode] = {}
        self.is_down = False
        self.calls: list[Call] = []
        self.overlaps: list[str] = []
        self._process = process
        self._end = end
        self._running: dict[tuple[str, str], int] = {}
        self._time = itertools.count()

    def clear(self) -> None:
        """Let everything be well from now on."""
        self.modes.clear()
        self.is_down = False

    def begin(self, subscription: str, events: Sequence[Keyed]) -> Call:
        """Note that a handler begins."""
        worker = f"{subscription}@{self._process()}"
        for key in {event.key for event in events}:
            if self._running.get((worker, key)):
                self.overlaps.append(f"{worker}: two events of {key} at once")
            self._running[worker, key] = self._running.get((worker, key), 0) + 1
        call = Call(worker, [(event.key, event.n) for event in events], next(self._time))
        self.calls.append(call)
        return call

    def end(self, call: Call) -> None:
        """Note that it has ended, however."""
        call.ended = next(self._time)
        for key in {key for key, _ in call.events}:
            self._running[call.worker, key] -= 1

    async def pause(self) -> None:
        """Let others run, or not."""
        if self.dice.random() < self.suspends:
            for _ in range(self.dice.choice((1, 2, 7))):
                await asyncio.sleep(0)

    async def strike(self, event: Keyed, place: int) -> None:
        """Do to the handler of an event what the weather says."""
        if self.is_down:
            raise ConnectionError("down")
        match self.modes.get(event.key):
            case "fails":
                raise RuntimeError("fails until mended")
            case "once":
                del self.modes[event.key]
                raise RuntimeError("fails once")
            case "points":
                raise PoisonAt(place)
            case "hangs":
                await asyncio.get_running_loop().create_future()
            case "kills":
                self._end()
                await asyncio.get_running_loop().create_future()
            case None:
                pass


class Desk:
    """What one subscription does: a journal of each key, sums that several keys share, and an event for each event."""

    def __init__(self, name: str, subscription: Any, weather: Weather) -> None:
        prefix = "" if name == SINGLE else f"{name}_"
        self._name = name
        self._weather = weather
        self.journal: State[list[tuple[str, int]]] = subscription.state(f"{prefix}journal/1", list[tuple[str, int]])
        self.totals: State[int] = subscription.state(f"{prefix}totals/1", int)
        self.shared: State[int] = subscription.state(f"{prefix}shared/1", int)

    async def handle(self, event: Keyed, tx: Tx[Any]) -> Out:
        (done,) = await self.handle_all([event], tx)
        return done

    async def handle_all(self, events: Sequence[Keyed], tx: Tx[Any]) -> list[Out]:
        weather = self._weather
        call = weather.begin(self._name, events)
        try:
            return [await self._handle(event, place, tx) for place, event in enumerate(events)]
        finally:
            weather.end(call)

    async def _handle(self, event: Keyed, place: int, tx: Tx[Any]) -> Out:
        weather, topic = self._weather, topic_of(event)
        await weather.pause()
        tx.add(self.totals, group_of(event.key), event.n + 1)
        mine = await tx.get(self.journal, event.key, list[tuple[str, int]]())
        count = await tx.get(self.shared, group_of(event.key), 0)
        await weather.pause()
        await weather.strike(event, place)
        tx.put(self.journal, event.key, [*mine, (topic, event.n)])
        tx.put(self.shared, group_of(event.key), count + 1)
        await weather.pause()
        return Out(event.key, event.n, f"{self._name}:{topic}:{event.n}")


def shop_of(weather: Weather, *, concurrency: int, is_new: bool) -> App:
    """Return the app; `is_new`: its code knows the second version of an event."""
    delivery = Delivery(
        start="beginning",
        concurrency=concurrency,
        time_limit_s=TIME_LIMIT_S,
        on_error={Exception: Retry(attempts=4, first_s=0.2, most_s=2.0)},
        on_gap="oldest",
    )
    app = App(SINGLE, delivery=delivery)
    other = app.subscription(BATCH, delivery=delivery)
    single, batch = Desk(SINGLE, app, weather), Desk(BATCH, other, weather)
    seen = app.state("seen/1", int)
    keyed: list[type[Any]] = [Left, NewLeft, Right] if is_new else [Left, Right]

    @app.on(*keyed)
    async def handle(event: Any, tx: Tx[Any]) -> Out:
        return await single.handle(event, tx)

    @app.on(Free)
    async def handle_free(event: Free, tx: Tx[Any]) -> Out:
        await weather.pause()
        if weather.is_down:
            raise ConnectionError("down")
        tx.add(seen, event.n, 1)
        return Out(f"f{event.n}", event.n, f"{SINGLE}:free:{event.n}")

    @other.on_batch(*keyed, most=4)
    async def handle_all(events: list[Any], tx: Tx[Any]) -> list[Out]:
        return await batch.handle_all(events, tx)

    return app
