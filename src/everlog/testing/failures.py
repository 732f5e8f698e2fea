"""How a world says that a test has failed, beside the errors that handlers raise."""

from __future__ import annotations


class EventFailed(AssertionError):
    """An event was not handled, and no handler says why: it could not be read, or what its handler returned cannot be published."""


class Unsettled(AssertionError):
    """A world does not come to rest: a handler does not end, or what is left is never done."""
