"""Looking at the machine: each thing that can be wrong with one, and this one."""

from __future__ import annotations

import resource
from pathlib import Path

import apsw
import pytest

from everlog.drivers.sqlite import machine as module
from everlog.finding import Finding, Level
from everlog.testing.clock import ManualClock

Patch = pytest.MonkeyPatch


def found() -> dict[str, Finding]:
    findings = module.examine_machine(ManualClock())
    assert {one.subject for one in findings} == {"machine"}
    return {one.name: one for one in findings}


@pytest.mark.parametrize(
    ("version", "level"),
    [("3.40.1", Level.PROBLEM), ("3.51.2", Level.PROBLEM), ("3.51.3", Level.OK), ("3.54.1", Level.OK), ("4.0.0", Level.OK)],
)
def test_a_sqlite_that_loses_commits_is_a_problem(monkeypatch: Patch, version: str, level: Level) -> None:
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: version)
    finding = found()["SQLite"]
    assert finding.level is level
    assert finding.found.startswith(f"{version}, from apsw ")
    assert ("pip install --upgrade apsw" in finding.advice) == (level is Level.PROBLEM)


@pytest.mark.parametrize(
    ("most", "level", "text"),
    [
        (255, Level.WARNING, "255 in a process"),
        (256, Level.OK, "256 in a process"),
        (resource.RLIM_INFINITY, Level.OK, "no limit"),
    ],
)
def test_few_open_files_are_a_warning(monkeypatch: Patch, most: int, level: Level, text: str) -> None:
    def limits(_: int) -> tuple[int, int]:
        return most, most

    monkeypatch.setattr(resource, "getrlimit", limits)
    finding = found()["open files"]
    assert (finding.level, finding.found) == (level, text)


def test_low_limits_of_inotify_are_a_warning(monkeypatch: Patch, tmp_path: Path) -> None:
    (tmp_path / "max_user_instances").write_text("63\n")
    (tmp_path / "max_user_watches").write_text("1024\n")
    monkeypatch.setattr(module, "_INOTIFY", tmp_path)
    findings = found()
    assert findings["inotify instances"].level is Level.WARNING
    assert findings["inotify instances"].advice.endswith("sysctl fs.inotify.max_user_instances=512")
    assert findings["inotify watches"] == Finding("machine", "inotify watches", Level.OK, "1,024 for a user")


def test_without_inotify_nothing_is_said_of_it(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_INOTIFY", tmp_path / "nowhere")
    assert not any(name.startswith("inotify") for name in found())


def test_a_boot_that_cannot_be_told_is_a_problem(monkeypatch: Patch) -> None:
    def hidden() -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(module, "this_process", hidden)
    finding = found()["clock"]
    assert finding.level is Level.PROBLEM
    assert "give /proc to the container" in finding.advice


def test_the_boot_of_this_machine_can_be_told() -> None:
    assert found()["clock"].level is Level.OK
