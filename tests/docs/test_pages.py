"""Every block of the tutorial, of the how-to guides and of the explanations runs, and prints what its page says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.pages import Shell, blocks_of, check_shell, free_port, run, shell

import everlog
from everlog import testing

__all__ = ["shell"]

DOCS = Path(__file__).parents[2] / "docs"
TUTORIAL = sorted((DOCS / "tutorial").glob("*.md"))
PAGES = sorted([*(DOCS / "how-to").glob("*.md"), *(DOCS / "explanation").glob("*.md"), DOCS / "index.md"])
ELSEWHERE = {
    "README.md": "test_quickstart.py",
    "docs/reference.md": "test_blocks.py",
    "docs/operations.md": "test_operations.py",
}


SHOWN = {"docs/performance.md": {"console"}, "docs/decisions/README.md": {"markdown"}}
"""How to measure, which takes a quarter of an hour; and the form of a decision."""


def test_the_tutorial_runs_from_its_first_page_to_its_last(shell: Shell, tmp_path: Path) -> None:
    assert len(TUTORIAL) >= 5
    port = free_port()
    for page in TUTORIAL:
        run(page, tmp_path / "page", shell, port)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_runs(page: Path, shell: Shell, tmp_path: Path) -> None:
    run(page, tmp_path / "page", shell, free_port())


def test_no_page_has_blocks_that_nothing_runs() -> None:
    root = DOCS.parent
    run_here = {*TUTORIAL, *PAGES, *(root / name for name in ELSEWHERE)}
    found: dict[str, set[str]] = {}
    for page in DOCS.rglob("*.md"):
        languages = {block.language for block in blocks_of(page.read_text())} - {"text"}
        if page not in run_here and languages:
            found[str(page.relative_to(root))] = languages
    assert found == SHOWN


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```console\n$ echo one\ntwo\n```", "expected: ['two']"),
        ("```console\n$ false\n```", "ended with 1"),
        ("```console\n$ true  # exits with 3\n```", "ended with 0"),
        ("```console\n$ echo b; echo a\na\nb\n```", "expected: ['b']"),
        ("```python\nraise SystemExit(2)\n```", "ended with 2"),
        ('```python title="a.py"\nx = (\n```', "was never closed"),
        ("```json\n{\n```", "Expecting property name"),
        ("```toml\na = \n```", "Invalid value"),
        ("```ini\n[a]\nno key\n```", "no key"),
        ("```brainfuck\n+\n```", "is no language of the runner"),
        ("<!-- not run: x -->\n\n```console\n$ true\n```", "only sh and python may be left out"),
        ("<!-- not run: x -->\n\n```sh\neverlog fly\n```", "there is no `everlog fly`"),
        ("<!-- not run: x -->\n\n```sh\neverlog run a --fast\n```", "`everlog run` has no --fast"),
        ("<!-- not run: x -->\n\n```sh\nif true\n```", "syntax error"),
        ("- a\n\n  ```sh\n  false\n  ```", "a block that is indented is not run"),
    ],
)
def test_a_page_that_does_not_say_what_is_true_fails(
    text: str, message: str, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.docs.pages.PATIENCE_S", 1.0)
    (tmp_path / "wrong.md").write_text(text + "\n")
    with pytest.raises(AssertionError) as caught:
        run(tmp_path / "wrong.md", tmp_path / "page", shell, 1)
    assert message in str(caught.value)


def built(folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a folder that has `mkdocs.yml`."""
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder / "built")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_site_is_built_without_a_warning_and_without_the_network(tmp_path: Path) -> None:
    for name in ("docs", "src"):
        shutil.copytree(DOCS.parent / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(DOCS.parent / "mkdocs.yml", tmp_path)
    right = built(tmp_path)
    assert (right.returncode, "WARNING" in right.stderr) == (0, False), right.stderr
    pages = {page.relative_to(tmp_path / "built").with_suffix("") for page in (tmp_path / "built").rglob("*.html")}
    assert {page.relative_to(DOCS).with_suffix("") for page in DOCS.rglob("*.md") if page.name != "README.md"} <= pages
    page = (tmp_path / "built/index.html").read_text()
    assert not re.search(r'(?:src|href)="https?://(?!(?:squidfunk\.github\.io|www\.mkdocs))', page), "it would ask the network"
    world = (tmp_path / "built/api/testing.html").read_text()
    assert "expire_lease" in world
    (tmp_path / "docs/index.md").write_text("[nowhere](nowhere.md)\n")
    wrong = built(tmp_path)
    assert (wrong.returncode, "nowhere.md" in wrong.stderr) == (1, True), wrong.stderr


def test_each_public_name_is_on_one_page_of_the_python_api() -> None:
    named = re.findall(r"^::: (\S+)$", "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md")), re.MULTILINE)
    assert len(named) == len(set(named))
    exported = {f"everlog.{name}" for name in everlog.__all__} | {f"everlog.testing.{name}" for name in testing.__all__}
    assert exported - {"everlog.blocking"} <= set(named)
    assert {"everlog.blocking.blocking", "everlog.errors"} <= set(named)


def test_a_page_that_says_what_is_true_passes(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "right.md").write_text(
        '```python title="a.py"\nprint("one two three")\n```\n\n```console\n$ python a.py & sleep 0\none … three\n$ exit_with() { return 3; }\n'
        "$ exit_with  # exits with 3\n$ pip install nothing-of-this-name\n$ wait %1\n```\n"
    )
    run(tmp_path / "right.md", tmp_path / "page", shell, 1)


def test_commands_that_exist_are_fine_where_they_are_not_run() -> None:
    check_shell(
        "sudo -u everlog EVERLOG_LOG_URL=sqlite:/a /srv/.venv/bin/everlog status --max-lag 5\nsystemctl enable --now everlog-billing\n"
    )
