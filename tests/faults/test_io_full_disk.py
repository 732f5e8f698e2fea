"""A disk that is really full: publishing is refused, reading works, and all resumes by itself when there is room."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.processes.yard import ROOT

import everlog


@pytest.fixture(scope="module")
def unshare(tmp_path_factory: pytest.TempPathFactory) -> Sequence[str]:
    """The command that gives a process mounts of its own: as an ordinary user, or as root."""
    folder = tmp_path_factory.mktemp("mount")
    reasons: list[str] = []
    for command in (["unshare", "-Urm"], ["unshare", "-m"]):
        try:
            tried = subprocess.run(
                [*command, "mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)],
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            reasons.append(str(error))
            continue
        if not tried.returncode:
            return command
        reasons.append(tried.stderr.strip())
    if os.environ.get("EVERLOG_REQUIRE_SERVERS"):
        pytest.fail(f"expected to be allowed to mount a small disk, found {reasons}")
    pytest.skip(f"needs the right to mount a small disk: {reasons}")


@pytest.mark.parametrize("which", ["log", "store"])
async def test_a_full_disk_refuses_loses_nothing_and_work_resumes_when_there_is_room(
    which: str, unshare: Sequence[str], tmp_path: Path
) -> None:
    source = str(Path(everlog.__file__).parents[1])
    child = await asyncio.create_subprocess_exec(
        *unshare, sys.executable, "-m", "tests.faults.io_full_disk", which, str(tmp_path),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([source, str(ROOT)])},
    )  # fmt: skip
    said, errors = await child.communicate()
    assert child.returncode == 0, errors.decode()[-3_000:]
    assert json.loads(said) == []
