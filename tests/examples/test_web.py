"""`examples/web` in a real browser: reload, network loss and a killed server lose no event and repeat none."""

from __future__ import annotations

import contextlib
import json
import operator
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from tests.cli.shop import EVERLOG, PATIENCE_S, Process

from everlog import App, Settings, blocking

WEB = Path(__file__).parents[2] / "examples" / "web"
PATIENCE_MS = PATIENCE_S * 1_000
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
QUIET = ("--disable-component-update", "--disable-sync")


def chromium() -> str:
    """Return the path of a Chromium."""
    for name in (os.environ.get("EVERLOG_CHROMIUM"), "chromium", "chromium-browser", "google-chrome"):
        if name is not None and (found := shutil.which(name)) is not None:
            return found
    if os.environ.get("EVERLOG_REQUIRE_SERVERS") == "1":
        pytest.fail("no Chromium is here, and this run has to have one: see `make browser`")
    pytest.skip("no Chromium is here: `make browser` says how to get one")


class Line:
    """The network between a browser and the server: it can be cut, and mended."""

    def __init__(self, server: int) -> None:
        self._server = server
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._listen()

    def cut(self) -> None:
        """Break every connection, and take no new one."""
        with self._lock:
            for one in (self._listening, *self._open):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()
            self._open.clear()
        self._thread.join(PATIENCE_S)

    def mend(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self.port))
        self._listen()

    def _listen(self) -> None:
        self._thread = threading.Thread(target=self._accept, args=(self._listening,), daemon=True)
        self._thread.start()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                near, _ = listening.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._server))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._open += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


class Site:
    """The example, running in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {**os.environ, "PYTHONPATH": str(WEB), "PYTHONUNBUFFERED": "1"}
        self.web: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the web server, and return when it answers."""
        command = [sys.executable, "-m", "uvicorn", "web:web", "--port", str(self.port), "--timeout-graceful-shutdown", "2"]
        with (self.folder / "web.txt").open("ab") as output:
            self.web = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=output, stderr=output)
        end_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                httpx.get(self.url).raise_for_status()
                return
            except httpx.TransportError:
                assert time.monotonic() < end_s, self.said()
                assert self.web.poll() is None, self.said()

    def stop(self, number: signal.Signals) -> int:
        assert self.web is not None
        self.web.send_signal(number)
        code = self.web.wait(PATIENCE_S)
        self.web = None
        return code

    def said(self) -> str:
        return (self.folder / "web.txt").read_text()

    def publish(self, customer: str, order: str) -> None:
        """Publish an order past the web server."""
        data = json.dumps({"customer": customer, "order": order, "item": "apple", "pieces": 1})
        command = [EVERLOG, "publish", "orders", "web.order_placed/1", "--data", data]
        subprocess.run(command, cwd=self.folder, env=self.environment, check=True, timeout=PATIENCE_S, stdout=subprocess.DEVNULL)

    def ids(self, customer: str, count: int) -> list[str]:
        """Return the ids of the first events of a customer in the log."""
        from web import FACTS

        with blocking(App("judge"), Settings(log_url=f"sqlite:{self.folder}/.everlog/log.db")) as client:
            return [record.id for record in islice(client.follow(*FACTS, start="beginning", key=customer), count)]

    def close(self) -> None:
        if self.web is not None:
            self.stop(signal.SIGKILL)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.chdir(tmp_path)
    site = Site(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(WEB))
    services = Process("run", "decisions:risk", "decisions:stock")
    try:
        site.start()
        yield site
    finally:
        site.close()
        services.close()


@pytest.fixture
def browser() -> Iterator[Browser]:
    path = chromium()
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=[*FLAGS, *QUIET])
        yield started
        started.close()


def opened(site: Site, browser: Browser, customer: str, port: int | None = None) -> Page:
    page = browser.new_context().new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"http://127.0.0.1:{port or site.port}/?customer={customer}")
    return page


def place(page: Page, pieces: int) -> None:
    page.fill("input[name=pieces]", str(pieces))
    page.click("button")


def received(page: Page, count: int) -> list[str]:
    """Return the ids that a page was told, once there are so many."""
    page.wait_for_function("count => received.length >= count", arg=count)
    ids: list[str] = page.evaluate("received")
    return ids


