"""One process of the campaign. Run as `python -m tests.campaign.part OPTIONS`, where OPTIONS are those of `Part` as JSON."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from tests.campaign import services
from tests.campaign.bugs import BUGS
from tests.campaign.journal import Answered, Happened, Journal, Overlap, Read, Sends
from tests.campaign.points import arm, kill
from tests.campaign.services import APPS, TOPICS, Billed, Ordered, Returned, orders, returns

from everlog import Settings
from everlog.app import App
from everlog.client.client import Client
from everlog.clock import SystemClock
from everlog.contracts.contract import contract_of
from everlog.errors import EventRefused, EverlogError, LogError, LogReadOnly, PublishUnknown
from everlog.key import partition_of
from everlog.log import Appended, Log, Status
from everlog.logs.postgres.log import PostgresLog
from everlog.logs.sqlite.log import SqliteLog
from everlog.position import BEGINNING, Offset, Position, TopicPartition
from everlog.settings import open_log, open_store
from everlog.store import Lease, Slot
from everlog.stores.postgres.store import PostgresStore
from everlog.stores.sqlite.store import SqliteStore

retention: Final[Any] = import_module("everlog.logs.sqlite.retention")

Role = Literal["producer", "billing", "shipping", "follower", "janitor"]
GRACE_S: Final = 5.0
SENDERS: Final = 2
"""Tasks of a producer, each with an order of its own."""
_NAMES_EACH: Final = 1 << 24
"""Events that one task may publish."""
_NOTE: Final = "x" * 90
_JANITOR_EVERY_S: Final = 0.7


class Part(msgspec.Struct, frozen=True):
    """What a process is to do.

    Attributes:
        role: What it is.
        folder: Where log, stores and journals are.
        name: Its own, which no other process ever had; `number` likewise.
        seed: Of its dice.
        rate: A producer's events per second.
        keys: So many keys are used in a window of time.
        window_s: How long that is.
        lease_s: Of the workers.
        kill_at: A named point at which it kills itself, and the how manieth time.
        lost_answers: So often the log has stored what a producer sent, and the answer is lost.
        kept_behind: The janitor leaves so many records of each partition, though everybody has read them.
        bug: A seeded bug.
    """

    role: Role
    folder: str
    name: str
    number: int
    seed: int
    rate: float = 500.0
    keys: int = 100
    window_s: float = 10.0
    lease_s: float = 0.5
    kill_at: tuple[str, int] | None = None
    lost_answers: float = 0.02
    kept_behind: int = 100
    bug: str | None = None
    log_url: str = ""
    store_urls: str = ""

    @property
    def settings(self) -> Settings:
        """Where log and stores are, and how long a lease is."""
        return Settings(log_url=self.log_url, store_url=self.store_urls, lease_s=self.lease_s, grace_s=GRACE_S)

    def journal(self) -> Journal:
        """Its own journal."""
        return Journal(Path(self.folder) / "journals" / f"{self.name}.jsonl")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _stopped() -> asyncio.Event:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    return stop


# ---- producers ----


async def produce(part: Part) -> None:
    """Publish events of a few kinds, alone and in batches, as fast as it may, until SIGTERM."""
    stop, journal, dice = _stopped(), part.journal(), random.Random(part.seed)
    _lose_answers(part.lost_answers, journal, random.Random(part.seed))
    async with App("producer").connect(part.settings) as client:
        say("ready")
        senders = [_Sender(part, number, client, journal, dice) for number in range(SENDERS)]
        async with asyncio.TaskGroup() as tasks:
            for sender in senders:
                tasks.create_task(sender.run(stop))


def _lose_answers(share: float, journal: Journal, dice: random.Random) -> None:
    """Have answers of the log get lost on their way now and then."""
    for kind in (SqliteLog, PostgresLog):
        _lose_answers_of(kind, share, journal, dice)


def _lose_answers_of(kind: type[Any], share: float, journal: Journal, dice: random.Random) -> None:
    appended = kind._appended

    async def losing(self: Any, submitted: Any, count: int) -> Appended:
        answer: Appended = await appended(self, submitted, count)
        if dice.random() < share and answer.settled:
            journal.write(Happened("answer of the log lost"))
            error = LogError("the answer was lost")
            return Appended([Status.UNKNOWN] * count, [None] * count, [error] * count)
        return answer

    kind._appended = losing


class _Sender:
    """One task of a producer: it awaits each call, so that the order of its calls is the order of its keys."""

    def __init__(self, part: Part, number: int, client: Client, journal: Journal, dice: random.Random) -> None:
        self._part = part
        self._name = f"{part.name}.{number}"
        self._client = client
        self._journal = journal
        self._dice = dice
        self._next = (part.number * SENDERS + number) * _NAMES_EACH + 1

    async def run(self, stop: asyncio.Event) -> None:
        each_s = SENDERS / self._part.rate
        due_s = time.monotonic()
        while not stop.is_set():
            count = self._dice.choice((1, 1, 3, 10, 50))
            await self._publish(count)
            due_s = max(due_s + count * each_s, time.monotonic() - 0.5)
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))

    async def _publish(self, count: int) -> None:
        topic = returns if self._dice.random() < 0.25 else orders
        events = [self._event(topic is returns) for _ in range(count)]
        if self._dice.random() < 0.01 and isinstance(events[-1], Ordered):
            events[-1] = msgspec.structs.replace(events[-1], price=float("nan"))  # refused, and the whole call with it
        names = [event.name for event in events]
        self._journal.write(Sends(self._name, topic.name, [(event.name, event.key) for event in events]))
        began_s = time.monotonic()
        try:
            published = await self._client.publish(*events, timeout_s=2.0)
        except EventRefused:
            self._journal.write(Answered("refused", names))
            return
        except LogReadOnly:
            self._journal.write(Answered("refused", names))
            await asyncio.sleep(0.05)
            return
        except PublishUnknown as unknown:
            position = await self._retried(unknown)
        else:
            position = published.position
        places = self._places(events, topic.name, position) if position is not None else []
        self._journal.write(Answered("stored", names, places, time.monotonic() - began_s, time.monotonic()))

    async def _retried(self, unknown: PublishUnknown) -> Position | None:
        """Send it again until it is stored; where the first sending was, nobody is told its place."""
        while True:
            try:
                await unknown.retry(timeout_s=2.0)
            except PublishUnknown as again:
                unknown = again
            except LogReadOnly:
                await asyncio.sleep(0.05)
            else:
                return None

    def _places(self, events: Sequence[Ordered | Returned], topic: str, position: Position) -> list[tuple[int, str, int, int]]:
        last = {partition_of(event.key, services.PARTITIONS): event.name for event in events}
        return [
            (name, topic, partition, position.offsets[TopicPartition(topic, partition)])
            for partition, name in last.items()
            if TopicPartition(topic, partition) in position.offsets
        ]

    def _event(self, is_return: bool) -> Ordered | Returned:
        name, self._next = self._next, self._next + 1
        window = int(time.monotonic() / self._part.window_s)
        key = f"{window}.{self._dice.randrange(self._part.keys)}"
        if is_return:
            return Returned(key, name)
        return Ordered(key, name, "85123A", name % 7 + 1, 2.55, _NOTE)


# ---- workers ----


async def work(part: Part) -> None:
    """Run one of the services until SIGTERM."""
    from everlog.runtime import run_apps

    journal = part.journal()
    services.dice.seed(part.seed)
    for kind in (SqliteStore, PostgresStore):
        _note_epochs(kind)
    settings = part.settings

    async def note() -> None:
        while True:
            await asyncio.sleep(0.1)
            while services.overlaps:
                app, key, first, second = services.overlaps.pop()
                journal.write(Overlap(f"{app} in {part.name}", key, first, second))

    noting = asyncio.create_task(note())
    try:
        await run_apps([APPS[part.role].declaration()], settings, on_ready=lambda _: say("ready"))
    finally:
        noting.cancel()


def _note_epochs(kind: type[Any]) -> None:
    """Have each lease that is taken known to the handlers."""
    acquire = kind.acquire

    async def acquired(self: Any, slot: Slot) -> Lease | None:
        lease: Lease | None = await acquire(self, slot)
        if lease is not None:
            services.epochs[slot] = lease.epoch
        return lease

    kind.acquire = acquired


# ---- followers ----


async def follow(part: Part) -> None:
    """Read the whole log as it grows, and note where each event stands, until SIGTERM."""
    stop, journal = _stopped(), part.journal()
    log = await open_log(part.settings, clock=SystemClock())
    try:
        names = sorted({name for topics in TOPICS.values() for name in topics})
        reader = log.reader({TopicPartition(name, number): BEGINNING for name in names for number in range(services.PARTITIONS)})
        through: dict[str, dict[int, int]] = {}
        say("ready")
        stopping = asyncio.create_task(stop.wait())
        while not stop.is_set():
            reading = asyncio.ensure_future(reader.next())
            await asyncio.wait([reading, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                reading.cancel()
                break
            for chunk in reading.result().chunks:
                records = [chunk.record(index) for index in range(chunk.start, chunk.length)]
                found = [(record.offset, name_of(record.type, record.data), record.key or "") for record in records]
                journal.write(Read(part.name, chunk.where.topic, chunk.where.partition, found))
                through.setdefault(chunk.where.topic, {})[chunk.where.partition] = records[-1].offset
            _note_followed(part, through)
        reader.close()
    finally:
        await log.aclose()


def _followed(part: Part) -> Path:
    return Path(part.folder) / "followed.json"


def _note_followed(part: Part, through: Mapping[str, Mapping[int, int]]) -> None:
    """Let the janitor know what need not be kept for the follower's sake."""
    new = _followed(part).with_suffix(".new")
    new.write_bytes(msgspec.json.encode(through))
    new.rename(_followed(part))


