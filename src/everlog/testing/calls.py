"""What the handlers of a world were called for, and what became of each call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from everlog.clock import Clock
from everlog.position import Offset
from everlog.subscriptions.tx import Tx

Place = tuple[str, int, Offset]
"""Topic, partition, offset."""


@dataclass(slots=True)
class Told:
    """One call of a handler."""

    app: str
    subscription: str
    who: str
    """App and handler, as people read it."""
    places: Sequence[Place]
    key: str | None
    type: str
    at_s: float
    failed: Callable[[BaseException], None]
    """Called with what it raises."""
    did: str = "still runs"
    error: BaseException | None = None
    is_repeated: bool = False

    def returned(self, result: Any, tx: Tx[Any]) -> None:
        """Note that it ended well, with what it published."""
        emitted = [event for out in tx.outgoing for event in out.events]
        emitted += result if isinstance(result, list | tuple) else [] if result is None else [result]
        said = ", ".join(repr(event) for event in emitted)
        wrote = ", ".join(f"{state}{key}" for state, key in tx.writes)
        self.did = (
            "; ".join(part for part in (f"published {said}" if said else "", f"changed {wrote}" if wrote else "") if part)
            or "handled it"
        )

    def raised(self, error: BaseException) -> None:
        """Note that it failed."""
        self.error = error
        text = " ".join(str(error).split())
        self.did = f"raised {type(error).__name__}" + (f": {text[:200]}" if text else "")
        more = f" and {len(self.places) - 1} more" if len(self.places) > 1 else ""
        note = f"raised by {self.who} on {self.type} of key {self.key!r}{more}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        self.failed(error)

    def ended(self, how: str) -> None:
        """Note that it was ended by others."""
        self.did = how


@dataclass(slots=True)
class Calls:
    """All calls of a world, in their order, and what failed."""

    clock: Clock
    begun_s: float
    all: list[Told] = field(default_factory=list[Told])
    untold: list[BaseException] = field(default_factory=list[BaseException])
    """Failures that no test has been told of."""
    failures: list[BaseException] = field(default_factory=list[BaseException])
    """All failures, in their order."""

    def begin(self, app: str, subscription: str, place: str, handler: str, tx: Tx[Any]) -> Told:
        """Note that a handler is called."""
        records = [record.stored for record in tx.records]
        told = Told(
            app,
            subscription,
            f"{place}: {handler}",
            [(one.topic, one.partition, one.offset) for one in records],
            records[0].key,
            records[0].type,
            self.clock.monotonic_s() - self.begun_s,
            self.fail,
        )
        self.all.append(told)
        return told

    def fail(self, error: BaseException) -> None:
        """Note a failure, to be told."""
        self.failures.append(error)
        self.untold.append(error)

    def of(self, place: Place) -> Sequence[Told]:
        """Return the calls for a record."""
        return [told for told in self.all if place in told.places]

    def knows_failure(self, app: str, subscription: str, place: Place) -> bool:
        """Tell whether the last call of a subscription for a record raised an error."""
        last = next((one for one in reversed(self.of(place)) if (one.app, one.subscription) == (app, subscription)), None)
        return last is not None and last.error is not None
