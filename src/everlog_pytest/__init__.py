"""The pytest plugin of Everlog: `--everlog-real`, the fixture `world`, and in the report of a failed test what was published and what became of it.

A package of its own, so that a pytest that does not use it imports nothing of Everlog.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from everlog.testing import World

_OPTION = "--everlog-real"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("everlog").addoption(
        _OPTION,
        action="store_true",
        default=False,
        help="make every testing.World of a real log and real stores, in files of a temporary folder",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Tell the worlds of the option."""
    if config.getoption(_OPTION):
        from everlog.testing.option import runner

        runner.is_real = True


def pytest_unconfigure(config: pytest.Config) -> None:
    """Take it back: pytest may run inside pytest."""
    if config.getoption(_OPTION):
        from everlog.testing.option import runner

        runner.is_real = False


@pytest.fixture
def world() -> Callable[..., World]:
    """Give a test what makes worlds, `everlog.testing.World`."""
    from everlog.testing import World

    return World


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[Any],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the story of a world in a section of its own, and not among the lines of the traceback."""
    stories = _stories(call.excinfo.value) if call.excinfo is not None else []
    report = yield
    report.sections.extend(("everlog", story) for story in stories)
    return report


def _stories(error: BaseException) -> list[str]:
    """Take the stories out of the notes of an error."""
    module = sys.modules.get("everlog.testing.story")
    notes: list[str] | None = getattr(error, "__notes__", None)
    if module is None or not notes:
        return []
    stories = [note for note in notes if isinstance(note, module.Story)]
    error.__notes__ = [note for note in notes if not isinstance(note, module.Story)]
    return [str(story) for story in stories]
