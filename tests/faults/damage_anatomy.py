"""Which structure each byte of a SQLite file and of what lies beside it belongs to.

Sources: https://sqlite.org/fileformat2.html (1.3 the header, 1.5 free pages, 1.6 pages of a b-tree, 1.7 overflow pages, 1.8 pointer maps,
4 the WAL), and `cksumvfs` for the 8 bytes at the end of each page.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from tests.faults.damage_facts import Files

PAGE: Final = 4_096
CHECKSUM: Final = 8
WAL_HEADER: Final = 32
FRAME_HEADER: Final = 24
FRAME: Final = FRAME_HEADER + PAGE
_USABLE: Final = PAGE - CHECKSUM
_MAP_ENTRIES: Final = _USABLE // 5
_KINDS: Final[Mapping[int, str]] = {2: "interior index", 5: "interior table", 10: "leaf index", 13: "leaf table"}


class Span(NamedTuple):
    """Consecutive bytes of one structure."""

    structure: str
    suffix: str
    """Of the file: empty for the database itself."""
    start: int
    stop: int


def anatomy(files: Files) -> list[Span]:
    """Return every byte of the files, each in one span, in the order in which they stand."""
    spans = [span for number in range(1, len(files[""]) // PAGE + 1) for span in _page(files[""], number)]
    if files.get("-wal"):
        spans.extend(_wal(files["-wal"]))
    spans.extend(Span(suffix[1:], suffix, 0, len(files[suffix])) for suffix in ("-bell", "-turn") if files.get(suffix))
    return spans


def by_structure(spans: list[Span]) -> Mapping[str, list[Span]]:
    """Return the spans of each structure; none is empty."""
    found: dict[str, list[Span]] = {}
    for span in spans:
        if span.stop > span.start:
            found.setdefault(span.structure, []).append(span)
    return found


def _page(database: bytes, number: int) -> Iterator[Span]:
    base = (number - 1) * PAGE
    end = base + _USABLE
    kind = _kind(database, number)
    if kind == "b-tree":
        yield from _tree_page(database, number)
    else:
        yield Span(kind, "", base, end)
    yield Span("page checksum", "", end, end + CHECKSUM)


def _kind(database: bytes, number: int) -> str:
    """Return what a page is, as the pointer maps say: SQLite keeps them where room is to be given back."""
    if number == 1:
        return "b-tree"
    at = (number - 2) // (_MAP_ENTRIES + 1) * (_MAP_ENTRIES + 1) + 2  # the number of the page that maps it
    if at == number:
        return "pointer map"
    entry = database[(at - 1) * PAGE + 5 * (number - at - 1)]
    if entry == 2:
        return "free trunk page" if number in _trunks(database) else "free leaf page"
    return {1: "b-tree", 3: "overflow page", 4: "overflow page", 5: "b-tree"}[entry]


def _trunks(database: bytes) -> Iterator[int]:
    (number,) = struct.unpack_from(">I", database, 32)
    while number:
        yield number
        (number,) = struct.unpack_from(">I", database, (number - 1) * PAGE)


def _tree_page(database: bytes, number: int) -> Iterator[Span]:
    base = (number - 1) * PAGE
    start = base + (100 if number == 1 else 0)
    if number == 1:
        yield Span("file header", "", 0, 100)
    kind, _, cells, content = struct.unpack_from(">BHHH", database, start)
    pointers = start + (12 if kind in (2, 5) else 8)
    name = _KINDS[kind]
    yield Span("b-tree page header", "", start, pointers)
    yield Span("cell pointers", "", pointers, pointers + 2 * cells)
    yield Span("unused room of a page", "", pointers + 2 * cells, base + content)
    yield Span(f"cells, {name}", "", base + content, base + _USABLE)


def _wal(wal: bytes) -> Iterator[Span]:
    """Yield the header, the frames that count, and those that an earlier use of the file has left behind them."""
    salts = wal[16:24]
    yield Span("WAL header", "-wal", 0, WAL_HEADER)
    counts = True
    for at in range(WAL_HEADER, len(wal), FRAME):
        counts = counts and wal[at + 8 : at + 16] == salts
        name = "WAL frame" if counts else "WAL frame of before"
        yield Span(f"{name}, header", "-wal", at, at + FRAME_HEADER)
        yield Span(f"{name}, page", "-wal", at + FRAME_HEADER, at + FRAME - CHECKSUM)
        yield Span(f"{name}, page checksum", "-wal", at + FRAME - CHECKSUM, at + FRAME)
