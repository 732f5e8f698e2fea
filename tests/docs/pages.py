"""Pages that are run: the blocks of a page, one after the other, in one folder and one shell.

- ```` ```python title="NAME.py" ```` writes that file, and so does any other block with a title; a later one replaces it.
- ```` ```python ```` without a title runs as a program in the folder.
- ```` ```console ````: what stands behind `$ ` is typed into one bash, in which `&` and `kill %1` work. It has to end with 0, or with what
  `# exits with N` says. The lines below it have to come, in their order, within a quarter of a minute; `…` in a line stands for anything.
- ```` ```sh ```` runs as well, unless `<!-- not run: why -->` stands above it: then its syntax, and each `everlog` in it, are checked.
- ```` ```json ````, `toml` and `ini` have to be well-formed; `text` is for people.

`pip install` does nothing: the packages are here. Port 8000 is replaced by a free one.
"""

from __future__ import annotations

import configparser
import json
import os
import queue
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.docs.test_reference import COMMANDS

import everlog

PATIENCE_S = 15.0
LANGUAGES = {"python", "console", "sh", "json", "toml", "ini", "text"}
_FENCE = re.compile(r"^\s*(?:```|~~~)", re.MULTILINE)
_END = "everlog-page-end"


class Block(NamedTuple):
    """One block of code of a page."""

    line: int
    language: str
    title: str | None
    is_run: bool
    body: str


def blocks_of(text: str) -> list[Block]:
    """Return the blocks of a page."""
    found: list[Block] = []
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        if not lines[at].startswith("```"):
            assert not _FENCE.match(lines[at]), f"line {at + 1}: a block that is indented is not run: {lines[at]!r}"
            at += 1
            continue
        info, start = lines[at][3:].strip(), at
        at += 1
        while lines[at] != "```":
            at += 1
        language, _, attributes = info.partition(" ")
        title = re.search(r'title="([^"]+)"', attributes)
        above = next((line for line in reversed(lines[:start]) if line), "")
        found.append(
            Block(
                start + 1,
                language,
                title and title[1],
                not above.startswith("<!-- not run:"),
                "\n".join(lines[start + 1 : at]) + "\n",
            )
        )
        at += 1
    return found


class Shell:
    """One bash, whose output can be waited for."""

    def __init__(self, folder: Path) -> None:
        commands = folder.parent / f"{folder.name}-commands"
        commands.mkdir()
        (commands / "pip").write_text("#!/bin/sh\n")
        (commands / "pip").chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("EVERLOG_", "PYTHON", "PYTEST"))}
        environment = kept | {
            "HOME": str(folder.parent),
            "PATH": f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(Path(everlog.__file__).parents[1]),
            "COLUMNS": "120",
        }
        self._popen = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._number = 0

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            self._lines.put(line.rstrip("\n"))

    def run(self, command: str, expected: list[str]) -> None:
        """Type a command, and wait for its end and for what is expected of it.

        Raises:
            AssertionError: It ended otherwise, or something expected did not come.
        """
        wanted = re.search(r"# exits with (\d+)\s*$", command)
        self._number += 1
        mark = f"{_END}-{self._number}"
        assert self._popen.stdin is not None
        self._popen.stdin.write(f"{command}\necho {mark} $?\n")
        self._popen.stdin.flush()
        code: int | None = None
        said: list[str] = []
        left = list(expected)
        while code is None or left:
            try:
                line = self._lines.get(timeout=PATIENCE_S)
            except queue.Empty:
                raise AssertionError(f"$ {command}\nexpected: {left[:1] or 'its end'}\nfound:\n" + "\n".join(said)) from None
            if line.startswith(mark):
                code = int(line.split()[1])
                continue
            said.append(line)
            if left and _is_like(left[0], line):
                left.pop(0)
        assert code == (int(wanted[1]) if wanted else 0), f"$ {command}\nended with {code}:\n" + "\n".join(said)

    def close(self) -> None:
        """Kill it, with all that it started."""
        listed = subprocess.run(
            ["ps", "-o", "pid=", "-s", str(self._popen.pid)], capture_output=True, text=True, check=False
        ).stdout.split()
        for pid in listed:
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._popen.wait()
        for stream in (self._popen.stdin, self._popen.stdout):
            assert stream is not None
        self._reader.join()
        assert self._popen.stdout is not None
        assert self._popen.stdin is not None
        self._popen.stdout.close()
        try:
            self._popen.stdin.close()
        except BrokenPipeError:
            pass


