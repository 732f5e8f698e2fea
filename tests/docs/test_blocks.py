"""Every program in `docs/reference.md` does what the page says that it prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import everlog

REFERENCE = (Path(__file__).parents[2] / "docs/reference.md").read_text()
PROGRAMS = re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```\n\n[^\n]*\n\n```text\n(.*?)```", REFERENCE, re.DOTALL)


def test_every_program_has_a_name_and_says_what_it_prints() -> None:
    assert len(PROGRAMS) == REFERENCE.count("```python") > 0


@pytest.mark.parametrize(("name", "text", "printed"), PROGRAMS, ids=[name for name, _, _ in PROGRAMS])
def test_the_program_prints_what_the_page_says(name: str, text: str, printed: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("EVERLOG_")}
    environment = kept | {"HOME": str(tmp_path.parent), "PYTHONPATH": str(Path(everlog.__file__).parents[1])}
    ended = subprocess.run(
        [sys.executable, name], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert sorted(ended.stdout.splitlines()) == sorted(printed.splitlines())
