"""The tree that is drawn on top of `errors.py` is the tree of its classes."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from everlog import errors

_LINE = re.compile(r"^(?P<rails>(?:│   |    )*)(?P<branch>├── |└── )?(?P<name>[A-Z]\w+) *(?P<text>.*)$")
_LEVEL_WIDTH = 4


class Drawn(NamedTuple):
    name: str
    parent: str | None
    text: str


def drawn(docstring: str) -> list[Drawn]:
    """Read the drawing: the lines from the root of the tree to the end of the docstring."""
    lines = docstring.splitlines()
    start = lines.index("EverlogError")
    found: list[Drawn] = []
    ancestors: list[str] = []
    for line in lines[start:]:
        if not line.strip():
            break
        match = _LINE.match(line)
        assert match is not None, f"not a line of a tree: {line!r}"
        depth = len(match["rails"]) // _LEVEL_WIDTH + 1 if match["branch"] else 0
        assert depth <= len(ancestors), f"a branch without a parent: {line!r}"
        del ancestors[depth:]
        found.append(Drawn(match["name"], ancestors[-1] if ancestors else None, match["text"].strip()))
        ancestors.append(match["name"])
    return found


def defined() -> dict[str, str | None]:
    """Return the parent of each class of the module; ``None`` for the root."""
    return {
        name: None if value is errors.EverlogError else value.__bases__[0].__name__
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, BaseException) and value.__module__ == errors.__name__
    }


TREE = drawn(errors.__doc__ or "")


def test_every_class_is_drawn_below_its_base() -> None:
    assert {line.name: line.parent for line in TREE} == defined()


def test_no_class_is_drawn_twice() -> None:
    assert len({line.name for line in TREE}) == len(TREE)


def test_every_class_has_one_base_so_that_a_tree_can_show_it() -> None:
    assert [name for name in defined() if len(vars(errors)[name].__bases__) != 1] == []


@pytest.mark.parametrize("line", TREE[1:], ids=lambda line: line.name)
def test_every_line_says_what_the_error_means(line: Drawn) -> None:
    assert line.text


@pytest.mark.parametrize("name", sorted(defined()))
def test_every_class_has_a_docstring_of_its_own(name: str) -> None:
    assert vars(errors)[name].__dict__["__doc__"]


def test_a_class_drawn_below_another_parent_is_seen() -> None:
    wrong = "EverlogError\n├── LogError    x\n└── StoreError    x\n    └── TopicMissing    x\n"
    assert Drawn("TopicMissing", "StoreError", "x") in drawn(wrong)


def test_a_line_without_a_text_is_seen() -> None:
    assert drawn("EverlogError\n└── LogError\n")[1].text == ""


def test_a_line_that_hangs_from_nothing_is_seen() -> None:
    with pytest.raises(AssertionError, match="without a parent"):
        drawn("EverlogError\n│   └── TopicMissing    x\n")
