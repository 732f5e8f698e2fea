"""What is checked and decided before a subscription handles its first event: whose log this is, and where to begin."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Final

from everlog.contracts.topic import Topic
from everlog.errors import StartUndecided, StoreReplaced, WrongLog
from everlog.log import Log
from everlog.position import Offset, TopicPartition
from everlog.store import Progress, Registered, Store, SubscriptionStatus, relay_producer
from everlog.subscriptions.declaration import AppDeclaration, SubscriptionDeclaration

UNDECIDED_EVENTS: Final = 10_000
"""So many events of history are handled without being asked for."""


async def check_log(app: str, log: Log, store: Store, registered: Registered) -> None:
    """Check that progress, outbox and log belong together.

    Raises:
        WrongLog: The progress belongs to another log, or lies beyond the end of this one.
        StoreReplaced: The log holds records of this store's relay that the store knows nothing of.
    """
    if registered.log is not None and registered.log != log.identity:
        raise WrongLog(
            f"the store of app {app!r} belongs to log {registered.log}, and this log is {log.identity}: "
            f"give the log that it was used with, or another store with --store-url"
        )
    status = await store.status()
    heads: dict[TopicPartition, Offset] = {}
    for topic in await log.topics():
        heads.update((await log.head(topic.name)).offsets)
    for subscription in status.subscriptions:
        for progress in subscription.progress:
            if progress.through > heads.get(progress.where, Offset(-1)):
                raise WrongLog(
                    f"subscription {subscription.name!r} has handled {progress.where.topic}/{progress.where.partition} up to offset "
                    f"{progress.through}, and the log ends at {heads.get(progress.where, 'nothing')}: the log is older than the store. "
                    f"Restore the log from a newer backup, or begin anew with another store (--store-url)"
                )
    issued = await store.issued()
    producer = relay_producer(store.identity, store.incarnation)
    for name in {where.topic for where in heads}:
        for partition, highest in (await log.last_sequence(producer, name)).items():
            if highest > issued.get(TopicPartition(name, partition), -1):
                raise StoreReplaced(
                    f"the log holds event number {highest} of this store in {name}/{partition}, and the store has given "
                    f"{issued.get(TopicPartition(name, partition), -1)}: the store is older than the log, so that its next events would be "
                    f"taken for old ones. Restore the newest backup of the store"
                )


async def unseen_types(app: AppDeclaration, log: Log) -> frozenset[str]:
    """Return the types of the app that the log has never heard of: no event of theirs can have been passed by."""
    known = {name for spec in await log.topics() for name in spec.types}
    return (
        frozenset(branch.contract.name for subscription in app.subscriptions for branch in subscription.branches.values()) - known
    )


def check_grown(app: AppDeclaration, registered: Registered, accepted: Container[str]) -> None:
    """Check that no subscription has got a type whose past it has read over.

    Raises:
        StartUndecided: One has; names the types and what to say.
    """
    for name, grown in registered.grown.items():
        types = [one for one in grown if one not in accepted]
        if not types:
            continue
        raise StartUndecided(
            f"subscription {name!r} of app {app.name!r} handles {', '.join(types)} now, on topics that it has already read: say "
            f"--new-types now to handle them from here on, or give the handler to a new subscription, which begins at the first event"
        )


async def begin(
    log: Log, store: Store, declaration: SubscriptionDeclaration, stored: SubscriptionStatus | None
) -> Sequence[Topic]:
    """Set where a subscription begins on topics that it has no progress on; return these topics.

    Raises:
        StartUndecided: More than 10,000 events are waiting, and the app does not say whether to handle them.
    """
    known = {progress.where.topic for progress in stored.progress} if stored is not None else set[str]()
    new = [topic for topic in declaration.topics if topic.name not in known]
    start = declaration.delivery.start
    if start is None and new:
        waiting = 0
        for topic in new:
            first = await log.first(topic.name)
            waiting += (await log.backlog(topic.name, {where.partition: offset for where, offset in first.offsets.items()})).count
        if waiting > UNDECIDED_EVENTS:
            raise StartUndecided(
                f"subscription {declaration.name!r} of app {declaration.app!r} is new, and {waiting:,} events are waiting: write "
                f'Delivery(start="beginning") to handle them all, or Delivery(start="now") for what comes from now on'
            )
    offsets: dict[TopicPartition, Offset] = {}
    for topic in new:
        if start is None or start == "beginning":
            position = await log.first(topic.name)
        elif start == "now":
            position = await log.head(topic.name)
        else:
            position = await log.position_at(topic.name, start)
        offsets.update(position.offsets)
    await store.begin(declaration.name, [Progress(where, offset) for where, offset in offsets.items()])
    return new


def check_replaced(app: str, store: Store, reports: Mapping[str, str]) -> None:
    """Check that an app with a new store did not work with another one before.

    Args:
        app: The app.
        store: Its store, which has no progress yet.
        reports: The store that each app reported its progress from, as `everlog.progress` has it.

    Raises:
        StoreReplaced: It did: going on would handle everything again.
    """
    other = reports.get(app)
    if other is not None and other != str(store.identity):
        raise StoreReplaced(
            f"app {app!r} has worked with store {other} on this log, and this one is new: it would handle everything again. Give the "
            f"store that it used before (--store-url), or say --accept-new-store if that is what you want"
        )
