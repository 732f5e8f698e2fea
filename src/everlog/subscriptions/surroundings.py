"""What the engines of one process share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from everlog.clock import Clock
from everlog.log import Log
from everlog.store import Store
from everlog.subscriptions.careful import Careful
from everlog.subscriptions.committer import Committer
from everlog.subscriptions.outlets import Outlets
from everlog.subscriptions.overlay import Overlay


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the engines of one process share: the log, the store and how to get there, and what handlers are given."""

    app: str
    log: Log
    store: Store
    committer: Committer
    overlay: Overlay
    outlets: Outlets
    clock: Clock
    resources: object
    careful: Careful
    end: Callable[[str], NoReturn]
    """Ends the process at once, and says why."""
    dice: Callable[[], float]
    """Gives a number from 0 up to 1, for pauses that are not to be alike."""
