"""The servers of the tests: started once, found again, back after a kill, and stopped without touching anybody else's."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import yaml
from confluent_kafka import KafkaError, Producer
from confluent_kafka.admin import AdminClient
from tests.servers import kafka_sasl_url, kafka_url, postgres_url
from tests.services.place import ROOT, Place, ServiceFailed, free_port, is_open_to_others, read_env
from tests.services.postgres import Postgres, installed


@pytest.fixture
def place() -> Generator[Place]:
    postgres_url()
    if installed() is None:
        pytest.skip("the server was not started here: no program is installed to start another one with")
    folder = Path(tempfile.mkdtemp(prefix="everlog-test-"))
    folder.chmod(0o755)  # the server's own user has to get in
    yield Place(folder)
    Postgres(Place(folder)).down()
    shutil.rmtree(folder)


def answer(place: Place) -> object:
    with psycopg.connect(read_env(place.folder / "env")["EVERLOG_TEST_POSTGRES"]) as connection:
        return connection.execute("SELECT current_database()").fetchone()


def test_a_server_that_runs_is_left_alone(place: Place) -> None:
    Postgres(place).up()
    first = Postgres(place).process
    assert answer(place) == ("app",)
    Postgres(place).up()
    assert Postgres(place).process == first is not None


def test_a_server_that_was_killed_comes_back_with_what_it_held(place: Place) -> None:
    Postgres(place).up()
    with psycopg.connect(read_env(place.folder / "env")["EVERLOG_TEST_POSTGRES"], autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS number")
    process = Postgres(place).process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    Postgres(place).up()
    assert Postgres(place).process != process
    with psycopg.connect(read_env(place.folder / "env")["EVERLOG_TEST_POSTGRES"]) as connection:
        assert connection.execute("SELECT number FROM kept").fetchone() == (1,)


def test_down_stops_what_was_started_and_says_so_once(place: Place) -> None:
    Postgres(place).up()
    assert Postgres(place).down()
    assert Postgres(place).process is None
    assert read_env(place.folder / "env") == {}
    assert not Postgres(place).down()


def test_the_number_of_another_process_is_no_server_of_ours(place: Place) -> None:
    Postgres(place).up()
    file = place.folder / "postgres.pid"
    ours = Postgres(place).process
    assert ours is not None
    text = file.read_text()
    file.write_text(text.replace(str(ours.pid), str(os.getpid())))
    assert Postgres(place).process is None, "it has another start"
    assert not Postgres(place).down()
    file.write_text(text)


def test_a_port_that_is_taken_is_named_with_what_to_do(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        monkeypatch.setenv("EVERLOG_TEST_POSTGRES_PORT", str(one.getsockname()[1]))
        with pytest.raises(ServiceFailed, match="EVERLOG_TEST_POSTGRES_PORT"):
            Postgres(place).up()
    port = free_port()
    monkeypatch.setenv("EVERLOG_TEST_POSTGRES_PORT", str(port))
    Postgres(place).up()
    assert f":{port}/" in read_env(place.folder / "env")["EVERLOG_TEST_POSTGRES"]


def test_a_port_that_is_none_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOG_TEST_POSTGRES_PORT", "many")
    with pytest.raises(ServiceFailed, match="65535"):
        Postgres(place).up()


def test_a_server_that_cannot_start_is_shown_with_its_last_words(place: Place) -> None:
    Postgres(place).up()
    Postgres(place).down()
    (place.folder / "postgres/data/postgresql.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(ServiceFailed, match="no_such_setting"):
        Postgres(place).up()


def test_a_folder_below_a_private_one_is_not_open_to_others(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    assert not is_open_to_others(private / "services")


def test_the_broker_answers_on_both_listeners_and_refuses_a_wrong_password() -> None:
    plain, sasl = urlsplit(kafka_url()), urlsplit(kafka_sasl_url())
    assert AdminClient({"bootstrap.servers": plain.netloc}).list_topics(timeout=20).brokers
    errors: list[KafkaError] = []

    def client(password: str | None) -> dict[str, Any]:
        return {
            "bootstrap.servers": f"{sasl.hostname}:{sasl.port}",
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": sasl.username,
            "sasl.password": password,
            "error_cb": errors.append,
            "log_level": 0,
        }

    assert AdminClient(client(sasl.password)).list_topics(timeout=20).brokers
    assert errors == []
    wrong = Producer(client("wrong"))
    for _ in range(100):
        wrong.poll(0.1)
        if errors:
            break
    assert errors[0].code() == KafkaError._AUTHENTICATION


def test_the_file_for_docker_names_the_same_servers() -> None:
    composed = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert set(composed["services"]) == {"postgres", "kafka"}
    for service in composed["services"].values():
        assert {"image", "ports", "healthcheck"} <= set(service)
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
