"""What `examples/deploy` says to systemd, to Docker and to Grafana is true of what runs.

Neither systemd nor Docker runs here: what they would start is started as they would, with the variables and the signals that the files name.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.cli.shop import EVERLOG, PATIENCE_S, Process
from tests.cli.test_metrics import Site

from everlog.observe.meters import FAMILIES, SYNC_SECONDS, WORKER_STARTS, WORKER_UP

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"
UNIT = DEPLOY / "everlog-billing.service"
IMAGE = (DEPLOY / "Containerfile").read_text()
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana.json").read_text())


# ---- systemd ----


def unit_values(name: str) -> list[str]:
    return [line.partition("=")[2] for line in UNIT.read_text().splitlines() if line.startswith(f"{name}=")]


def unit_value(name: str) -> str:
    (value,) = unit_values(name)
    return value


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for `/srv/billing` and `/var/lib/everlog`; the current one."""
    shutil.copy(DEPLOY / "billing.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def at_site(text: str, site: Path) -> str:
    """Return what a file says, with the paths of this machine."""
    for there, here in (
        ("/srv/billing/.venv/bin/everlog", EVERLOG),
        ("/srv/billing", str(site)),
        ("/var/lib/everlog", str(site)),
        ("METRICS_PORT=9464", "METRICS_PORT=0"),
    ):
        text = text.replace(there, here)
    return text


def start(command: Sequence[str], variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Process:
    """Start `everlog` as a file says."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert command[0] == EVERLOG
    return Process(*command[1:])


def _told_until(notified: socket.socket, last: bytes) -> list[bytes]:
    told = [notified.recv(100)]
    while told[-1] != last:
        told.append(notified.recv(100))
    return told


def test_the_unit_starts_all_workers_tells_so_replaces_them_on_reload_and_stops_in_order(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = dict(at_site(value, site).split("=", 1) for value in unit_values("Environment"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.settimeout(PATIENCE_S)
        notified.bind(str(site / "notify"))
        watchdog = {"NOTIFY_SOCKET": str(site / "notify"), "WATCHDOG_USEC": f"{unit_value('WatchdogSec')}000000"}
        command = shlex.split(at_site(unit_value("ExecStart"), site))
        supervisor = start(command, variables | watchdog, monkeypatch)
        try:
            serving = Site(supervisor)
            told = _told_until(notified, b"READY=1")
            assert b"WATCHDOG=1" in told
            assert serving.ask("/readyz") == (200, "ok\n")
            reload = unit_value("ExecReload").replace("$MAINPID", str(supervisor.popen.pid))
            subprocess.run(shlex.split(reload), check=True)
            supervisor.wait_for("all workers are restarted")
            assert supervisor.end(signal.SIGTERM) == 0
            _told_until(notified, b"STOPPING=1")
        finally:
            supervisor.close()
    assert (site / "log.db").exists()
    assert (site / "billing.db").exists()


def test_what_will_not_start_ends_with_a_code_after_which_the_unit_does_not_start_it_again(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = dict(at_site(value, site).split("=", 1) for value in unit_values("Environment"))
    command = shlex.split(at_site(unit_value("ExecStart"), site))
    (site / "log.db").write_bytes(b"no log of ours" * 1_000)
    refused = start(command, variables | {"EVERLOG_NEW_TYPES": "never"}, monkeypatch)
    assert str(refused.end()) in unit_value("RestartPreventExitStatus").split()
    wrong = start([*command, "--no-such-flag"], {"EVERLOG_NEW_TYPES": "refuse"}, monkeypatch)
    assert str(wrong.end()) in unit_value("RestartPreventExitStatus").split()
    for process in (refused, wrong):
        process.close()


def test_a_stop_has_more_time_than_the_supervisor_needs_for_it() -> None:
    from everlog import Settings
    from everlog.cli.pulse import MARGIN_S
    from everlog.cli.worker import START_S

    assert float(unit_value("TimeoutStopSec")) > Settings().grace_s + MARGIN_S
    assert float(unit_value("TimeoutStartSec")) > START_S


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here to read the unit")
def test_systemd_finds_nothing_wrong_with_the_unit_and_little_that_it_may_do(site: Path) -> None:
    unit = site / UNIT.name
    unit.write_text(at_site(UNIT.read_text(), site))
    # Other units of the machine are none of ours: what systemd says of this one begins with its path.
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert [line for line in verified.stderr.splitlines() if UNIT.name in line] == []
    assert verified.returncode == 0, verified.stderr
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=30", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert judged.returncode == 0, judged.stdout


# ---- the image ----


def instructions() -> Iterator[tuple[str, str]]:
    """Yield each instruction of the image recipe with its arguments."""
    for line in re.sub(r"\\\n\s*", " ", IMAGE).splitlines():
        if line and not line.startswith("#"):
            word, _, arguments = line.partition(" ")
            yield word, arguments.strip()


def last(word: str) -> str:
    return [arguments for name, arguments in instructions() if name == word][-1]


def image_variables(site: Path) -> dict[str, str]:
    variables = dict(word.split("=", 1) for word in shlex.split(at_site(last("ENV"), site)))
    return {name: value for name, value in variables.items() if name.startswith("EVERLOG_")} | {
        "EVERLOG_METRICS_HOST": "127.0.0.1"
    }


def test_what_is_copied_is_there_and_what_runs_is_not_root() -> None:
    words = {
        "FROM",
        "WORKDIR",
        "COPY",
        "RUN",
        "ENV",
        "USER",
        "VOLUME",
        "EXPOSE",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    }
    assert {word for word, _ in instructions()} == words
    for source in shlex.split(last("COPY"))[:-1]:
        assert (DEPLOY / source).exists(), source
    assert "requirements.txt" in next(arguments for word, arguments in instructions() if word == "COPY")
    assert (DEPLOY / "requirements.txt").read_text() == "everlog[metrics]\n"
    user = last("USER")
    assert user.isdecimal()
    assert int(user) > 0
    assert f"--uid {user} " in IMAGE
    assert last("VOLUME") in last("RUN")  # made before it is a volume, so that the user may write there
    assert f"sqlite:{last('VOLUME')}/log.db" in last("ENV")
    assert last("EXPOSE") in last("ENV")
    assert last("EXPOSE") in last("HEALTHCHECK")


def test_what_the_image_runs_is_healthy_until_it_ends_and_ends_with_0(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [EVERLOG, *json.loads(last("CMD"))]
    assert json.loads(last("ENTRYPOINT")) == ["everlog"]
    container = start(command, image_variables(site), monkeypatch)
    try:
        serving = Site(container)
        serving.until_status("/readyz", 200)
        check = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
        check = [sys.executable, *(word.replace("http://127.0.0.1:9464", serving.url) for word in check[1:])]
        assert subprocess.run(check, check=False).returncode == 0
        assert container.end(getattr(signal, last("STOPSIGNAL"))) == 0
        assert subprocess.run(check, stderr=subprocess.DEVNULL, check=False).returncode != 0
    finally:
        container.close()


def _may_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], stderr=subprocess.DEVNULL, check=False).returncode
        == 0
    )


@pytest.mark.skipif(sys.platform != "linux" or not _may_unshare(), reason="no PID namespace can be made here")
def test_it_stops_in_order_as_process_1_of_its_own_namespace(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in image_variables(site).items():
        monkeypatch.setenv(name, value)
    inner = shlex.join([EVERLOG, *json.loads(last("CMD"))])
    words = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", f"exec {inner}"]
    outer = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        assert outer.stderr is not None
        for line in outer.stderr:
            if "worker 2 is running" in line:
                break
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        (first,) = children
        status = Path(f"/proc/{first}/status").read_text()
        assert re.search(r"^NSpid:\s+\d+\s+1$", status, re.MULTILINE), status
        os.kill(int(first), signal.SIGTERM)
        said = outer.stderr.read()
        assert outer.wait(PATIENCE_S) == 0, said
        assert "stopping 2 workers (SIGTERM)" in said
    finally:
        outer.kill()
        outer.wait()
        assert outer.stderr is not None
        outer.stderr.close()


# ---- Grafana ----


def panels() -> list[dict[str, Any]]:
    return list(DASHBOARD["panels"])


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel.get("targets", [])]


SERVED = {
    name
    for family in FAMILIES
    for name in (
        [f"{family.name}{end}" for end in ("_bucket", "_sum", "_count")]
        if family.kind == "histogram"
        else [f"{family.name}_total" if family.kind == "counter" else family.name]
    )
}


def test_each_metric_of_the_dashboard_is_served() -> None:
    asked = {name for expression in expressions() for name in re.findall(r"\beverlog_\w+", expression)}
    assert asked - SERVED == set()
    assert len(asked) > 15


def test_what_says_that_somebody_is_needed_is_on_the_dashboard() -> None:
    shown = " ".join(expressions())
    quiet = {"everlog_build_info"}
    assert [family.name for family in FAMILIES if family.name not in shown and family.name not in quiet] == []


@pytest.mark.parametrize("expression", expressions())
def test_a_query_groups_by_labels_that_its_metric_has(expression: str) -> None:
    known = {"le", "instance"} | {label for family in FAMILIES if family.name in expression for label in family.labels}
    grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
    assert grouped <= known
    if "$app" not in expression:
        assert any(family.name in expression for family in (SYNC_SECONDS, WORKER_STARTS, WORKER_UP))
    counters = re.findall(r"everlog_\w+_total", expression)
    assert len(counters) == len(re.findall(r"(?:rate|increase)\(everlog_\w+_total", expression))
    assert expression.count("(") == expression.count(")")


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    assert DASHBOARD["schemaVersion"] >= 36  # data sources by type and uid
    assert DASHBOARD["uid"]
    assert DASHBOARD["title"]
    assert DASHBOARD.get("id") is None
    identities = [panel["id"] for panel in panels()]
    assert len(set(identities)) == len(identities)
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert set(variables) == {"datasource", "app"}
    assert variables["datasource"]["query"] == "prometheus"
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels():
        if panel["type"] == "row":
            continue
        assert panel["title"]
        assert panel["datasource"] == source
        assert [target["datasource"] for target in panel["targets"]] == [source] * len(panel["targets"])
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
    asked = re.search(r"label_values\((\w+), (\w+)\)", variables["app"]["definition"])
    assert asked is not None
    assert asked[1] in SERVED
    assert asked[2] == "app"


def test_no_panel_lies_on_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not taken & cells, panel["title"]
        taken |= cells
