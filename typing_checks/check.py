"""Check that typed user code is checked: `good.py` is clean, and both checkers report each marked line of `mistakes.py`.

A change of the API that loses a type ("Any" where a state's type was) is not seen by a checker that runs over our own
code. Here it makes a mistake pass, and fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypedDict

FOLDER: Final = Path(__file__).resolve().parent
GOOD: Final = FOLDER / "good.py"
MISTAKES: Final = FOLDER / "mistakes.py"
MARK: Final = "# must be reported"

Reports = Mapping[Path, Mapping[int, str]]
"""What a checker says of each file: line, and the first message there."""


class _MypyReport(TypedDict):
    file: str
    line: int
    severity: str
    message: str


class _PyrightPosition(TypedDict):
    line: int


class _PyrightRange(TypedDict):
    start: _PyrightPosition


class _PyrightReport(TypedDict):
    file: str
    severity: str
    message: str
    range: _PyrightRange


class _PyrightAnswer(TypedDict):
    generalDiagnostics: list[_PyrightReport]


def by_mypy() -> Reports:
    """Ask mypy, with the configuration of the repository."""
    command = [sys.executable, "-m", "mypy", "--output", "json", str(GOOD), str(MISTAKES)]
    reports: list[_MypyReport] = [json.loads(line) for line in _output(command).splitlines()]
    found: dict[Path, dict[int, str]] = {}
    for report in reports:
        if report["severity"] == "error":
            found.setdefault((FOLDER.parent / report["file"]).resolve(), {}).setdefault(report["line"], report["message"])
    return found


def by_pyright() -> Reports:
    """Ask pyright, with a configuration of its own: the repository's leaves the mistakes out."""
    command = [sys.executable, "-m", "pyright", "--project", str(FOLDER / "pyrightconfig.json"), "--outputjson"]
    answer: _PyrightAnswer = json.loads(_output(command))
    found: dict[Path, dict[int, str]] = {}
    for report in answer["generalDiagnostics"]:
        if report["severity"] == "error":
            line = report["range"]["start"]["line"] + 1  # it counts from 0
            found.setdefault(Path(report["file"]).resolve(), {}).setdefault(line, report["message"])
    return found


CHECKERS: Final[Mapping[str, Callable[[], Reports]]] = {"mypy": by_mypy, "pyright": by_pyright}


def main() -> int:
    """Print every line where a checker and the marks differ, and return the exit code."""
    lines = MISTAKES.read_text(encoding="utf-8").splitlines()
    marked = {number for number, line in enumerate(lines, start=1) if MARK in line}
    wrong: list[str] = []
    for name, ask in CHECKERS.items():
        reports = ask()
        for path in reports.keys() - {MISTAKES}:
            wrong += [f"{path}:{line}: {name} reports right code: {text}" for line, text in sorted(reports[path].items())]
        reported = reports.get(MISTAKES, {})
        wrong += [f"{MISTAKES}:{line}: {name} misses it: {lines[line - 1].strip()}" for line in sorted(marked - reported.keys())]
        wrong += [
            f"{MISTAKES}:{line}: {name} reports an unmarked line: {reported[line]}" for line in sorted(reported.keys() - marked)
        ]
    print(*wrong, sep="\n", end="\n" if wrong else "")
    print(
        f"{len(marked)} seeded mistakes, {' and '.join(CHECKERS)}: {'FAILED' if wrong else 'all reported, right code is clean'}"
    )
    return 1 if wrong else 0


def _output(command: list[str]) -> str:
    """Return what a checker printed. Exit code 1 says that it found something; anything above, that it did not run."""
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=False)
    if done.returncode > 1:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
