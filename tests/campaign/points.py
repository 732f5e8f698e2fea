"""The named points at which a process of the campaign kills itself: between any two steps after which a promise could be half kept.

Each is a place in the code that runs in any case; `arm` puts a `kill -9` there, at the n-th time that the process comes by.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from everlog.appending import Append
from everlog.drivers.sqlite.bell import Bell
from everlog.drivers.sqlite.database import Database, Group
from everlog.logs.sqlite.log import SqliteLog
from everlog.logs.sqlite.retention import Deletion
from everlog.logs.sqlite.writer import Writer
from everlog.store import RELAY, Lease
from everlog.stores.sqlite.store import SqliteStore

Hit = Callable[[], None]

# Modules whose names are replaced: to whoever checks types, they may have any.
backup: Final[Any] = import_module("everlog.drivers.sqlite.backup")
store_module: Final[Any] = import_module("everlog.stores.sqlite.store")
writer: Final[Any] = import_module("everlog.logs.sqlite.writer")


def kill() -> None:
    """End this process as a lost machine would."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str, nth: int, kill: Hit = kill) -> None:
    """Kill this process when it comes by a point for the n-th time."""
    left = nth

    def hit() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            kill()

    POINTS[point](hit)


def _is_log(path: Path | None) -> bool:
    return path is not None and path.name == "log.db"


def _append_queued(hit: Hit) -> None:
    append = SqliteLog.append

    def patched(self: SqliteLog, *args: Any, **named: Any) -> Any:
        result = append(self, *args, **named)
        hit()
        return result

    SqliteLog.append = patched  # type: ignore[method-assign]


def _at_log_group(hit: Hit, kind: type[object], *, is_applied: bool) -> None:
    apply = Writer.apply

    def patched(self: Writer, group: Group, jobs: Sequence[Any]) -> Any:
        is_mine = any(isinstance(job, kind) for job in jobs)
        if is_mine and not is_applied:
            hit()
        results = apply(self, group, jobs)
        if is_mine and is_applied:
            hit()
        return results

    Writer.apply = patched  # type: ignore[method-assign]


def _append_begun(hit: Hit) -> None:
    _at_log_group(hit, Append, is_applied=False)


def _append_applied(hit: Hit) -> None:
    _at_log_group(hit, Append, is_applied=True)


def _retention_begun(hit: Hit) -> None:
    _at_log_group(hit, Deletion, is_applied=False)


def _retention_applied(hit: Hit) -> None:
    _at_log_group(hit, Deletion, is_applied=True)


def _retention_given_back(hit: Hit) -> None:
    give_back = writer.give_back

    def patched(*args: Any) -> Any:
        result = give_back(*args)
        hit()
        return result

    writer.give_back = patched


def _at_bell(hit: Hit, *, of_log: bool, has_rung: bool) -> None:
    database: Any = Database
    commit = database._commit_file
    ring = Bell.ring
    inside: list[bool] = []

    def committing(self: Database[Any, Any], jobs: Sequence[Any]) -> Any:
        inside.append(_is_log(self.path) == of_log)
        try:
            return commit(self, jobs)
        finally:
            inside.pop()

    def ringing(self: Bell, number: int) -> None:
        if inside and inside[-1] and not has_rung:
            hit()
        ring(self, number)
        if inside and inside[-1] and has_rung:
            hit()

    database._commit_file = committing
    Bell.ring = ringing  # type: ignore[method-assign]


def _append_committed(hit: Hit) -> None:
    _at_bell(hit, of_log=True, has_rung=False)


def _append_rung(hit: Hit) -> None:
    _at_bell(hit, of_log=True, has_rung=True)


def _group_committed(hit: Hit) -> None:
    _at_bell(hit, of_log=False, has_rung=False)


def _group_rung(hit: Hit) -> None:
    _at_bell(hit, of_log=False, has_rung=True)


def _at_group(hit: Hit, *, is_applied: bool) -> None:
    commit = store_module.commit

    def patched(connection: Any, units: Sequence[Any], *rest: Any, **named: Any) -> Any:
        if units and not is_applied:
            hit()
        result = commit(connection, units, *rest, **named)
        if units and is_applied:
            hit()
        return result

    store_module.commit = patched


