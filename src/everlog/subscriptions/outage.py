"""Outages: when so many keys fail that it is what the handlers need that is down, the subscription pauses and tries one event now and then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from everlog.clock import Clock

WINDOW_KEYS: Final = 100
"""So many keys are looked at: those whose events were handled last."""
WINDOW_S: Final = 30.0
"""And none that is older: long ago says nothing about now, and the first retries of a key give up after about a minute."""
LEAST_OF_MANY: Final = 20
"""From so many keys on, more than half of them are an outage."""
LEAST_OF_ONE_CLASS: Final = 3
"""Fewer are one if all of them failed with one class of error, and at least so many."""
PROBE_FIRST_S: Final = 1.0
PROBE_MOST_S: Final = 60.0

_Result = tuple[float, type[BaseException] | None]


class Outage:
    """What the last keys came to, and whether the subscription is paused.

    Nothing is noted while nothing fails, so that the normal path pays for none of it. Decides only; who asks acts.

    Args:
        clock: The time.
        random: Gives a number from 0 up to 1, for the pauses between probes.
    """

    def __init__(self, clock: Clock, random: Callable[[], float]) -> None:
        self._clock = clock
        self._random = random
        self._last: dict[str, _Result] = {}  # the key handled last is the last one
        self._probes = 0
        self._failed_s = 0.0
        self.is_listening = False
        """Something has failed lately: successes count too."""
        self.reason: str | None = None
        """Why it is paused; ``None`` where it is not."""

    def succeeded(self, key: str) -> bool:
        """Note that an event of a key was handled; tells whether that ends a pause."""
        self._note(key, None)
        is_over, self.reason = self.reason is not None, None
        if is_over:
            self._last = {key: self._last[key]}
        if self._clock.monotonic_s() - self._failed_s > WINDOW_S:
            self._last.clear()
            self.is_listening = False
        return is_over

    def failed(self, key: str, error: BaseException) -> bool:
        """Note that an event of a key failed; tells whether that begins a pause."""
        self.is_listening = True
        self._failed_s = self._clock.monotonic_s()
        self._note(key, type(error))
        if self.reason is not None:
            return False
        self.reason = self._why()
        self._probes = 0
        return self.reason is not None

    def next_probe_s(self) -> float:
        """Return for how long to wait before the next probe, in seconds: longer each time."""
        longest_s: float = min(PROBE_MOST_S, PROBE_FIRST_S * 2.0 ** min(self._probes, 10))
        self._probes += 1
        return longest_s * (0.5 + 0.5 * self._random())

    def _note(self, key: str, cls: type[BaseException] | None) -> None:
        now_s = self._clock.monotonic_s()
        self._last.pop(key, None)
        self._last[key] = now_s, cls
        while len(self._last) > WINDOW_KEYS or next(iter(self._last.values()))[0] < now_s - WINDOW_S:
            del self._last[next(iter(self._last))]

    def _why(self) -> str | None:
        failed = [cls for _, cls in self._last.values() if cls is not None]
        classes = {cls.__name__ for cls in failed}
        if len(failed) == len(self._last) >= LEAST_OF_ONE_CLASS and len(classes) == 1:
            return f"the last {len(failed)} keys all failed with {classes.pop()}"
        if len(self._last) >= LEAST_OF_MANY and 2 * len(failed) > len(self._last):
            most = max(sorted(classes), key=[cls.__name__ for cls in failed].count)
            return f"{len(failed)} of the last {len(self._last)} keys failed, most with {most}"
        return None
