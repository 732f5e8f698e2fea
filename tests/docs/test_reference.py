"""`docs/reference.md` names every setting with its default, every command with its flags, and every error."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from everlog import Delivery, errors
from everlog.cli.root import app
from everlog.settings import Settings

REFERENCE = (Path(__file__).parents[2] / "docs/reference.md").read_text()


def rows(section: str) -> dict[str, list[str]]:
    """Return the rows of a section's tables, by the name in their first cell."""
    text = REFERENCE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    cells = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines() if line.startswith("| `")
    ]
    return {row[0].strip("`"): row[1:] for row in cells}


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield each command with its flags."""

    def walk(command: object, path: str) -> Iterator[tuple[str, list[str]]]:
        inner: dict[str, object] = getattr(command, "commands", {})
        if not inner or getattr(command, "invoke_without_command", False):
            flags = [flag for parameter in getattr(command, "params") for flag in parameter.opts if flag.startswith("-")]  # noqa: B009 typer has no public type for it
            yield path, flags
        for name, child in inner.items():
            yield from walk(child, f"{path} {name}")

    yield from walk(get_command(app), "everlog")


COMMANDS = dict(commands())


def section_of(command: str) -> str:
    """Return what stands below a command's heading."""
    found = re.search(rf"^### `{command}(?: [^`]*)?`\n(.*?)(?=^##|\Z)", REFERENCE, re.DOTALL | re.MULTILINE)
    assert found is not None, f"{command} has no heading"
    return found[1]


@pytest.mark.parametrize("field", dataclasses.fields(Settings), ids=lambda field: field.name)
def test_a_setting_stands_there_with_its_variable_and_its_default(field: dataclasses.Field[object]) -> None:
    variable, flag, default, meaning = rows("Settings")[field.name]
    assert variable == f"`EVERLOG_{field.name.upper()}`"
    assert flag.strip("`") in COMMANDS["everlog run"]
    assert default == f"`{field.default!r}`"
    assert meaning


def test_no_setting_stands_there_that_is_none() -> None:
    assert list(rows("Settings")) == [field.name for field in dataclasses.fields(Settings)]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_stands_there_with_its_flags(command: str) -> None:
    section = section_of(command)
    missing = [flag for flag in COMMANDS[command] if flag != "--help" and f"`{flag}" not in section]
    assert not missing


@pytest.mark.parametrize("command", COMMANDS)
def test_no_flag_stands_there_that_the_command_has_not(command: str) -> None:
    named = re.findall(r"`(--[a-z-]+)", section_of(command))
    assert [flag for flag in named if flag not in COMMANDS[command]] == []


def test_no_command_stands_there_that_is_none() -> None:
    headings = re.findall(r"^### `(everlog [a-z ]*[a-z])", REFERENCE, re.MULTILINE)
    assert headings == list(dict.fromkeys(headings))
    assert set(headings) == set(COMMANDS)


def test_the_flags_of_the_root_stand_there() -> None:
    root = get_command(app)
    for parameter in root.params:
        assert f"everlog {parameter.opts[0]}" in REFERENCE or parameter.opts[0] == "--help"


def error_classes() -> list[str]:
    """Return the name of every error."""
    return [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.EverlogError)]


@pytest.mark.parametrize("name", error_classes())
def test_an_error_stands_there_with_its_cause_and_what_to_do(name: str) -> None:
    cause, remedy = rows("Errors")[name]
    assert cause.endswith(".")
    assert remedy.endswith(".")


def test_no_error_stands_there_that_is_none() -> None:
    assert list(rows("Errors")) == error_classes()


def test_what_is_retryable_is_what_the_page_says() -> None:
    retryable = [name for name in error_classes() if getattr(errors, name).retryable]
    said = re.search(r"it is true of (.*?)\.", REFERENCE)
    assert said is not None
    assert re.findall(r"`(\w+)`", said[1]) == retryable


@pytest.mark.parametrize("field", dataclasses.fields(Delivery), ids=lambda field: field.name)
def test_a_field_of_delivery_stands_there_with_its_default(field: dataclasses.Field[object]) -> None:
    default: object = "{}" if field.default is dataclasses.MISSING else field.default
    shown = f'"{default}"' if isinstance(default, str) and default != "{}" else str(default)
    assert rows("Handlers")[field.name][0] == f"`{shown}`"


@pytest.mark.parametrize("word", rows("Words in messages"))
def test_a_word_that_is_explained_is_in_a_message_or_on_a_page_for_users(word: str) -> None:
    root = Path(__file__).parents[2]
    texts = [literal for path in (root / "src").rglob("*.py") for literal in re.findall(r'f?"([^"\n]{12,})"', path.read_text())]
    pages = [
        (root / "docs/operations.md").read_text(),
        (root / "README.md").read_text(),
        REFERENCE.partition("\n## Words in messages\n")[0],
    ]
    assert any(re.search(rf"\b{word}s?\b", text) for text in [*texts, *pages])


def test_all_words_of_messages_that_nobody_can_know_are_explained() -> None:
    assert {"slot", "lease", "generation", "landmark", "chunk", "bell", "turn", "outbox"} <= rows("Words in messages").keys()