_CONTRACTS: Final[Mapping[str, Any]] = {contract_of(cls).name: contract_of(cls) for cls in (Ordered, Returned, Billed)}


class _Named(msgspec.Struct):
    name: int


_decode_name: Final = msgspec.json.Decoder(_Named).decode


def name_of(type_name: str, data: bytes) -> int:
    """Return the name of an event by its record."""
    assert type_name in _CONTRACTS, type_name
    return _decode_name(data).name


# ---- the janitor ----


async def tidy(part: Part) -> None:
    """Delete what everybody has handled, and make backups of log and stores and check them, until SIGTERM."""
    stop = _stopped()
    log = await open_log(part.settings, clock=SystemClock())
    stores = {app: await open_store(part.settings, app, clock=SystemClock()) for app in APPS}
    target = Path(part.folder) / "backups" / part.name
    dice = random.Random(part.seed)
    say("ready")
    try:
        while not stop.is_set():
            try:
                for topic, position in (await _handled(part, log, stores)).items():
                    await log.trim(topic, position)
                    say(f"trimmed {topic}")
                one: Any = dice.choice((log, *stores.values()))
                await one.backup(target / "copy.db", check=True)
                say("backup")
            except EverlogError as error:
                say(f"refused: {type(error).__name__}")
            shutil.rmtree(target, ignore_errors=True)
            try:
                async with asyncio.timeout(_JANITOR_EVERY_S):
                    await stop.wait()
            except TimeoutError:
                pass
    finally:
        for store in stores.values():
            await store.aclose()
        await log.aclose()


