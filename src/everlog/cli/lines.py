"""JSON lines on their way into events: read as they come, in batches, each checked by its contract and named by its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Final, NamedTuple

import msgspec

from everlog.contracts.contract import Contract
from everlog.errors import EventRefused, EventTooLarge

BATCH: Final = 1_000
_READ_BYTES: Final = 1 << 20
"""Most that is taken at once: a file gives so much, and thus full batches; a pipe gives what it holds."""
_LONGEST_BYTES: Final = 16 << 20
"""No event may have more than 1 MB of JSON; what is longer than this without a line end is no file of lines."""

_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Line(NamedTuple):
    """One line that is not blank."""

    number: int
    """From 1, blank lines counted."""
    data: bytes


class Batch(NamedTuple):
    """Lines that were there at once: at most 1,000."""

    lines: Sequence[Line]
    read_bytes: int
    """Read of the stream so far."""


def batches(stream: BinaryIO, name: str) -> Iterator[Batch]:
    """Yield the lines of a stream as soon as they are there: a slow writer's line does not wait for a batch to be full.

    Raises:
        EventTooLarge: A line does not end.
    """
    read1 = getattr(stream, "read1", stream.read)  # read1 returns what there is; read waits for all of it
    number = read_bytes = 0
    rest: list[bytes] = []  # the pieces of a line that has not ended yet; joined once, as a line may be long
    rest_bytes = 0
    while data := read1(_READ_BYTES):
        read_bytes += len(data)
        if b"\n" not in data:
            rest.append(data)
            rest_bytes += len(data)
            if rest_bytes > _LONGEST_BYTES:
                raise EventTooLarge(f"{name}:{number + 1}: expected lines, found {rest_bytes:,} bytes without a line end")
            continue
        *whole, last = b"".join([*rest, data]).split(b"\n")
        rest, rest_bytes = [last], len(last)
        for start in range(0, len(whole), BATCH):
            piece = whole[start : start + BATCH]
            lines = [Line(number + at, line) for at, line in enumerate(piece, start=1) if line.strip()]
            number += len(piece)
            if lines:
                yield Batch(lines, read_bytes)
    if (line := b"".join(rest)).strip():
        yield Batch([Line(number + 1, line)], read_bytes)


def event_of(line: Line, contract: Contract[Any], name: str) -> Any:
    """Return the event that a line holds.

    Raises:
        EventRefused: It breaks the contract, or has a field that the type has not, whose value would be lost; names file, line and field.
    """
    place = f"{name}:{line.number}"
    try:
        event = contract.decode(line.data)
    except EventRefused as error:
        cause = error.__cause__
        said = cause if isinstance(cause, msgspec.MsgspecError | UnicodeDecodeError | RecursionError) else error
        raise EventRefused(f"{place}: {_fault(said)}") from error
    if line.data.lstrip()[:1] == b"{":
        known = contract.field_names()
        strange = [field for field in _object.decode(line.data) if known is not None and field not in known]
        if strange and known:
            raise EventRefused(f"{place}: field {strange[0]}: {contract.name!r} has none of that name: it has {', '.join(known)}")
    return event


def _fault(error: BaseException) -> str:
    """Turn ``Expected `int`, got `str` - at `$.lines[0].quantity` `` into ``field lines[0].quantity: expected int, found str``."""
    what, _, where = str(error).partition(" - at ")
    where = where.strip("`").removeprefix("$").removeprefix(".")
    what = what.replace("`", "").replace(", got ", ", found ")
    what = what[:1].lower() + what[1:] if isinstance(error, msgspec.ValidationError) else what
    if where:
        return f"field {where}: {what}"
    if isinstance(error, msgspec.DecodeError) and not isinstance(error, msgspec.ValidationError):
        return f"expected a JSON object, found broken JSON: {what[:1].lower() + what[1:] if what.startswith('Input') else what}"
    return what.replace("expected object, found", "expected a JSON object, found", 1)
