"""Settings: where the log and the store are, and how long things may take. Flag > environment > code."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from everlog.clock import Clock
from everlog.errors import StartRefused, UnknownAdapter
from everlog.finding import Examined
from everlog.log import Log
from everlog.store import Store

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint
    from pathlib import Path

FOLDER: Final = ".everlog"
_PREFIX: Final = "EVERLOG_"
_LAST_PORT: Final = 65_535
_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class Settings:
    """How an app runs. Every field has an environment variable: `EVERLOG_` and its name in capitals.

    Attributes:
        log_url: Where the log is: `sqlite:PATH`, `postgresql://HOST/DATABASE?schema=NAME`, `memory:`. A path that starts with `.everlog/` is looked for upwards.
        store_url: Where the store is: `sqlite:PATH`, `postgresql://HOST/DATABASE?schema=NAME`, `sqlite::memory:`. `{app}` stands for the app's name.
        create_topics: Make missing topics. Without it a missing topic is an error.
        lease_s: Seconds without a sign of life after which another process takes a slot over.
        grace_s: Seconds that a stop waits for handlers in flight.
        new_types: What a stored subscription does with a type that is new to it on a topic that it has read already: `refuse` to start, or
            handle it from `now` on.
        accept_new_store: Start with an empty store although the log knows the app with another one: everything is handled again.
        metrics_port: Where `run` serves `/metrics`, `/healthz` and `/readyz` over HTTP; 0 is a port that is free. ``None`` serves nothing.
        metrics_host: The address of that; `0.0.0.0` is all of the machine.
        tracing: Make OpenTelemetry spans of publishing and handling, where the process has a tracer provider.
    """

    log_url: str = "sqlite:.everlog/log.db"
    store_url: str = "sqlite:.everlog/{app}.db"
    create_topics: bool = True
    lease_s: float = 5.0
    grace_s: float = 30.0
    new_types: str = "refuse"
    accept_new_store: bool = False
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    tracing: bool = True

    def __post_init__(self) -> None:
        if not (0 < self.lease_s < math.inf and 0 <= self.grace_s < math.inf):
            raise StartRefused(f"expected lease_s above 0 and grace_s of at least 0, found {self.lease_s} and {self.grace_s}")
        if self.new_types not in ("refuse", "now"):
            raise StartRefused(f"expected new_types to be 'refuse' or 'now', found {self.new_types!r}")
        if self.metrics_port is not None and not 0 <= self.metrics_port <= _LAST_PORT:
            raise StartRefused(f"expected a metrics_port from 0 to {_LAST_PORT}, found {self.metrics_port}")

    def from_env(self, environ: Mapping[str, str] | None = None) -> Settings:
        """Return these settings with what the environment says instead.

        Raises:
            StartRefused: A variable holds what its setting cannot be, or starts with `EVERLOG_` and names no setting.
        """
        environ = os.environ if environ is None else environ
        changes: dict[str, Any] = {}
        known = {_PREFIX + field.name.upper(): field for field in dataclasses.fields(self)}
        for variable, text in environ.items():
            field = known.get(variable)
            if field is None:
                if variable.startswith(_PREFIX) and not variable.startswith(_OF_TESTS) and variable not in _OTHER_VARIABLES:
                    raise StartRefused(f"{variable} names no setting: expected one of {', '.join(sorted(known))}")
                continue
            changes[field.name] = _parsed(variable, text, field.default)
        return dataclasses.replace(self, **changes)


_OF_TESTS: Final = "EVERLOG_TEST_"
"""Names where this project's own tests find their servers."""
_OTHER_VARIABLES: Final = frozenset({"EVERLOG_REQUIRE_SERVERS", "EVERLOG_WORKER"})


def _parsed(variable: str, text: str, default: object) -> object:
    if isinstance(default, bool):
        word = text.strip().lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        raise StartRefused(f"{variable}: expected 1 or 0, found {text!r}")
    if isinstance(default, float):
        try:
            return float(text)
        except ValueError as error:
            raise StartRefused(f"{variable}: expected a number of seconds, found {text!r}") from error
    if default is None:  # of all settings, only a port may be none
        try:
            return int(text) if text.strip() else None
        except ValueError as error:
            raise StartRefused(f"{variable}: expected the number of a port, found {text!r}") from error
    return text


def find_folder(start: Path, home: Path) -> Path:
    """Return the `.everlog` folder for work in `start`: the nearest one upwards, like `.git`, or else one to be made in `start`.

    The search ends at the first folder with `.git` or `pyproject.toml`, and before `home`.
    """
    for folder in (start, *start.parents):
        if folder == home:
            break
        if (folder / FOLDER).is_dir():
            return folder / FOLDER
        if (folder / ".git").exists() or (folder / "pyproject.toml").exists():
            break
    return start / FOLDER


def resolve(url: str, *, app: str = "") -> str:
    """Return the URL with `{app}` filled in and `.everlog/` found.

    Raises:
        StartRefused: It is no URL, or names a host where a path is expected.
    """
    if "{app}" in url and not app:
        raise StartRefused(f"expected one log for all apps, found {url!r}: {{app}} stands for an app's name in the store's URL")
    url = url.replace("{app}", app)
    scheme, colon, place = url.partition(":")
    if not colon:
        raise StartRefused(f"expected a URL like sqlite:PATH, found {url!r}")
    if scheme == "sqlite" and place.startswith("//"):
        raise StartRefused(f"expected sqlite:PATH, found a host in {shown(url)!r}: the path follows right behind the colon")
    if scheme == "sqlite" and place.startswith(FOLDER + "/"):
        from pathlib import Path  # only what opens files needs it

        return f"{scheme}:{find_folder(Path.cwd(), Path.home()) / place.removeprefix(FOLDER + '/')}"
    return url


