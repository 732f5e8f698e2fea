"""Looking at a store in PostgreSQL without opening it, for `everlog doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import psycopg

from everlog.clock import Clock
from everlog.drivers.postgres.examine import Subject, examine
from everlog.drivers.postgres.place import place_of
from everlog.drivers.process import Process, is_dead, this_process
from everlog.finding import Examined, Finding, Judgement, Level
from everlog.rules.registering import owner_of
from everlog.stores.postgres.store import SCHEMA
from everlog.stores.postgres.tables import STORE

_MEMBERS: Final = """
    SELECT number, pid, pid_start, boot_id, pid_namespace, (now_us() - seen_us) / 1e6,
        (SELECT count(*) FROM lease WHERE lease.member = member.number)
    FROM member ORDER BY number
"""


async def examine_store(url: str, *, app: str, clock: Clock, lease_s: float) -> Examined:
    """Return what is found out about the store that a URL names, also if the server does not answer. Changes nothing.

    Args:
        url: Where it is.
        app: Whose it should be.
        clock: The time.
        lease_s: For how long a member may be silent.
    """
    name = f"store of {app}"

    async def look(connection: psycopg.AsyncConnection[Any]) -> Examined:
        ((owner, log),) = await (await connection.execute("SELECT app, log FROM service")).fetchall()
        rows = await (await connection.execute(_MEMBERS)).fetchall()
        findings = [Finding(name, "app", *owner_of(owner, app))]
        findings += [Finding(name, what, *judged) for what, judged in _members(rows, lease_s)]
        return Examined(findings, log)

    missing = f"run {app}, or say where its store is with --store-url"
    return await examine(Subject(name, place_of(url, schema=SCHEMA), STORE, missing), look, clock=clock)


def _members(rows: Sequence[Sequence[Any]], lease_s: float) -> Sequence[tuple[str, Judgement]]:
    """Return how many work on it, and each member that is gone or silent while it owns slots."""
    me = this_process()
    live, faults = 0, list[tuple[str, Judgement]]()
    for number, pid, start, boot, namespace, silent_s, slots in rows:
        if is_dead(Process(pid, start, boot, namespace), seen_from=me):
            silent = "has ended"
        elif silent_s > lease_s:
            silent = f"has been silent for {silent_s:,.0f} s"
        else:
            live += 1
            continue
        if slots:
            found = f"process {pid} {silent}, and has {slots} slot{'s' if slots != 1 else ''}"
            faults.append((f"member {number}", Judgement(Level.WARNING, found, "the next process that runs the app takes them")))
    return [("members", Judgement(Level.OK, f"{live} at work")), *faults]