def _is_like(expected: str, line: str) -> bool:
    pattern = ".*".join(re.escape(part.strip()) for part in expected.split("…"))
    return re.search(pattern, " ".join(line.split()) if "  " not in expected else line) is not None


def run(page: Path, folder: Path, shell: Shell, port: int) -> None:
    """Run the blocks of a page.

    Raises:
        AssertionError: One of them does not do what the page says; names page and line.
    """
    for block in blocks_of(page.read_text()):
        try:
            _run(block._replace(body=block.body.replace("8000", str(port))), folder, shell)
        except (AssertionError, ValueError, subprocess.SubprocessError, configparser.Error) as error:
            raise AssertionError(f"{page.name}:{block.line}: {error}") from error


def _run(block: Block, folder: Path, shell: Shell) -> None:
    assert block.language in LANGUAGES, f"{block.language!r} is no language of the runner: {', '.join(sorted(LANGUAGES))}"
    if block.language == "json":
        json.loads(block.body)
    elif block.language == "toml":
        tomllib.loads(block.body)
    elif block.language == "ini":
        configparser.ConfigParser(strict=False, interpolation=None).read_string(block.body)
    elif block.language == "python":
        try:
            compile(block.body, block.title or "block", "exec")
        except SyntaxError as error:
            raise ValueError(str(error)) from error
    if block.title is not None:
        (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
        (folder / block.title).write_text(block.body)
    elif not block.is_run:
        assert block.language in ("sh", "python"), "only sh and python may be left out"
        if block.language == "sh":
            check_shell(block.body)
    elif block.language == "python":
        (folder / "block_of_page.py").write_text(block.body)
        shell.run("python block_of_page.py", [])
    elif block.language in ("console", "sh"):
        for command, expected in steps(block):
            shell.run(command, expected)


def steps(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Yield each command of a block with the lines that are expected of it."""
    if block.language == "sh":
        yield from ((line, []) for line in block.body.splitlines() if line)
        return
    assert block.body.startswith("$ "), "a console begins with a command"
    for step in re.split(r"^\$ ", block.body, flags=re.MULTILINE)[1:]:
        command, *rest = step.splitlines()
        while command.endswith("\\"):
            command += "\n" + rest.pop(0)
        yield command, [line for line in rest if line]


def check_shell(text: str) -> None:
    """Check the syntax of commands that are not run, and that each `everlog` among them has such a command and such flags."""
    ended = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        places = [at for at, word in enumerate(words) if word == "everlog" or word.endswith("bin/everlog")]
        for at in places:
            if words[at + 1 : at + 2] and words[max(at - 1, 0)] not in ("-u", "--system"):
                _check_command(words[at + 1 :], line)


def _check_command(words: list[str], line: str) -> None:
    name = f"everlog {words[0]}"
    if f"{name} {' '.join(words[1:2])}" in COMMANDS:
        name = f"{name} {words[1]}"
    assert name in COMMANDS, f"there is no `{name}`: {line}"
    strange = [word for word in words if word.startswith("--") and word.partition("=")[0] not in COMMANDS[name]]
    assert not strange, f"`{name}` has no {strange[0]}: {line}"


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell in an empty folder."""
    folder = tmp_path / "page"
    folder.mkdir()
    opened = Shell(folder)
    try:
        yield opened
    finally:
        opened.close()


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        number: int = listening.getsockname()[1]
        return number
