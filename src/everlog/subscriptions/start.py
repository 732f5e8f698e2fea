"""What is checked and decided before a subscription handles its first event: whose log this is, and where to begin."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Final

from everlog.contracts.topic import Topic
from everlog.errors import StartUndecided, StoreReplaced, WrongLog
from everlog.log import Log
from everlog.position import Offset, TopicPartition
from everlog.store import Progress, Registered, Store, SubscriptionStatus
from everlog.subscriptions.declaration import AppDeclaration, SubscriptionDeclaration
from everlog.subscriptions.fit import Fit, compare

UNDECIDED_EVENTS: Final = 10_000
"""So many events of history are handled without being asked for."""


async def check_log(app: str, log: Log, store: Store, registered: Registered) -> Fit:
    """Check that progress, outbox and log belong together; return what was found.

    Raises:
        WrongLog: The progress belongs to another log, or the log was put back from a backup that is older than the store.
        StoreReplaced: The log holds records of this store's relay that the store knows nothing of.
    """
    if registered.log is not None and registered.log != log.identity:
        raise WrongLog(
            f"the store of app {app!r} belongs to log {registered.log}, and this log is {log.identity}: give the log that it was used with, "
            f"put its backup back with `everlog restore --from FILE`, or give another store with --store-url"
        )
    fit = await compare(app, log, store)
    mend = f"restore a newer backup, or see with `everlog restore {app}` what going on would mean"
    for one in fit.beyond:
        raise WrongLog(
            f"subscription {one.subscription!r} has handled {_shown(one.where)} up to offset {one.through}, and the log has that history "
            f"{_up_to(one.ends)}: the log is older than the store, and what others publish now would be taken for handled. Of the log, {mend}"
        )
    for landmark in fit.gone:
        raise WrongLog(
            f"the log held an event at offset {landmark.offset} of {_shown(landmark.where)} when app {app!r} last worked with it, and it is not there: "
            f"the log is older than the store. Of the log, {mend}"
        )
    for lost in fit.lost:
        raise WrongLog(
            f"the log had acknowledged event number {lost.store} of app {app!r} in {_shown(lost.where)}, and holds them {_up_to(lost.log)}: "
            f"the log is older than the store, and events are missing in it. Of the log, {mend}"
        )
    for unknown in fit.unknown:
        raise StoreReplaced(
            f"the log holds event number {unknown.log} of this store in {_shown(unknown.where)}, and the store has given them "
            f"{_up_to(unknown.store)}: the store is older than the log, so that its next events would be taken for old ones. Of the store, {mend}"
        )
    if fit.later is not None:
        raise StoreReplaced(
            f"the log holds events of incarnation {fit.later} of this store, and the store is incarnation {store.incarnation}: the store is "
            f"older than the log, so that its next events would be in it twice. Of the store, {mend}"
        )
    if fit.reported:
        events = sum(one.reported - one.through for one in fit.reported)
        raise StoreReplaced(
            f"app {app!r} has handled {events:,} events before that its store knows nothing of: the store is older than the log, and would handle "
            f"them again. Of the store, {mend}"
        )
    return fit


def _shown(where: TopicPartition) -> str:
    return f"{where.topic}/{where.partition}"


def _up_to(number: int) -> str:
    return "not at all" if number < 0 else f"up to {number}"


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
            f"--new-types now to handle them from here on, handle their past too with `everlog replay MODULE:{app.name} --subscription {name}`, or "
            f"give the handler to a new subscription, which begins at the first event"
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
    """Check that an app has not worked with another store since it did with this one.

    Args:
        app: The app.
        store: Its store.
        reports: The store that each app reported its progress from, as `everlog.progress` has it.

    Raises:
        StoreReplaced: It has: going on would handle again what that store has handled, and publish again what it has published.
    """
    other = reports.get(app)
    if other is not None and other != str(store.identity):
        raise StoreReplaced(
            f"app {app!r} has worked with store {other} on this log, and this one is {store.identity}: it would handle again what that one "
            f"has handled. Give the store that it used before (--store-url), or put its backup back with `everlog restore {app} --from FILE`; "
            f"if it is lost, `everlog restore {app}` goes on with this one and publishes nothing twice, and --accept-new-store does both again"
        )
