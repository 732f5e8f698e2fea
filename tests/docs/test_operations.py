"""Every command in `docs/operations.md` runs as it is printed, one after the other, and says what the page shows."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.cli.shop import EVERLOG, SHOP, Process

PAGE = (Path(__file__).parents[2] / "docs/operations.md").read_text()


def steps() -> Iterator[tuple[str, list[str]]]:
    """Yield each command with the lines that the page shows below it."""
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL):
        for step in block.split("$ ")[1:]:
            command, *shown = step.splitlines()
            yield command, shown


def test_every_block_is_a_session() -> None:
    assert len(re.findall(r"```console\n\$ ", PAGE)) * 2 == PAGE.count("```") > 0


def test_what_the_page_says_runs(folder: Path) -> None:
    (folder / "shop.py").write_text(SHOP)
    orders = '{"order": "1", "customer": "ada"}\n'
    subprocess.run([EVERLOG, "publish", "shop", "shop.order_placed/1"], input=orders, text=True, check=True, capture_output=True)
    worker = Process("run", "shop:billing")
    try:
        worker.wait_for("is running")
        for _ in range(100):  # each takes a while: until the event is handled, and the report of that is in the log
            if subprocess.run([EVERLOG, "status", "--max-lag", "0"], capture_output=True, check=False).returncode == 0:
                break
        assert worker.end(signal.SIGTERM) == 0
    finally:
        worker.close()
    environment = {**os.environ, "PATH": f"{Path(EVERLOG).parent}:{os.environ['PATH']}"}
    for command, shown in steps():
        here = command.replace("/backups/", f"{folder}/backups/")
        done = subprocess.run(here, shell=True, env=environment, capture_output=True, text=True, timeout=60, check=False)
        said = done.stdout + done.stderr
        assert done.returncode == 0 or "doctor" in command, f"{command}\n{said}"  # the machine of a test may have its problems
        missing = [line for line in shown if line not in said]
        assert not missing, f"{command}\n{said}"