def _group_begun(hit: Hit) -> None:
    _at_group(hit, is_applied=False)


def _group_applied(hit: Hit) -> None:
    _at_group(hit, is_applied=True)


def _behind(name: str, hit: Hit, when: Callable[[tuple[Any, ...], Any], bool]) -> None:
    """Come by behind a method of the store, where arguments and result say that it is one of those meant."""
    method = getattr(SqliteStore, name)

    async def patched(self: SqliteStore, *args: Any, **named: Any) -> Any:
        result = await method(self, *args, **named)
        if when((*args, *named.values()), result):
            hit()
        return result

    setattr(SqliteStore, name, patched)


def _relay_numbered(hit: Hit) -> None:
    _behind("number", hit, lambda _, result: bool(result))


def _relay_done(hit: Hit) -> None:
    _behind("number", hit, lambda args, _: bool(args[-1]))


def _relay_sent(hit: Hit) -> None:
    appended = SqliteLog._appended

    async def patched(self: SqliteLog, submitted: Any, count: int) -> Any:
        result = await appended(self, submitted, count)
        hit()
        return result

    SqliteLog._appended = patched  # type: ignore[method-assign]


def _is_slot(lease: Lease | None) -> bool:
    return lease is not None and lease.slot != RELAY


def _takeover_acquired(hit: Hit) -> None:
    _behind("acquire", hit, lambda _, lease: _is_slot(lease))


def _takeover_loaded(hit: Hit) -> None:
    _behind("load", hit, lambda args, _: _is_slot(args[0]))


def _takeover_of_the_relay(hit: Hit) -> None:
    _behind("acquire", hit, lambda _, lease: lease is not None and lease.slot == RELAY)


def _in_backup(name: str, hit: Hit, *, before: bool) -> None:
    step = getattr(backup, name)

    def patched(*args: Any, **named: Any) -> Any:
        if before:
            hit()
        result = step(*args, **named)
        if not before:
            hit()
        return result

    setattr(backup, name, patched)


def _backup_copying(hit: Hit) -> None:
    _in_backup("sync", hit, before=True)


def _backup_copied(hit: Hit) -> None:
    _in_backup("_copy", hit, before=False)


def _backup_checked(hit: Hit) -> None:
    _in_backup("_name", hit, before=True)


def _backup_named(hit: Hit) -> None:
    _in_backup("_name", hit, before=False)


POINTS: Final[Mapping[str, Callable[[Hit], None]]] = {
    "append: queued": _append_queued,
    "append: begun": _append_begun,
    "append: applied, not committed": _append_applied,
    "append: committed, bell not rung": _append_committed,
    "append: rung, nobody told": _append_rung,
    "group commit: begun": _group_begun,
    "group commit: applied, not committed": _group_applied,
    "group commit: committed, bell not rung": _group_committed,
    "group commit: rung, nobody told": _group_rung,
    "relay: numbered, not sent": _relay_numbered,
    "relay: sent, not marked": _relay_sent,
    "relay: marked": _relay_done,
    "takeover: slot acquired": _takeover_acquired,
    "takeover: slot loaded": _takeover_loaded,
    "takeover: relay acquired": _takeover_of_the_relay,
    "retention: begun": _retention_begun,
    "retention: applied, not committed": _retention_applied,
    "retention: pages given back, not committed": _retention_given_back,
    "backup: copying": _backup_copying,
    "backup: copied, not checked": _backup_copied,
    "backup: checked, without its name": _backup_checked,
    "backup: named": _backup_named,
}
"""Point → how to be told that the process comes by."""


def points_of(role: str) -> Sequence[str]:
    """Return the points that processes of a role come by."""
    areas = {
        "producer": ("append",),
        "billing": ("group commit", "relay", "takeover"),
        "shipping": ("group commit", "takeover: slot"),
        "janitor": ("retention", "backup"),
    }[role]
    return [point for point in POINTS if point.startswith(areas)]
