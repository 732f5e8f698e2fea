"""What is served: pages that Prometheus reads, and health that says what is wrong."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import prometheus_client
import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from everlog import observe
from everlog.errors import StartRefused
from everlog.observe import endpoint as module
from everlog.observe import installed
from everlog.observe import meters as families
from everlog.observe.endpoint import Endpoint
from everlog.observe.health import Health, Vitals
from everlog.observe.meters import FAMILIES, Meters
from everlog.testing.clock import ManualClock


class Site:
    """An endpoint whose health is what a test says."""

    def __init__(self) -> None:
        self.meters = Meters()
        self.not_ready: str | None = None
        self.not_well: str | None = None
        health = Health(lambda: self.not_ready, lambda: self.not_well)
        self.endpoint = Endpoint("127.0.0.1", 0, self.meters.snapshot, health)

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
        """Return status, text and type of an answer."""
        connection = http.client.HTTPConnection(urlsplit(self.endpoint.url).netloc, timeout=30)
        with closing(connection):
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), answer.getheader("Content-Type", "")


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.endpoint.close()


def test_metrics_are_what_a_parser_of_prometheus_reads(site: Site) -> None:
    site.meters.add(families.HANDLED, 3, "shop", "emails")
    site.meters.set(families.LAG_SECONDS, 1.5, "shop", 'a "quoted" name')
    site.meters.histogram(families.COMMIT_SECONDS, "shop").add(0.003)
    status, text, content_type = site.ask("/metrics")
    assert status == 200
    assert content_type.startswith("text/plain; version=0.0.4")
    found = {family.name: family for family in text_string_to_metric_families(text)}
    (handled,) = found["everlog_events_handled"].samples
    assert (handled.name, handled.value) == ("everlog_events_handled_total", 3)
    assert handled.labels == {"app": "shop", "subscription": "emails"}
    assert found["everlog_subscription_lag_seconds"].samples[0].labels["subscription"] == 'a "quoted" name'
    buckets = {sample.labels.get("le", sample.name): sample.value for sample in found["everlog_commit_seconds"].samples}
    assert (buckets["0.0025"], buckets["0.005"], buckets["+Inf"]) == (0, 1, 1)
    assert buckets["everlog_commit_seconds_sum"] == 0.003
    assert buckets["everlog_commit_seconds_count"] == 1


def test_every_family_is_declared_before_it_has_a_value(site: Site) -> None:
    found = {family.name: family for family in text_string_to_metric_families(site.ask("/metrics")[1])}
    assert {name: family.type for name, family in found.items()} == {family.name: family.kind for family in FAMILIES}
    assert {name: family.documentation for name, family in found.items()} == {family.name: family.help for family in FAMILIES}
    (build,) = found["everlog_build_info"].samples
    assert build.value == 1


def test_who_prefers_openmetrics_gets_that(site: Site) -> None:
    site.meters.add(families.HANDLED, 3, "shop", "shop")
    _, text, content_type = site.ask("/metrics?now", Accept="application/openmetrics-text;version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert any(family.name == "everlog_events_handled" for family in openmetrics.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(("path", "attribute"), [("/healthz", "not_well"), ("/readyz", "not_ready")])
def test_health_says_what_is_wrong(site: Site, path: str, attribute: str) -> None:
    assert site.ask(path)[:2] == (200, "ok\n")
    setattr(site, attribute, "worker 2 is not running")
    assert site.ask(path)[:2] == (503, "worker 2 is not running\n")
    assert site.ask("/metrics")[0] == 200


def test_a_head_has_no_body_and_another_path_or_method_is_refused(site: Site) -> None:
    assert site.ask("/readyz", "HEAD")[:2] == (200, "")
    assert site.ask("/")[0] == 404
    assert site.ask("/metrics", "POST")[0] == 501


def test_what_is_no_request_does_no_harm(site: Site) -> None:
    address = urlsplit(site.endpoint.url)
    for sent in (b"\x00\xff\r\n\r\n", b"GET", b""):
        with socket.create_connection((address.hostname, address.port or 0), timeout=30) as connection:
            connection.sendall(sent)
    assert site.ask("/healthz")[0] == 200


def test_who_asks_while_many_are_answered_is_turned_away_and_later_ones_are_not(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = urlsplit(site.endpoint.url)
    monkeypatch.setattr(module._Answer, "timeout", 30.0)
    slow = [socket.create_connection((address.hostname, address.port or 0), timeout=30) for _ in range(module._MOST_AT_ONCE)]
    for connection in slow:
        connection.sendall(b"GET /healthz HTTP/1.0\r\n")  # and no end
    with socket.create_connection((address.hostname, address.port or 0), timeout=30) as late:
        assert late.recv(10) == b""
    for connection in slow:
        connection.sendall(b"\r\n")
        assert connection.recv(1_000).startswith(b"HTTP/1.0 200")
        while connection.recv(1_000):
            pass
        connection.close()


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", None), ("no.such.host.invalid", 0), ("192.0.2.1", 0), ("x" * 300, 0)])
def test_an_address_that_cannot_be_used_is_refused_by_name(site: Site, host: str, port: int | None) -> None:
    taken = urlsplit(site.endpoint.url).port
    assert taken is not None
    number = taken if port is None else port
    with pytest.raises(StartRefused, match=rf"cannot be served on {host}:{number} .*--metrics-port"):
        Endpoint(host, number, Meters().snapshot, Health(lambda: None, lambda: None))


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: str) -> None: ...

    monkeypatch.setattr(installed, "find_spec", nothing)
    with pytest.raises(StartRefused, match=r"pip install 'everlog\[metrics\]'"):
        Endpoint("127.0.0.1", 0, Meters().snapshot, Health(lambda: None, lambda: None))
    with pytest.raises(StartRefused, match=r"pip install 'everlog\[metrics\]'"):
        observe.prometheus()


def test_a_registry_of_the_application_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = prometheus_client.CollectorRegistry(auto_describe=True)
    meters = observe.prometheus(registry)
    meters.add(families.HANDLED, 3, "shop", "shop")
    assert registry.get_sample_value("everlog_events_handled_total", {"app": "shop", "subscription": "shop"}) == 3
    with pytest.raises(ValueError, match="Duplicated"):
        observe.prometheus(registry)


def test_a_process_is_ready_when_all_its_apps_are_and_until_it_stops() -> None:
    vitals = Vitals(2, limit_s=10, clock=ManualClock())
    asked = vitals.health
    assert (asked.not_ready(), asked.not_well()) == ("2 apps are not at work yet", None)
    vitals.ready()
    assert asked.not_ready() == "1 app is not at work yet"
    vitals.ready()
    assert asked.not_ready() is None
    vitals.stopping()
    assert (asked.not_ready(), asked.not_well()) == ("stopping", None)


def test_a_process_whose_event_loop_stands_still_for_longer_than_a_handler_may_is_not_well() -> None:
    clock = ManualClock()
    vitals = Vitals(0, limit_s=10, clock=clock)
    clock.advance(10)
    assert vitals.health.not_well() is None
    clock.advance(1)
    assert vitals.health.not_well() == vitals.health.not_ready() == "the event loop has not turned for 11 s"
