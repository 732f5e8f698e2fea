"""Asking a running worker to redrive or skip a key, and waiting for what becomes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from everlog.cli.modules import chosen
from everlog.clock import SystemClock
from everlog.errors import CommandRefused
from everlog.store import Cause, ParkedKey, Slot, Store

_PAGE: Final = 1_000


class Answers(NamedTuple):
    """What became of the keys that were asked for."""

    asked: int
    done: Sequence[str]
    """Nothing of them is held any more; or, for a skip, their first event is gone."""
    running: Sequence[str]
    """A worker has taken them, and is not through."""
    failed: Sequence[ParkedKey]
    """Tried again, and failed again."""
    waiting: Sequence[str]
    """No worker has taken them."""


async def held_keys(store: Store, subscription: str | None) -> Sequence[ParkedKey]:
    """Return every key with held events, of one subscription or of all.

    Raises:
        CommandRefused: The store has no such subscription.
    """
    if subscription is not None:
        chosen(subscription, [one.name for one in (await store.status()).subscriptions], what="subscription", where="the store")
    found: list[ParkedKey] = []
    after = 0
    while page := await store.parked(subscription, after=after, limit=_PAGE):
        found.extend(page)
        after = page[-1].first.id
    return found


async def parked_keys(store: Store, subscription: str | None) -> Sequence[ParkedKey]:
    """Return the keys that nobody tries again by themselves."""
    return [
        key
        for key in await held_keys(store, subscription)
        if key.first.next_attempt_us is None and key.first.cause is not Cause.BEHIND
    ]


async def named(store: Store, app: str, key: str, subscription: str | None) -> Sequence[ParkedKey]:
    """Return a key in each subscription that holds events of it, at least one.

    Raises:
        CommandRefused: None does; says what is close to it.
    """
    held = await held_keys(store, subscription)
    found = [one for one in held if one.key == key]
    if not found:
        if not held:
            raise CommandRefused(f"app {app!r} holds no events of key {key!r}, nor of any other")
        chosen(key, [one.key for one in held], what="held key", where=f"the store of app {app!r}")
    return found


async def ask(store: Store, keys: Sequence[ParkedKey], action: Literal["redrive", "skip"], *, wait_s: float) -> Answers:
    """File a request for each key and wait until a worker has carried all of them out, or `wait_s` seconds have passed.

    Looks when the store's bell rings and not before. A request that nobody carries out stays in the store.
    """
    asked = 0
    for one in keys:
        asked += await store.request(one.subscription, one.key, action)
    clock = SystemClock()
    end_s = clock.monotonic_s() + wait_s
    while True:
        answers = await _look(store, keys, asked, action)
        left_s = end_s - clock.monotonic_s()
        if left_s <= 0 or not (answers.waiting or answers.running):
            return answers
        await store.wait(left_s)


async def _look(store: Store, keys: Sequence[ParkedKey], asked: int, action: str) -> Answers:
    held: Mapping[tuple[str, str], ParkedKey] = {(one.subscription, one.key): one for one in await _held_of(store, keys)}
    slots = {Slot(one.subscription, one.first.slot) for one in keys}
    requested = {
        (request.slot.subscription, request.key) for request in await store.requests(list(slots)) if request.action == action
    }
    done, running, failed, waiting = list[str](), list[str](), list[ParkedKey](), list[str]()
    for before in keys:
        place = (before.subscription, before.key)
        now = held.get(place)
        if place in requested and now is not None:
            waiting.append(before.key)
        elif now is None or (action == "skip" and now.first.id != before.first.id):
            done.append(before.key)
        elif now.first.attempts > 0 and now.first.cause is not Cause.BEHIND:  # a redrive counts from 0
            failed.append(now)
        else:
            running.append(before.key)
    return Answers(asked, done, running, failed, waiting)


async def _held_of(store: Store, keys: Iterable[ParkedKey]) -> Sequence[ParkedKey]:
    subscriptions = {one.subscription for one in keys}
    return [one for name in sorted(subscriptions) for one in await held_keys(store, name)]
