"""What can happen to files at rest: flipped bits, lost and strange sectors, a shorter file, a side file that is gone or of another moment."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Final, NamedTuple

from tests.faults.damage_anatomy import FRAME, FRAME_HEADER, PAGE, WAL_HEADER, Span, anatomy, by_structure
from tests.faults.damage_facts import Files, Healthy, copied, laid_out

from everlog.drivers.sqlite.connection import connect, disconnect
from everlog.drivers.sqlite.rows import rows_of
from everlog.logs.sqlite.tables import LOG

_SECTOR: Final = 512
_CHUNK_HEADER: Final = 28


class Fault(NamedTuple):
    """Damaged files, and how they became so."""

    structure: str
    what: str
    files: Files


def faults(healthy: Healthy, count: int, dice: random.Random) -> Iterator[Fault]:
    """Yield so many faults: side files first, then two thirds flipped bits, and sectors and lengths in equal parts."""
    spans = anatomy(healthy.files)
    left = count
    for fault in islice(_whole_files(healthy), count):
        left -= 1
        yield fault
    lengths, sectors = left // 6, left // 6
    yield from islice(_lengths(healthy, dice), lengths)
    yield from islice(_sectors(healthy, spans, dice), sectors)
    yield from islice(_flips(healthy, by_structure(spans), dice), left - lengths - sectors)


def _whole_files(healthy: Healthy) -> Iterator[Fault]:
    files = healthy.files
    for suffix in files:
        name = suffix[1:] or "database"
        yield Fault(name, "is empty", {**files, suffix: b""})
        yield Fault(name, "is gone", {other: content for other, content in files.items() if other != suffix})
    for suffix in ("-wal", "-bell", "-turn"):
        if suffix in healthy.earlier:
            yield Fault(suffix[1:], "is of an earlier moment", {**files, suffix: healthy.earlier[suffix]})


def _lengths(healthy: Healthy, dice: random.Random) -> Iterator[Fault]:
    """Yield files cut at the ends of their pages and frames, and inside of them."""

    def cut(suffix: str, at: int) -> Fault:
        name = f"{suffix[1:] or 'database'}, cut"
        if suffix == "" and at > len(files[""]) - PAGE:
            name += " inside its last page"
        return Fault(name, f"at byte {at}", {**files, suffix: files[suffix][:at]})

    files = healthy.files
    for suffix in cycle([suffix for suffix in ("", "-wal", "") if files.get(suffix)]):
        size = len(files[suffix])
        if suffix == "":
            page = dice.randrange(size // PAGE) * PAGE
            yield cut(suffix, page + dice.choice((0, 1, 99, 100, _SECTOR, PAGE // 2, PAGE - 8, PAGE - 1)))
        else:
            frame = WAL_HEADER + dice.randrange((size - WAL_HEADER) // FRAME) * FRAME
            within = (0, 1, FRAME_HEADER - 1, FRAME_HEADER, FRAME_HEADER + _SECTOR, FRAME - 8, FRAME - 1)
            yield cut(suffix, dice.choice((dice.randrange(WAL_HEADER), *[frame + at for at in within])))


def _sectors(healthy: Healthy, spans: list[Span], dice: random.Random) -> Iterator[Fault]:
    """Yield files of which a sector or a whole page of the disk came back as zeros, or as something else."""
    ways: Mapping[str, Callable[[int], bytes]] = {"zeros": bytes, "noise": dice.randbytes}
    files = healthy.files
    while True:
        suffix = dice.choice([suffix for suffix in ("", "-wal") if files.get(suffix)])
        size = dice.choice((_SECTOR, PAGE))
        start = dice.randrange(len(files[suffix]) // size) * size
        way = dice.choice(list(ways))
        body = bytearray(files[suffix])
        body[start : start + size] = ways[way](size)
        structure = next(span.structure for span in spans if span.suffix == suffix and span.start <= start < span.stop)
        yield Fault(
            f"{size} bytes, {structure}", f"{way} at byte {start} of {suffix or 'the database'}", {**files, suffix: bytes(body)}
        )


def chunk_faults(closed: Healthy, folder: Path, dice: random.Random) -> Iterator[Fault]:
    """Yield logs in which a bit of a chunk was flipped before its page got its checksum, as faulty memory does."""
    for part in cycle(("header", "offsets", "envelope", "data")):
        path = laid_out(closed.files, folder, closed.name)
        connection = connect(path, LOG, create=False, writes=True)
        number, body = dice.choice(rows_of(connection, "SELECT id, body FROM chunk"))
        at, bit = dice.choice(chunk_parts(body)[part]), dice.randrange(8)
        flipped = bytearray(body)
        flipped[at] ^= 1 << bit
        connection.execute("UPDATE chunk SET body = ? WHERE id = ?", (bytes(flipped), number))
        disconnect(connection)
        yield Fault(f"chunk, {part}", f"bit {bit} of byte {at} of chunk {number} flipped in memory", copied(path))


def chunk_parts(body: bytes) -> Mapping[str, range]:
    """Return where the parts of a chunk stand; the drawing is in `everlog.codec`."""
    count, extension, envelope, data = struct.unpack_from("<IIII", body, 8)
    offsets = _CHUNK_HEADER + 4 * count
    ends = (0, _CHUNK_HEADER, offsets, offsets + extension + envelope, offsets + extension + envelope + data)
    assert ends[-1] == len(body)
    return dict(zip(("header", "offsets", "envelope", "data"), map(range, ends, ends[1:]), strict=True))


def _flips(healthy: Healthy, structures: Mapping[str, list[Span]], dice: random.Random) -> Iterator[Fault]:
    """Yield files with one bit flipped, the structures in turn, each as often as the others."""
    for name in cycle(sorted(structures)):
        span = dice.choice(structures[name])
        at, bit = dice.randrange(span.start, span.stop), dice.randrange(8)
        body = bytearray(healthy.files[span.suffix])
        body[at] ^= 1 << bit
        what = f"bit {bit} of byte {at} of {span.suffix or 'the database'} flipped"
        yield Fault(name, what, {**healthy.files, span.suffix: bytes(body)})
