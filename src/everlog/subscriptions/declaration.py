"""What a subscription is, frozen before anything runs: the runtime is given this and never the `App`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec

from everlog.contracts.contract import Contract
from everlog.contracts.topic import Topic
from everlog.errors import DeclarationError
from everlog.store import AppSpec, SubscriptionSpec
from everlog.subscriptions.delivery import Delivery
from everlog.subscriptions.handler import Batching, Handler
from everlog.subscriptions.reset import Reset


class Branch(msgspec.Struct, frozen=True):
    """How events of one type are handled."""

    contract: Contract[Any]
    handler: Handler


class ThreadBranch(Branch, frozen=True):
    """How events of one type are handled by a plain function: in a thread."""


class SubscriptionDeclaration(msgspec.Struct, frozen=True):
    """A name with its own progress, and what it does."""

    app: str
    name: str
    branches: Mapping[str, Branch]
    """By the type's name on the wire."""
    states: Sequence[str]
    delivery: Delivery
    reset: Reset | None = None
    """Empties the app's own tables when a replay begins."""
    renamed_from: str | None = None
    """The name that it may be stored under still."""

    @property
    def topics(self) -> Sequence[Topic]:
        """The topics that it reads, by name."""
        topics = {branch.contract.topic.name: branch.contract.topic for branch in self.branches.values()}
        return [topics[name] for name in sorted(topics)]

    @property
    def batching(self) -> Batching | None:
        """How its events are put together; ``None`` where they are handled one by one."""
        return next((branch.handler.batching for branch in self.branches.values()), None)

    @property
    def slots(self) -> int:
        """How many slots it has: the number of partitions of each of its topics."""
        return self.topics[0].partitions

    def check(self) -> None:
        """Check what can be known without a log.

        Raises:
            DeclarationError: It handles nothing, or topics with different numbers of partitions.
        """
        if not self.branches:
            raise DeclarationError(
                f"subscription {self.name!r} of app {self.app!r} handles nothing: give it a handler with .on(…)"
            )
        counts = {topic.name: topic.partitions for topic in self.topics}
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"{name} has {count}" for name, count in counts.items())
            raise DeclarationError(
                f"subscription {self.name!r} reads topics with different numbers of partitions ({shown}), so that one key would be in "
                f"two processes: give the topics equal numbers, or use two subscriptions"
            )

    def spec(self) -> SubscriptionSpec:
        """Return what a store remembers of it."""
        types: dict[str, list[str]] = {}
        for name, branch in sorted(self.branches.items()):
            types.setdefault(branch.contract.topic.name, []).append(name)
        return SubscriptionSpec(self.name, types, list(self.states), self.renamed_from)


class AppDeclaration(msgspec.Struct, frozen=True):
    """An app: its name, its subscriptions, and what its handlers are given."""

    name: str
    subscriptions: Sequence[SubscriptionDeclaration]
    lifespan: Callable[[], AbstractAsyncContextManager[Any]] | None

    @property
    def topics(self) -> Sequence[Topic]:
        """Every topic that it handles or says it publishes to, by name."""
        topics: dict[str, Topic] = {}
        for subscription in self.subscriptions:
            for branch in subscription.branches.values():
                for contract in (branch.contract, *branch.handler.returns):
                    topics[contract.topic.name] = contract.topic
        return [topics[name] for name in sorted(topics)]

    def spec(self) -> AppSpec:
        """Return what a store remembers of it."""
        return AppSpec(self.name, [subscription.spec() for subscription in self.subscriptions])