def test_a_browser_is_told_every_event_once_through_network_loss_restart_and_reload(site: Site, browser: Browser) -> None:
    line = Line(site.port)
    page, other = opened(site, browser, "ada", line.port), opened(site, browser, "bob")
    place(page, 2)
    page.get_by_text("reserved, 98 left").wait_for()
    place(page, 60)
    page.get_by_text("held back: 60 pieces at once").wait_for()
    assert received(page, 5) == site.ids("ada", 5)

    site.stop(signal.SIGKILL)
    site.publish("ada", "while the server is down")
    site.start()
    assert received(page, 8) == site.ids("ada", 8)

    line.cut()
    page.get_by_text("connecting again").wait_for()
    site.publish("ada", "while the network is down")
    place(page, 3)
    page.get_by_text("sending again").wait_for()
    assert len(received(page, 0)) == 8
    line.mend()
    page.get_by_text("reserved, 93 left").wait_for()
    everything = site.ids("ada", 14)
    assert received(page, 14) == everything

    page.reload()
    assert received(page, 14) == everything
    assert page.locator(".order").count() == 5
    assert received(other, 0) == []
    assert site.ids("bob", 0) == []
    place(other, 1)
    other.get_by_text("reserved, 92 left").wait_for()
    assert len(received(other, 3)) == 3
    assert received(page, 14) == everything
    line.cut()


def test_a_browser_goes_on_after_an_error_of_what_stands_between(site: Site, browser: Browser) -> None:
    page = opened(site, browser, "ada")
    place(page, 2)
    received(page, 3)
    answers = iter([502, 503])

    def gateway(route: Any) -> None:
        status = next(answers, None)
        if status is None:
            route.continue_()
        else:
            route.fulfill(status=status, body="bad gateway")

    page.route("**/events*", gateway)
    site.stop(signal.SIGTERM)
    site.publish("ada", "behind a gateway")
    site.start()
    assert received(page, 6) == site.ids("ada", 6)
    assert next(answers, None) is None, "both errors were seen"


def test_a_place_in_another_log_starts_the_page_anew(site: Site, browser: Browser) -> None:
    page = opened(site, browser, "ada")
    place(page, 2)
    told = received(page, 3)
    page.evaluate("last = 'AAAA-no-position'; show({type: 'unknown', id: 'of another log', data: {}}); listen()")
    page.wait_for_function("received[0] !== undefined && !received.includes('of another log') && received.length >= 3")
    assert received(page, 3)[:3] == told


def test_what_a_customer_writes_is_no_markup(site: Site, browser: Browser) -> None:
    page = opened(site, browser, "ada")
    page.fill("input[name=item]", "<img src=x onerror=alert(1)>")
    page.click("button")
    page.get_by_text("ordered: 2 × <img src=x onerror=alert(1)>").wait_for()
    assert page.locator("#orders img").count() == 0


def test_an_order_that_is_sent_again_is_placed_once(site: Site) -> None:
    basket = {"order": "6f1c9cbe-7c0f-4c4e-9d8c-0d7b6a1f1e11", "customer": "ada", "item": "apple", "pieces": 1}
    for _ in range(3):
        assert httpx.post(f"{site.url}/orders", json=basket).status_code == 202
    assert httpx.post(f"{site.url}/orders", json=basket | {"pieces": 0}).status_code == 422
    assert httpx.post(f"{site.url}/orders", json={}).status_code == 422
    last = httpx.post(f"{site.url}/orders", json=basket | {"order": "6f1c9cbe-7c0f-4c4e-9d8c-0d7b6a1f1e12"})
    assert last.status_code == 202
    from orders import OrderPlaced

    with blocking(App("judge"), Settings(log_url=f"sqlite:{site.folder}/.everlog/log.db")) as client:
        placed = [record.event.order[-1] for record in islice(client.follow(OrderPlaced, start="beginning", key="ada"), 2)]
    assert placed == ["1", "2"]


def test_the_page_reads_what_the_contracts_say_and_nothing_else(site: Site, browser: Browser) -> None:
    """Each reader of a fact is given what its schema requires, and fails where it asks for a field that the schema has not."""
    command = [EVERLOG, "contracts", "orders", "--asyncapi"]
    said = subprocess.run(command, env=site.environment, check=True, capture_output=True, timeout=PATIENCE_S).stdout
    document = json.loads(said)
    schemas = {message["name"]: message["payload"] for message in document["components"]["messages"].values()}
    page = opened(site, browser, "ada")
    assert set(page.evaluate("Object.keys(words)")) == set(schemas)
    for name, payload in schemas.items():
        schema = payload.get("schema", payload)
        while "$ref" in schema:
            start: Any = document if schema["$ref"].startswith("#/components") else schema
            schema = reduce(operator.getitem, schema["$ref"].removeprefix("#/").split("/"), start)
        fields = list(schema["properties"])
        assert "order" in fields, "the page sorts facts by it"
        page.evaluate(
            """([type, fields]) => words[type](new Proxy({}, {get: (_, name) => {
                if (!fields.includes(name)) throw new Error(`${type} has no field ${String(name)}`);
                return "x";
            }}))""",
            [name, fields],
        )
