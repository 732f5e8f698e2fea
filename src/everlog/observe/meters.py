"""Meters: what one process counts and measures, and how that of several becomes one."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal, NamedTuple, Protocol, runtime_checkable

import msgspec


class Family(NamedTuple):
    """One metric, as Prometheus names it; that of a counter gets `_total` behind it."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets, from the lowest to the highest; one without a bound follows."""


_SUBSCRIPTION: Final = ("app", "subscription")
_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_UNITS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)

LAG_EVENTS: Final = Family(
    "everlog_subscription_lag_events", "gauge", "Events that are not finished, those held back included.", _SUBSCRIPTION
)
LAG_SECONDS: Final = Family(
    "everlog_subscription_lag_seconds",
    "gauge",
    "Age of the oldest event that was not looked at; 0 where there is none.",
    _SUBSCRIPTION,
)
PAUSED: Final = Family("everlog_subscription_paused", "gauge", "1 while what the handlers need does not answer.", _SUBSCRIPTION)
BLOCKED_KEYS: Final = Family("everlog_blocked_keys", "gauge", "Keys whose first event failed and is tried again.", _SUBSCRIPTION)
PARKED_KEYS: Final = Family("everlog_parked_keys", "gauge", "Keys that wait until somebody says what to do.", _SUBSCRIPTION)
HELD_EVENTS: Final = Family("everlog_held_events", "gauge", "Events of blocked and parked keys.", _SUBSCRIPTION)
HANDLED: Final = Family(
    "everlog_events_handled",
    "counter",
    "Events whose handler ended without an error. What runs again after a conflict counts again.",
    _SUBSCRIPTION,
)
FAILED: Final = Family("everlog_failures", "counter", "Attempts of a handler that failed.", _SUBSCRIPTION)
RETRIES: Final = Family("everlog_retries", "counter", "Failed attempts that are followed by another one.", _SUBSCRIPTION)
PARKED: Final = Family("everlog_parked", "counter", "Times that a key was parked.", _SUBSCRIPTION)
SKIPPED: Final = Family("everlog_skipped_events", "counter", "Events that were passed over, as on_error says.", _SUBSCRIPTION)
OUTBOX: Final = Family("everlog_outbox_events", "gauge", "Events that wait to be sent to the log.", ("app",))
OUTBOX_REFUSED: Final = Family("everlog_outbox_refused_events", "gauge", "Those of them that the log refuses.", ("app",))
SENT: Final = Family("everlog_outbox_sent_events", "counter", "Events of handlers that were sent to the log.", ("app",))
COMMIT_SECONDS: Final = Family(
    "everlog_commit_seconds", "histogram", "Time until the store has committed a group of units.", ("app",), _SECONDS
)
GROUP_UNITS: Final = Family(
    "everlog_group_units", "histogram", "Units, of a handler's call each, that were committed together.", ("app",), _UNITS
)
SYNC_SECONDS: Final = Family(
    "everlog_sync_seconds",
    "histogram",
    "Time of one COMMIT in the file of the log or of a store: writing, and fsync.",
    ("port", "app"),
    _SECONDS,
)
WORKER_UP: Final = Family("everlog_worker_up", "gauge", "1 while the worker's apps are running.", ("worker",))
WORKER_STARTS: Final = Family("everlog_worker_starts", "counter", "Times that the worker was started.", ("worker",))
BUILD_INFO: Final = Family("everlog_build_info", "gauge", "Always 1; the label says the version.", ("version",))

FAMILIES: Final[Sequence[Family]] = (
    LAG_EVENTS, LAG_SECONDS, PAUSED, BLOCKED_KEYS, PARKED_KEYS, HELD_EVENTS, HANDLED, FAILED, RETRIES, PARKED, SKIPPED,
    OUTBOX, OUTBOX_REFUSED, SENT, COMMIT_SECONDS, GROUP_UNITS, SYNC_SECONDS, WORKER_UP, WORKER_STARTS, BUILD_INFO,
)  # fmt: skip
_GAUGES: Final = frozenset(family.name for family in FAMILIES if family.kind == "gauge")

Labels = tuple[str, ...]


@runtime_checkable
class Measured(Protocol):
    """What a log or a store can do beside its port: tell how long its commits take."""

    def measure(self, told: Callable[[float], None]) -> None:
        """From now on, call `told` with the seconds of each commit, from any thread."""
        ...


class Histogram:
    """How often a value was in each bucket. Added to by one thread."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Of each bucket alone; the last one has no bound."""
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Number(NamedTuple):
    """A counter or a gauge, by the name of its family."""

    name: str
    labels: Labels
    value: float


class Buckets(NamedTuple):
    """A histogram, by the name of its family."""

    name: str
    labels: Labels
    counts: list[int]
    total: float


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """What was counted up to one moment."""

    numbers: list[Number]
    histograms: list[Buckets]


class Meters:
    """What one process counts. Written on its event loop, histograms in a thread each, and read from any."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, Labels], float] = {}
        self._histograms: dict[tuple[str, Labels], Histogram] = {}

    def add(self, family: Family, amount: float, *labels: str) -> None:
        """Count; a counter that was added to, if only 0, is shown."""
        place = (family.name, labels)
        self._numbers[place] = self._numbers.get(place, 0) + amount

    def set(self, family: Family, value: float, *labels: str) -> None:
        """Set a gauge."""
        self._numbers[family.name, labels] = value

    def histogram(self, family: Family, *labels: str) -> Histogram:
        """Return a histogram to add to."""
        return self._histograms.setdefault((family.name, labels), Histogram(family.bounds))

    def forget_gauges(self, app: str) -> None:
        """Show no more where an app stands: it does not run here any more."""
        for name, labels in list(self._numbers):
            if name in _GAUGES and labels[:1] == (app,):
                self._numbers.pop((name, labels), None)

    def snapshot(self) -> Snapshot:
        """Return what was counted so far."""
        # `list` of a dictionary is one step to other threads; what they add meanwhile is in the next one.
        return Snapshot(
            [Number(name, labels, value) for (name, labels), value in list(self._numbers.items())],
            [
                Buckets(name, labels, list(histogram.counts), histogram.total)
                for (name, labels), histogram in list(self._histograms.items())
            ],
        )


def merged(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Return the snapshots of several processes as one: the sums of what they count, and the highest of what they see."""
    numbers: dict[tuple[str, Labels], float] = {}
    histograms: dict[tuple[str, Labels], Buckets] = {}
    for snapshot in snapshots:
        for name, labels, value in snapshot.numbers:
            known = numbers.get((name, labels), 0.0)
            numbers[name, labels] = max(known, value) if name in _GAUGES else known + value
        for one in snapshot.histograms:
            place = (one.name, one.labels)
            before = histograms.get(place)
            if before is None:
                histograms[place] = one
            else:
                counts = [mine + theirs for mine, theirs in zip(before.counts, one.counts, strict=True)]
                histograms[place] = Buckets(one.name, one.labels, counts, before.total + one.total)
    return Snapshot([Number(*place, value) for place, value in numbers.items()], list(histograms.values()))


def lasting(snapshot: Snapshot) -> Snapshot:
    """Return what stays true of a process that has ended: what it has counted, and not where things stood."""
    return Snapshot([number for number in snapshot.numbers if number.name not in _GAUGES], snapshot.histograms)
