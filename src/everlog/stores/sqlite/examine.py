"""Looking at a store file without opening it, for `everlog doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import apsw

from everlog.clock import Clock
from everlog.drivers.process import Process, is_dead, this_process
from everlog.drivers.sqlite.examine import Subject, examine
from everlog.drivers.sqlite.rows import rows_of
from everlog.finding import Examined, Finding, Judgement, Level
from everlog.rules.registering import owner_of
from everlog.stores.sqlite.tables import STORE


async def examine_store(url: str, *, app: str, clock: Clock, lease_s: float) -> Examined:
    """Return what is found out about the store that `sqlite:PATH` names, also if it is missing, strange or damaged. Changes nothing.

    Args:
        url: Where it is.
        app: Whose it should be.
        clock: The time.
        lease_s: For how long a member may be silent.
    """
    name = f"store of {app}"

    def look(connection: apsw.Connection) -> Examined:
        ((owner, log),) = rows_of(connection, "SELECT app, log FROM meta")
        findings = [Finding(name, "app", *owner_of(owner, app))]
        findings += [Finding(name, what, *judged) for what, judged in _members(connection, clock.monotonic_s(), lease_s)]
        return Examined(findings, UUID(bytes=log) if log is not None else None)

    place = url.removeprefix("sqlite:")
    if place == ":memory:":
        return Examined([Finding(name, "file", Level.OK, "in memory, and gone with its process")], None)
    missing = f"run {app}, or say where its store is with --store-url"
    return await examine(Subject(name, (Path.cwd() / place).resolve(), STORE, missing), look, clock=clock)


def _members(connection: apsw.Connection, now_s: float, lease_s: float) -> Sequence[tuple[str, Judgement]]:
    """Return how many work on it, and each member that is gone or silent while it owns slots."""
    me = this_process()
    live, faults = 0, list[tuple[str, Judgement]]()
    gone: list[tuple[str, Judgement]] = []
    rows = rows_of(
        connection,
        "SELECT number, pid, pid_start, boot_id, pid_namespace, seen_s, (SELECT count(*) FROM lease WHERE lease.member = member.number) "
        "FROM member ORDER BY number",
    )
    for number, pid, start, boot, namespace, seen_s, slots in rows:
        what = f"member {number}"
        if boot != me.boot or is_dead(Process(pid, start, boot, namespace), seen_from=me):
            if slots:
                found = f"process {pid} has ended without giving back its {slots} slot{'' if slots == 1 else 's'}"
                gone.append((what, Judgement(Level.WARNING, found, "run the app again: they are free to be taken")))
        elif (silent_s := now_s - seen_s) > lease_s:
            advice = "others may take its slots: see whether it is stopped, or its event loop blocked, and restart it"
            faults.append((what, Judgement(Level.WARNING, f"process {pid} has been silent for {silent_s:,.0f} s", advice)))
        else:
            live += 1
    if not live:  # with one at work they are taken over within a second
        faults += gone
    return [("workers", Judgement(Level.OK, f"{live:,} at work" if live else "none at work")), *faults]
