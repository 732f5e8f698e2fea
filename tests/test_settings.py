"""Settings: flag > environment > code; where the folder is; what of a URL may be shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from everlog import Settings
from everlog.clock import SystemClock
from everlog.errors import StartRefused, UnknownAdapter
from everlog.settings import find_folder, open_log, open_store, resolve, shown


def test_the_environment_goes_before_the_code() -> None:
    environ = {
        "EVERLOG_LOG_URL": "memory:",
        "EVERLOG_CREATE_TOPICS": "off",
        "EVERLOG_LEASE_S": "0.5",
        "EVERLOG_ACCEPT_NEW_STORE": "YES",
        "PATH": "/bin",
    }
    settings = Settings(store_url="sqlite:mine.db", lease_s=9.0).from_env(environ)
    assert settings == Settings(
        log_url="memory:", store_url="sqlite:mine.db", create_topics=False, lease_s=0.5, accept_new_store=True
    )
    assert Settings().from_env({}) == Settings()


def test_a_number_that_the_code_gives_as_an_int_is_read_from_the_environment_too() -> None:
    assert Settings(lease_s=9).from_env({"EVERLOG_LEASE_S": "0.5"}).lease_s == 0.5


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("EVERLOG_LOGURL", "memory:"),  # a typo is no setting, and would be passed over in silence
        ("EVERLOG_LEASE_S", "soon"),
        ("EVERLOG_LEASE_S", "0"),
        ("EVERLOG_LEASE_S", "nan"),
        ("EVERLOG_GRACE_S", "-1"),
        ("EVERLOG_CREATE_TOPICS", "perhaps"),
        ("EVERLOG_NEW_TYPES", "later"),
    ],
)
def test_a_variable_that_cannot_be_is_refused(variable: str, text: str) -> None:
    with pytest.raises(StartRefused):
        Settings().from_env({variable: text})


def test_the_folder_is_found_upwards_like_git_until_a_project_ends(tmp_path: Path) -> None:
    inner = tmp_path / "project" / "a" / "b"
    inner.mkdir(parents=True)
    assert find_folder(inner, tmp_path) == inner / ".everlog"
    (tmp_path / ".everlog").mkdir()
    assert find_folder(inner, tmp_path) == inner / ".everlog"  # the home folder's is not taken
    assert find_folder(inner, tmp_path / "elsewhere") == tmp_path / ".everlog"
    (tmp_path / "project" / "pyproject.toml").touch()
    assert find_folder(inner, tmp_path / "elsewhere") == inner / ".everlog"
    (tmp_path / "project" / ".everlog").mkdir()
    assert find_folder(inner, tmp_path / "elsewhere") == tmp_path / "project" / ".everlog"


def test_a_url_is_resolved_for_its_app(folder: Path) -> None:
    assert resolve("sqlite:.everlog/{app}.db", app="shop") == f"sqlite:{folder / '.everlog' / 'shop.db'}"
    assert resolve("sqlite:/srv/{app}.db", app="shop") == "sqlite:/srv/shop.db"
    assert resolve("memory:") == "memory:"


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("sqlite:.everlog/log.db", "sqlite:.everlog/log.db"),
        ("postgres://me:secret@host/db?password=x", "postgres://host/db"),
        ("postgres://me:secret@host/db?password=x&schema=log&sslkey=y", "postgres://host/db?schema=log"),
        ("kafka://host:9092", "kafka://host:9092"),
        ("kafka://a:b@c@host", "kafka://host"),
    ],
)
def test_what_may_be_shown_of_a_url_holds_no_secret(url: str, seen: str) -> None:
    assert shown(url) == seen


async def test_an_unknown_scheme_is_refused_without_its_password() -> None:
    settings = Settings(log_url="nats://me:secret@host", store_url="oracle://me:secret@host")
    with pytest.raises(UnknownAdapter, match="sqlite:") as log_error:
        await open_log(settings, clock=SystemClock())
    with pytest.raises(UnknownAdapter, match="sqlite:") as store_error:
        await open_store(settings, "app", clock=SystemClock())
    assert "secret" not in f"{log_error.value}{store_error.value}"


def test_where_this_projects_tests_find_their_servers_is_no_setting() -> None:
    assert Settings().from_env({"EVERLOG_TEST_POSTGRES": "postgresql://app@127.0.0.1/app"}) == Settings()
