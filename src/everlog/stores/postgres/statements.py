"""A handler's statements: divided at semicolons, with `?` numbered, and refused where they are not a handler's to run.

Only what has to be known of a text is read: quotes, comments and dollar quotes are passed over as the server's scanner does
(https://www.postgresql.org/docs/current/sql-syntax-lexical.html). Each statement goes to the server by itself and prepared, so that the
server too refuses what holds more than one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

_TOKEN: Final = re.compile(
    r"""
      (?P<skip> --[^\n]* | \s+ )
    | (?P<comment> /\* )
    | (?P<string> (?: [eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' ) )
    | (?P<name> "(?:[^"]|"")*" )
    | (?P<dollar> \$(?:[A-Za-z_\x80-\uffff][\w\x80-\uffff]*)?\$ )
    | (?P<word> [A-Za-z_\x80-\uffff][\w$\x80-\uffff]* )
    | (?P<mark> \? )
    | (?P<end> ; )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_CONTROLS: Final = {
    **dict.fromkeys(
        ("BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE"),
        "transactions are Everlog's to begin and end",
    ),
    **dict.fromkeys(
        ("SET", "RESET", "DISCARD", "PREPARE", "DEALLOCATE", "EXECUTE", "DECLARE"), "it would stay behind for other handlers"
    ),
    **dict.fromkeys(("LISTEN", "UNLISTEN"), "the connection is not the handler's own"),
    **dict.fromkeys(("COPY",), "it needs the driver's own connection"),
    **dict.fromkeys(
        ("VACUUM", "CLUSTER", "REINDEX", "ANALYZE", "CHECKPOINT"), "it is no part of a transaction, or holds up others"
    ),
}
_TEMPORARY: Final = frozenset({"TEMP", "TEMPORARY"})


class Statement(NamedTuple):
    """One of a call."""

    text: str
    """With `$1`, `$2` … for the parameters."""
    parameters: int
    refused: str | None
    """Why it is not a handler's to run."""


def statements_of(query: str, *, own_schema: str) -> list[Statement]:
    """Return the statements of a call.

    Args:
        query: With `?` for the parameters; several are divided by semicolons.
        own_schema: What is named in there is the store's own.
    """
    found: list[Statement] = []
    pieces: list[str] = []
    words: list[str] = []
    marks = 0
    for kind, text in (*_tokens(query), ("end", ";")):
        if kind == "end":
            if words or marks or any(piece.strip() for piece in pieces):
                found.append(Statement("".join(pieces), marks, _why_refused(words, own_schema)))
            pieces, words, marks = [], [], 0
        elif kind == "mark":
            marks += 1
            pieces.append(f"${marks}")
        elif kind == "comment":
            pieces.append(" ")
        else:
            pieces.append(text)
            if kind in ("word", "name") or text == ".":
                words.append(text)
    return found


def _why_refused(words: list[str], own_schema: str) -> str | None:
    first = words[0].upper() if words else ""
    if first in _CONTROLS:
        return f"{first}: {_CONTROLS[first]}"
    if first == "CREATE" and not _TEMPORARY.isdisjoint(word.upper() for word in words[1:3]):
        return "temporary tables would stay behind for other handlers"
    for word, following in pairwise(words):
        if following == "." and (word.strip('"') if word.startswith('"') else word.lower()) == own_schema:
            return f"{own_schema} is the store's own: use tx.get, tx.put and the like, and another schema for tables of yours"
    return None


def _tokens(query: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(query):
        match = _TOKEN.match(query, at)
        assert match is not None  # `other` takes any character
        kind, text, at = str(match.lastgroup), match[0], match.end()
        if kind == "comment":
            at = _behind_comment(query, at)
        elif kind == "dollar":
            close = query.find(text, at)
            end = len(query) if close < 0 else close + len(text)
            text, at = text + query[at:end], end
        yield kind, text


def _behind_comment(query: str, at: int) -> int:
    """Return where a comment ends; they may be nested."""
    depth = 1
    while depth and at < len(query):
        if query.startswith("/*", at):
            depth, at = depth + 1, at + 2
        elif query.startswith("*/", at):
            depth, at = depth - 1, at + 2
        else:
            at += 1
    return at
