"""The README's quickstart, run as it is printed: from a built wheel, in an empty folder, typed into a shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

ROOT = Path(__file__).parents[2]
PROMPT = "everlog-quickstart> "


def _section() -> str:
    return (ROOT / "README.md").read_text().partition("## Quickstart\n")[2].partition("\n## ")[0]


def _files() -> dict[str, str]:
    """Return the files of the quickstart: each is named in the line above its block."""
    return dict(re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", _section(), re.DOTALL))


def _steps() -> Iterator[tuple[str, list[str]]]:
    """Yield each command with the lines that the README shows below it."""
    command, shown = "", list[str]()
    for block in re.findall(r"```console\n(.*?)```", _section(), re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                if command:
                    yield command, shown
                command, shown = line[2:], []
            else:
                shown.append(line)
    yield command, shown


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that holds nothing but the built wheel and what it needs."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT], check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    (wheel,) = folder.glob("*.whl")
    python = str(folder / "venv/bin/python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    return folder / "venv/bin"


def test_the_quickstart_does_what_it_prints(installed: Path, tmp_path: Path) -> None:
    files = _files()
    assert set(files) == {"contracts.py", "loyalty.py"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("EVERLOG_", "PYTHON"))}
    environment = keep | {
        "PATH": f"{installed}:{os.environ['PATH']}",
        "PS1": PROMPT,
        "TERM": "dumb",
        "HOME": str(tmp_path.parent),
    }
    shell: pexpect.spawn[str] = pexpect.spawn(
        "/bin/bash",
        ["--norc", "--noprofile", "-i"],
        cwd=str(tmp_path),
        env=environment,
        encoding="utf-8",
        timeout=60,
        dimensions=(50, 250),
    )
    try:
        shell.expect_exact(PROMPT)
        seen = 0
        for command, shown in _steps():
            shell.sendline(command)
            shell.expect_exact(command)
            for line in shown:
                shell.expect_exact(line)
                seen += 1
            shell.sendline("true")  # a prompt may stand before what a job in the background prints
            shell.expect_exact("true")
            shell.expect_exact(PROMPT)
        assert seen == 2, "the README shows what each run prints"
    finally:
        shell.sendline("kill -9 %1 %2")
        shell.close(force=True)
