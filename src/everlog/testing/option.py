"""Whether worlds are made of real files: what the test runner was told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Option:
    """Set once, by the pytest plugin, before the first test."""

    is_real: bool = False


runner = Option()
"""The option of this process's test runner."""
