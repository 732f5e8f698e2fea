"""Which held keys a person means, and asking the running workers to redrive or skip them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Final, Literal, NamedTuple

from everlog.cli.modules import chosen
from everlog.cli.terminal import printable
from everlog.clock import Clock
from everlog.errors import CommandRefused
from everlog.store import Cause, Held, HeldKey, ParkedKey, Slot, Store

PAGE: Final = 500
"""So many keys are read at once. A page of the largest events, a megabyte each, still fits into memory."""
_KEYS: Final = 10_000
_ALONE_S: Final = 5.0
"""Without a live worker for so long, nobody waits any more: a worker that is replaced is back by then."""
_LOOK_S: Final = 1.0
"""How often to look when no bell rings: a worker that dies rings none."""

Action = Literal["redrive", "skip"]


class Wanted(NamedTuple):
    """Which held keys are meant: those that all of this is true of."""

    subscription: str | None = None
    key: str | None = None
    type: str | None = None
    """The type of the first event of its queue."""
    error: str | None = None
    """Text in the error of that event."""


class Target(NamedTuple):
    """A key that something is asked for, as it was seen."""

    subscription: str
    slot: int
    key: str
    first: int
    """The id of its first held record."""
    records: int

    @classmethod
    def of(cls, key: ParkedKey) -> Target:
        """Return what has to be remembered of a key."""
        return cls(key.subscription, key.first.slot, key.key, key.first.id, key.records)

    @property
    def place(self) -> tuple[str, int, str]:
        """Where its queue is. A key that moved to another partition may have two."""
        return self.subscription, self.slot, self.key


class Answers(NamedTuple):
    """What has become of the keys that were asked for, so far."""

    done: Sequence[Target]
    """Nothing of them is held any more; or, for a skip, the request was carried out."""
    parked: Sequence[Target]
    """Tried again, and parked again."""
    running: Sequence[Target]
    """A worker has taken them, and is not through."""
    waiting: Sequence[Target]
    """No worker has taken them."""
    events: int
    """How many events the keys in `running` and `waiting` hold."""
    unattended: Sequence[str]
    """Subscriptions that no live worker works on."""
    paused: Mapping[str, str]
    """Subscription → why it is paused."""

    @property
    def is_settled(self) -> bool:
        """Nothing more will come of them."""
        return not (self.running or self.waiting)


async def queues(
    store: Store, wanted: Wanted, *, after: int = 0, limit: int | None = None
) -> AsyncGenerator[Sequence[ParkedKey]]:
    """Give the held keys that are meant, a page at a time, by the id of their first record.

    Raises:
        CommandRefused: The store has no such subscription.
    """
    await check_subscription(store, wanted.subscription)
    left = limit
    while left is None or left > 0:
        page = await store.parked(
            wanted.subscription,
            after=after,
            limit=PAGE if left is None else min(left, PAGE),
            key=wanted.key,
            type=wanted.type,
            error=wanted.error,
        )
        if not page:
            return
        yield page
        after = page[-1].first.id
        left = None if left is None else left - len(page)


async def check_subscription(store: Store, name: str | None) -> None:
    """Refuse a subscription that the store does not know.

    Raises:
        CommandRefused: It is one.
    """
    if name is not None:
        chosen(name, [one.name for one in (await store.status()).subscriptions], what="subscription", where="the store")


async def spelled(store: Store, app: str, wanted: Wanted) -> Wanted:
    """Return what is meant, with the key and the type as they are stored.

    A key may be given as it is, or as it is printed, with escapes for what a terminal would obey.

    Raises:
        CommandRefused: The app holds no such key, or nothing of such a type; says what is close to it.
    """
    await check_subscription(store, wanted.subscription)
    if wanted.key is not None and not await store.parked(wanted.subscription, key=wanted.key, limit=1):
        keys = {one.key async for page in queues(store, Wanted(wanted.subscription)) for one in page}
        wanted = wanted._replace(key=_nearest(wanted.key, keys, app))
    if wanted.type is not None and not await store.parked(wanted.subscription, type=wanted.type, limit=1):
        types = {one.first.record.type async for page in queues(store, Wanted(wanted.subscription)) for one in page}
        chosen(wanted.type, sorted(types), what="first event of type", where=f"what app {app!r} holds back")
    return wanted


def _nearest(given: str, keys: Iterable[str], app: str) -> str:
    shown = [(printable(key), key) for key in keys]
    same = [key for text, key in shown if text == given]
    if len(same) == 1:
        return same[0]
    if same:
        raise CommandRefused(f"{len(same)} held keys are printed as {given!r}: give the key itself, as with $'…' in bash")
    if not shown:
        raise CommandRefused(f"app {app!r} holds no events of key {given!r}, nor of any other")
    close = get_close_matches(given, [text for text, _ in shown], n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"`everlog parked list {app}` has all {len(shown):,}"
    raise CommandRefused(f"app {app!r} holds no events of key {given!r}: {hint}")


async def named(store: Store, app: str, key: str, subscription: str | None) -> Sequence[ParkedKey]:
    """Return a key in each subscription that holds events of it, at least one.

    Raises:
        CommandRefused: None does; says what is close to it.
    """
    wanted = await spelled(store, app, Wanted(subscription, key))
    return [one async for page in queues(store, wanted) for one in page]


def is_parked(key: ParkedKey) -> bool:
    """Tell whether nobody tries the key again by itself."""
    return key.first.next_attempt_us is None and key.first.cause is not Cause.BEHIND


async def ask(store: Store, targets: Sequence[Target], action: Action, *, is_named: bool) -> int:
    """File a request for each key whose first record is still the one that was seen; return for how many.

    Args:
        store: The app's.
        targets: The keys.
        action: What to ask for.
        is_named: They are asked for by their key, so also where they are not parked but blocked.
    """
    asked = 0
    by_subscription: dict[str, list[Target]] = {}
    for target in targets:
        by_subscription.setdefault(target.subscription, []).append(target)
    for name, ours in by_subscription.items():
        among = [target.first for target in ours]
        for key in sorted({target.key for target in ours}) if is_named else [None]:
            asked += await store.request(name, key, action, among=among)
    return asked


async def follow(
    store: Store,
    targets: Sequence[Target],
    action: Action,
    *,
    clock: Clock,
    wait_s: float | None,
    on_look: Callable[[Answers], None],
) -> Answers:
    """Look at what becomes of the keys until nothing more will, or nobody is there who would do it.

    Looks when the store's bell rings. A request that nobody carries out stays in the store: to end this changes nothing.

    Args:
        store: The app's.
        targets: The keys that were asked for.
        action: What was asked for.
        clock: Measures the waits.
        wait_s: Return after so many seconds in any case; ``None``: wait as long as it takes.
        on_look: Is told what became of them, at each look.
    """
    started_s = attended_s = clock.monotonic_s()
    is_first = True
    while True:
        looked_s = clock.monotonic_s()
        answers = await look(store, targets, action)
        on_look(answers)
        now_s = clock.monotonic_s()
        if not _is_alone(answers):
            attended_s = now_s
        left_s = _LOOK_S if wait_s is None else min(_LOOK_S, started_s + wait_s - now_s)
        if answers.is_settled or left_s <= 0 or (_is_alone(answers) and (is_first or now_s - attended_s > _ALONE_S)):
            return answers
        is_first = False
        await store.wait(left_s)
        # A busy worker rings all the time; what is long to look at is looked at less often.
        await clock.sleep(min(_LOOK_S, 4 * (now_s - looked_s)))


def _is_alone(answers: Answers) -> bool:
    return all(target.subscription in answers.unattended for target in [*answers.running, *answers.waiting])


async def look(store: Store, targets: Sequence[Target], action: Action) -> Answers:
    """Return what has become of the keys."""
    slots = sorted({Slot(target.subscription, target.slot) for target in targets})
    # First the requests, then the queues: a key whose request is gone has been taken since, or is at its end.
    asked = {(*request.slot, request.key) for request in await store.requests(slots) if request.action == action}
    held = {
        (*slot, one.key): (one.records, one.next_attempt_us is None) for slot in slots for one in await _held_keys(store, slot)
    }
    done, parked, running, waiting = list[Target](), list[Target](), list[Target](), list[Target]()
    events = 0
    for target in targets:
        records, is_at_rest = held.get(target.place, (0, False))
        if not records or (action == "skip" and target.place not in asked):
            done.append(target)
            continue
        if target.place not in asked and is_at_rest:
            parked.append(target)
            continue
        (waiting if target.place in asked else running).append(target)
        events += records
    subscriptions = sorted({slot.subscription for slot in slots})
    unattended = [name for name in subscriptions if not (await store.survey(name)).members]
    paused = {one.name: one.paused[0] for one in (await store.status()).subscriptions if one.paused and one.name in subscriptions}
    return Answers(done, parked, running, waiting, events, unattended, paused)


async def _held_keys(store: Store, slot: Slot) -> Sequence[HeldKey]:
    found = list(await store.due(slot, limit=_KEYS))
    size = len(found)
    while size == _KEYS:
        page = await store.due(slot, after=found[-1].key, limit=_KEYS)
        found.extend(page)
        size = len(page)
    return found


async def firsts(store: Store, targets: Iterable[Target]) -> Sequence[Held]:
    """Return the first held record of each key that still has one."""
    return [held for one in targets for held in await store.held(Slot(one.subscription, one.slot), one.key)]
