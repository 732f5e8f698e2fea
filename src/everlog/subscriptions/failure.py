"""What a failed handler leaves behind: one line for people, and the traceback."""

from __future__ import annotations

import traceback
from typing import Final

TRACE_BYTES: Final = 8_192
_LINE_CHARACTERS: Final = 500


def describe(error: BaseException) -> tuple[str, str]:
    """Return an error as one line, and its traceback cut to its last 8 KiB."""
    text = " ".join(str(error).split())
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    trace = "".join(traceback.format_exception(error))
    if len(trace.encode(errors="replace")) > TRACE_BYTES:
        trace = "…" + trace.encode(errors="replace")[-TRACE_BYTES:].decode(errors="ignore")
    return line[:_LINE_CHARACTERS], trace
