"""What a subscription has done in this process."""

from __future__ import annotations


class Tally:
    """Counted per burst of events, per batch and per failure, whether anybody asks for it or not. Never goes back."""

    __slots__ = ("failed", "handled", "parked", "retries", "skipped")

    def __init__(self) -> None:
        self.handled = 0
        """Events whose handler ended without an error."""
        self.failed = 0
        """Attempts that failed."""
        self.retries = 0
        """Those that are followed by another attempt."""
        self.parked = 0
        """Times that a key was parked."""
        self.skipped = 0
        """Events that were passed over."""