async def migrate_log(settings: Settings) -> Sequence[int] | None:
    """Bring the tables of a log to the version of this Everlog; return the versions reached. ``None``: it has no tables that could be old.

    Raises:
        UnknownAdapter: No adapter answers to the URL's scheme.
        EverlogError: What the adapter says.
    """
    return await _migrated("log", resolve(settings.log_url))


async def migrate_store(settings: Settings, app: str) -> Sequence[int] | None:
    """Do the same with the store of an app. Raises as `migrate_log`."""
    return await _migrated("store", resolve(settings.store_url, app=app))


async def _migrated(port: str, url: str) -> Sequence[int] | None:
    migrate: Callable[[str], Awaitable[Sequence[int]]] | None = _beside_adapter(port, url, "migrate")
    return None if migrate is None else await migrate(url)


async def is_absent(port: str, url: str) -> bool:
    """Tell whether nothing is at a resolved URL of a `log` or a `store`, so that opening it would make one.

    Raises:
        UnknownAdapter: No adapter answers to the URL's scheme.
        EverlogError: What the adapter says.
    """
    asked: Callable[[str], Awaitable[bool]] | None = _beside_adapter(port, url, "is_missing")
    return is_missing(url) if asked is None else await asked(url)


def is_missing(url: str) -> bool:
    """Tell whether a resolved URL names a file that is not there, which opening it would make."""
    scheme, _, place = url.partition(":")
    if scheme != "sqlite" or place == ":memory:":
        return False
    from pathlib import Path  # as in `resolve`

    return not Path(place).exists()


def shown(url: str) -> str:
    """Return a URL as it may be printed: without what stands between `//` and `@`, and of its query only the schema."""
    head, separator, rest = url.partition("//")
    if not separator:
        return url
    rest, _, query = rest.partition("?")
    schema = next((pair for pair in query.split("&") if pair.startswith("schema=")), "")
    return f"{head}//{rest.rpartition('@')[2]}{'?' if schema else ''}{schema}"


async def open_log(settings: Settings, *, clock: Clock) -> Log:
    """Open the log that the settings name.

    Raises:
        UnknownAdapter: No adapter answers to the URL's scheme.
        EverlogError: What the adapter says.
    """
    url = resolve(settings.log_url)
    open_: Callable[..., Awaitable[Log]] = _adapter("log", url)
    return await open_(url, clock=clock)


async def open_store(settings: Settings, app: str, *, clock: Clock) -> Store:
    """Open the store of an app that the settings name.

    Raises:
        UnknownAdapter: No adapter answers to the URL's scheme.
        EverlogError: What the adapter says.
    """
    url = resolve(settings.store_url, app=app)
    open_: Callable[..., Awaitable[Store]] = _adapter("store", url)
    return await open_(url, clock=clock, lease_s=settings.lease_s)


async def examine_log(settings: Settings, *, clock: Clock) -> Examined | None:
    """Look at the log that the settings name, without opening or changing it. ``None``: its adapter has no `examine_log`.

    Raises:
        UnknownAdapter: No adapter answers to the URL's scheme.
    """
    url = resolve(settings.log_url)
    examine: Callable[..., Awaitable[Examined]] | None = _beside_adapter("log", url, "examine_log")
    return None if examine is None else await examine(url, clock=clock)


async def examine_store(settings: Settings, app: str, *, clock: Clock) -> Examined | None:
    """Look at the store of an app that the settings name, without opening or changing it. ``None``: its adapter has no `examine_store`.

    Raises:
        UnknownAdapter: No adapter answers to the URL's scheme.
    """
    url = resolve(settings.store_url, app=app)
    examine: Callable[..., Awaitable[Examined]] | None = _beside_adapter("store", url, "examine_store")
    return None if examine is None else await examine(url, app=app, clock=clock, lease_s=settings.lease_s)


def adapters(port: str) -> Sequence[str]:
    """Return the schemes of the adapters that are installed: those of a `log`, or of a `store`."""
    return sorted({point.name for point in _points(port)})


def _adapter(port: str, url: str) -> Any:
    """Return the opening function that the URL's scheme names, loading its module now and not before."""
    return _point(port, url).load()


def _beside_adapter(port: str, url: str, name: str) -> Any:
    """Return a function that an adapter may have beside its opening function; ``None`` where it has none."""
    from importlib import import_module

    return getattr(import_module(_point(port, url).module), name, None)


def _point(port: str, url: str) -> EntryPoint:
    scheme = url.partition(":")[0]
    found = {point.name: point for point in _points(port)}
    if scheme not in found:
        raise UnknownAdapter(port, shown(url), list(found))
    return found[scheme]


def _points(port: str) -> Collection[EntryPoint]:
    from importlib.metadata import entry_points  # it costs 15 ms, and nothing that only declares an app needs it

    return entry_points(group=f"everlog.{port}s")
