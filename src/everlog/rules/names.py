"""What the stored names of an app stand for at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from everlog.errors import StoreError


class Names(NamedTuple):
    """What the stored names stand for now."""

    generations: Mapping[str, int]
    """Subscription → its generation."""
    states: Mapping[str, tuple[str, int]]
    """State → the subscription that owns it, and that one's generation."""

    def generation(self, subscription: str) -> int:
        """Return the generation of a subscription.

        Raises:
            StoreError: It is not registered.
        """
        found = self.generations.get(subscription)
        if found is None:
            raise StoreError(f"subscription {subscription!r} is not in the store: register the app that declares it")
        return found

    def state(self, name: str) -> tuple[str, int]:
        """Return the owner of a state, and its generation.

        Raises:
            StoreError: It is not registered.
        """
        found = self.states.get(name)
        if found is None:
            raise StoreError(f"state {name!r} is not in the store: register the app that declares it")
        return found
