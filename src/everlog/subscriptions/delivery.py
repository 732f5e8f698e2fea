"""How a subscription is delivered to: where it starts, how much at once, and what follows a failure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

from everlog.errors import DeclarationError, HandlerKilled


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again with exponential backoff and full jitter, then park. The defaults give up after about a minute.

    Attributes:
        attempts: How often a handler is called for one event, the first call included.
        first_s: The longest pause after the first failure, in seconds; it doubles with each.
        most_s: The longest pause of all, in seconds.
    """

    attempts: int = 12
    first_s: float = 0.2
    most_s: float = 30.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_s < 0 or self.most_s < self.first_s:
            raise DeclarationError(f"expected attempts of at least 1 and 0 ≤ first_s ≤ most_s, found {self}")

    def delay_s(self, attempt: int, *, random: Callable[[], float]) -> float | None:
        """Return the seconds to wait before the next attempt, or ``None`` to park the event.

        Args:
            attempt: The attempt that just failed; 1 for the first.
            random: Gives a number from 0 up to 1.
        """
        if attempt >= self.attempts:
            return None
        longest_s = self.first_s * 2.0 ** min(attempt - 1, 1_000)
        return min(self.most_s, longest_s) * random()


KILLED: Final = Retry(attempts=3, first_s=1.0)
"""What follows where a handler takes its process down: each attempt costs a process, and all that it was doing."""


def _is_exception(cls: object) -> bool:
    return isinstance(cls, type) and issubclass(cls, Exception)


Policy = Retry | Literal["park", "skip", "stop"]
"""What follows a failure: try again, keep it for a person, go on without it, or stop the slot."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a subscription is delivered to.

    Attributes:
        start: Where it begins on a log that it has never read: at the ``"beginning"``, with what comes from ``"now"`` on, or at a time.
            ``None`` is the beginning, unless more than 10,000 events are waiting: then the app must say.
        concurrency: Most handler calls in flight per process. Events of one key never overlap.
        time_limit_s: A handler that runs longer is cancelled, which counts as a failed attempt.
        on_error: What follows which exception; the closest class wins, `Retry()` is for the rest. A handler that takes its process down is
            `HandlerKilled`, which has to be named itself: three attempts are its default.
        on_gap: What to do when retention has deleted events that were not handled yet: ``"stop"``, or go on at the ``"oldest"``.
    """

    start: Literal["beginning", "now"] | datetime | None = None
    concurrency: int = 64
    time_limit_s: float = 30.0
    on_error: Mapping[type[Exception], Policy] = field(default_factory=dict[type[Exception], Policy])
    on_gap: Literal["stop", "oldest"] = "stop"

    def __post_init__(self) -> None:
        if isinstance(self.start, datetime):
            if self.start.tzinfo is None:
                raise DeclarationError(f"start={self.start!r} has no time zone: add tzinfo=UTC if that is what it means")
        elif self.start not in (None, "beginning", "now"):
            raise DeclarationError(f"expected start to be 'beginning', 'now', a datetime or None, found {self.start!r}")
        if self.concurrency < 1 or self.time_limit_s <= 0:
            raise DeclarationError(
                f"expected concurrency of at least 1 and time_limit_s above 0, found {self.concurrency} and {self.time_limit_s}"
            )
        for cls, policy in self.on_error.items():
            if not _is_exception(cls):
                raise DeclarationError(f"on_error: expected exception classes, found {cls!r}")
            if not isinstance(policy, Retry) and policy not in ("park", "skip", "stop"):
                raise DeclarationError(f"on_error[{cls.__name__}]: expected a Retry, 'park', 'skip' or 'stop', found {policy!r}")
        if self.on_gap not in ("stop", "oldest"):
            raise DeclarationError(f"expected on_gap to be 'stop' or 'oldest', found {self.on_gap!r}")

    @property
    def longest_pause_s(self) -> float:
        """The longest pause between two attempts, whatever the error."""
        return max([Retry().most_s, *(policy.most_s for policy in self.on_error.values() if isinstance(policy, Retry))])

    def policy(self, error: BaseException) -> Policy:
        """Return what follows an error: the policy of its closest class."""
        if isinstance(error, HandlerKilled):  # each attempt costs a process: a policy for other errors does not mean this
            return self.on_error.get(HandlerKilled, KILLED)
        for cls in type(error).__mro__:
            found = self.on_error.get(cls)
            if found is not None:
                return found
        return Retry()
