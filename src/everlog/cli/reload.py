"""What `everlog run --reload` watches: the Python files of the current folder."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Final

from everlog.errors import CommandRefused

_OTHERS: Final = frozenset({"node_modules", "__pycache__", "site-packages"})


def is_watched(path: PurePath, folder: PurePath) -> bool:
    """Return whether a change of this file is one of the user's code: a Python file in no hidden folder, and of no installed package."""
    if path.suffix != ".py" or not path.is_relative_to(folder):
        return False
    folders = path.relative_to(folder).parent.parts
    return not any(name.startswith(".") or name in _OTHERS for name in folders)


def check_installed() -> None:
    """Refuse where the package that watches files is missing.

    Raises:
        CommandRefused: It is missing.
    """
    if find_spec("watchfiles") is None:
        raise CommandRefused("--reload needs the package watchfiles: pip install 'everlog[reload]'")


async def changes(folder: Path) -> AsyncGenerator[str]:
    """Yield the name of a changed file, once for what changes at the same time.

    Raises:
        OSError: The folder cannot be watched, for instance for want of inotify watches.
    """
    import watchfiles  # only `--reload` needs it, and not everybody has it

    def is_change(_: object, path: str) -> bool:
        return is_watched(PurePath(path), folder)

    # Its types name trio, which need not be there.
    async for found in watchfiles.awatch(folder, watch_filter=is_change):  # pyright: ignore[reportUnknownMemberType]
        first, *others = sorted(str(PurePath(path).relative_to(folder)) for _, path in found)
        yield f"{first} and {len(others)} more" if others else first