async def _handled(part: Part, log: Log, stores: Mapping[str, Any]) -> Mapping[str, Position]:
    """Return behind what may be deleted of each topic: what is handled, and noted by the follower."""
    try:
        followed = msgspec.json.decode(_followed(part).read_bytes(), type=dict[str, dict[int, int]])
    except FileNotFoundError:
        return {}
    found: dict[str, dict[TopicPartition, Offset]] = {}
    for store in stores.values():
        for subscription in (await store.status()).subscriptions:
            for one in subscription.progress:
                topic, partition = one.where
                through = min([one.through, *one.unfinished, followed.get(topic, {}).get(partition, -1)])
                found.setdefault(topic, {})[one.where] = Offset(max(-1, through - part.kept_behind))
    return {topic: Position(log.identity, offsets) for topic, offsets in found.items()}


_ROLES: Final[Mapping[str, Any]] = {"producer": produce, "billing": work, "shipping": work, "follower": follow, "janitor": tidy}


def main(text: str) -> None:
    part = msgspec.json.decode(text, type=Part)
    if part.bug is not None and BUGS[part.bug].role == part.role:
        BUGS[part.bug].seed(random.Random(part.seed))
    if part.role == "janitor":  # a log as small as this one would keep its free pages
        retention.SPARE_PAGES = retention.MOST_FREE_PAGES = 0
    if part.kill_at is not None:
        arm(*part.kill_at, kill)
    asyncio.run(_ROLES[part.role](part))
    sys.stdout.flush()
    os._exit(0)  # as `everlog run` does: a writer that waits for its turn keeps nobody


if __name__ == "__main__":
    main(sys.argv[1])
