"""Whether the code that runs now is a handler: set once per worker, read by `Client.publish`."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

in_handler: Final[ContextVar[bool]] = ContextVar("everlog_in_handler", default=False)
