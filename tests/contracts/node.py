"""The official tools of other languages, from the npm registry: installed once, beside their lock file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent / "asyncapi"


def ran(script: str, document: object) -> subprocess.CompletedProcess[str]:
    """Run a script of ours with a document as JSON on stdin."""
    node = _installed()
    return subprocess.run(
        [node, str(HERE / script)], input=json.dumps(document), capture_output=True, text=True, timeout=60, check=False
    )


def parsed(script: str, document: object) -> Any:
    """Run a script, which has to succeed, and return what it prints."""
    ended = ran(script, document)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout) if ended.stdout else None


def _installed() -> str:
    """Return the path of node, with the tools installed."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        if os.environ.get("EVERLOG_REQUIRE_SERVERS") == "1":
            pytest.fail("node and npm are not here, and this run has to have them")
        pytest.skip("node and npm are not here")
    lock, stamp = HERE / "package-lock.json", HERE / "node_modules/.package-lock.json"
    if not stamp.exists() or stamp.stat().st_mtime < lock.stat().st_mtime:
        subprocess.run([npm, "ci", "--no-audit", "--no-fund", "--silent"], cwd=HERE, check=True, timeout=300)
        stamp.touch()
    return node
