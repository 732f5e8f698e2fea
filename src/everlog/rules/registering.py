"""Who may use a store: its own app, with every subscription that it holds; and what may be forgotten while nobody works on it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from everlog.errors import CommandRefused, StartRefused, SubscriptionMissing
from everlog.finding import Judgement, Level
from everlog.store import AppSpec, SubscriptionSpec, passed_by

FIRST_GENERATION = 1
OF_A_SUBSCRIPTION = (
    "state", "owned", "progress", "muted", "held", "holding", "request", "timer", "lease", "attempt", "skipped"
)  # fmt: skip
"""The tables with rows of a subscription, in every store that has tables."""


def check_app(stored: str | None, app: AppSpec) -> None:
    """Check that a store is the app's.

    Raises:
        StartRefused: It belongs to another.
    """
    if stored is not None and stored != app.name:
        raise StartRefused(
            f"the store belongs to app {stored!r}, and this is {app.name!r}: give it a store of its own with --store-url, "
            f"or put {{app}} into the URL"
        )


def renamed(app: AppSpec, stored: Collection[str]) -> Sequence[tuple[str, str]]:
    """Return the subscriptions that have another name now: the old one and the new one."""
    declared = {spec.name for spec in app.subscriptions}
    return [
        (spec.renamed_from, spec.name)
        for spec in app.subscriptions
        if spec.renamed_from is not None
        and spec.renamed_from in stored
        and spec.renamed_from not in declared
        and spec.name not in stored
    ]


def check_idle(old: str, new: str, live: Mapping[int, Mapping[str, Sequence[str]]]) -> None:
    """Check that nobody works on a subscription under its old name.

    Args:
        old, new: Its names.
        live: What each live member handles.

    Raises:
        StartRefused: Somebody does.
    """
    at_work = [number for number, handles in live.items() if old in handles]
    if at_work:
        raise StartRefused(
            f"subscription {new!r} is called {old!r} in the store, and {len(at_work)} process(es) with the older code work on it: stop them first"
        )


def check_declared(app: AppSpec, stored: Collection[str]) -> None:
    """Check that the code has all that is stored.

    Raises:
        SubscriptionMissing: It lacks one.
    """
    declared = {spec.name for spec in app.subscriptions}
    for subscription in stored:
        if subscription not in declared:
            raise SubscriptionMissing(app.name, subscription)


def grown(
    spec: SubscriptionSpec, stored: Mapping[str, Sequence[str]] | None, progressed: Collection[str]
) -> Mapping[str, Sequence[str]]:
    """Return the types that a subscription did not handle before, by topic: where it has passed events of theirs by.

    Args:
        spec: What it handles now.
        stored: What it handled before; ``None``: it is new.
        progressed: The topics in which it has progress.
    """
    if stored is None:
        return {}
    return {topic: types for topic, types in passed_by(spec.types, stored).items() if topic in progressed}


def remembered(spec: SubscriptionSpec, but: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
    """Return the types that are stored of a subscription.

    A type that the code dropped is forgotten: it is passed by from now on, so that its return is a growth again.
    """
    return {topic: [name for name in of_topic if name not in but.get(topic, ())] for topic, of_topic in spec.types.items()}


def check_retired(subscription: str, known: Collection[str], live: Mapping[int, Mapping[str, Sequence[str]]]) -> None:
    """Check that a subscription can be forgotten.

    Raises:
        CommandRefused: It is not stored, or somebody works on it.
    """
    if subscription not in known:
        raise CommandRefused(f"subscription {subscription!r} is not in the store: it holds {', '.join(sorted(known)) or 'none'}")
    at_work = [number for number, handles in live.items() if subscription in handles]
    if at_work:
        raise CommandRefused(f"subscription {subscription!r} is being handled by {len(at_work)} process(es): stop them first")


def check_incarnation(number: int, last: int, live: Collection[int]) -> None:
    """Check that a new incarnation can begin.

    Raises:
        CommandRefused: Somebody works on the store, or the number is not above the last one.
    """
    if live:
        raise CommandRefused(f"{len(live)} process(es) work on the store: stop them first")
    if number <= last:
        raise CommandRefused(f"expected an incarnation above {last}, found {number}: nothing was changed")


def owner_of(owner: str | None, app: str) -> Judgement:
    """Say whether a store is the app's."""
    if owner is None:
        return Judgement(Level.OK, "no app has used it yet")
    if owner != app:
        return Judgement(Level.PROBLEM, f"it belongs to app {owner!r}", "correct the app's name, or --store-url")
    return Judgement(Level.OK, owner)
