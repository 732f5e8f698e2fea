"""Members and leases: who is alive, who owns a slot, and who may therefore commit for it.

    lease  (subscription, slot) → epoch, member         a new epoch with each acquisition
    member number → process, what it handles, when it was last heard of

A lease counts for a commit while its row stays as it is, whatever the time. That its owner was silent for too long only allows another
to take it, which changes the row; so the old owner can go on for as long as nobody did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import apsw
import msgspec

from everlog.drivers.members import VERSION_BITS, Membership, able
from everlog.drivers.process import Process, is_dead
from everlog.drivers.sqlite.rows import first_of, rows_of
from everlog.errors import LeaseLost, StoreError
from everlog.store import RELAY, Attempt, Joined, Lease, Slot, Survey


@dataclass(frozen=True, slots=True)
class Now:
    """The moment and the place from which others are judged."""

    seconds: float
    """Monotonic time."""
    lease_s: float
    process: Process


def join(connection: apsw.Connection, process: Process, handles: Mapping[str, Sequence[str]], now: Now) -> Joined:
    """Give out a number that no process ever had, and forget the members that are gone."""
    gone = [(number,) for number, is_live, _ in _members(connection, now) if not is_live]
    # A member that was only silent writes its row again with its next heartbeat.
    connection.executemany("DELETE FROM member WHERE number = ?", gone)
    number: int = first_of(connection, "UPDATE meta SET next_member = next_member + 1 RETURNING next_member - 1")
    beat(connection, Membership(number, process, handles), now)
    return Joined(number, number << VERSION_BITS)


def beat(connection: apsw.Connection, member: Membership, now: Now) -> None:
    """Note that the member is alive."""
    process = member.process
    connection.execute(
        "INSERT INTO member VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (number) DO UPDATE SET seen_s = excluded.seen_s, paused = excluded.paused",
        (
            member.number, process.pid, process.start, process.boot, process.namespace,
            msgspec.json.encode(member.handles).decode(), now.seconds, msgspec.json.encode(member.paused).decode(),
        ),
    )  # fmt: skip


def leave(connection: apsw.Connection, member: int) -> None:
    """Free what the member owns, and forget it."""
    connection.execute("UPDATE lease SET member = NULL WHERE member = ?", (member,))
    connection.execute("DELETE FROM member WHERE number = ?", (member,))


def silence(connection: apsw.Connection, member: int) -> None:
    """Make a member one that has not been heard of for ever: others may take its slots. For tests of that."""
    connection.execute("UPDATE member SET seen_s = -1e12 WHERE number = ?", (member,))


def survey(connection: apsw.Connection, subscription: str, me: Membership | None, now: Now) -> Survey:
    """Return the live members that may work on the subscription, and the owner of each of its slots. `me` is alive in any case."""
    live = dict(live_members(connection, now))
    if me is not None:
        live[me.number] = me.handles
    slots = rows_of(connection, "SELECT slot, member FROM lease WHERE subscription = ? ORDER BY slot", (subscription,))
    return Survey(
        able({number: handles[subscription] for number, handles in live.items() if subscription in handles}),
        {slot: member if member in live else None for slot, member in slots},
    )


def processes(connection: apsw.Connection) -> Sequence[Process]:
    """Return the processes of all members, gone ones included."""
    return [Process(*row) for row in rows_of(connection, "SELECT DISTINCT pid, pid_start, boot_id, pid_namespace FROM member")]


class Taken(NamedTuple):
    """A slot that is not free."""

    lease: Lease | None
    """The asker's own; ``None`` where another live member owns it."""


def taken(connection: apsw.Connection, slot: Slot, member: Membership, now: Now) -> Taken | None:
    """Return who has the slot, as `member` sees it; ``None`` where it is free."""
    for epoch, owner in rows_of(connection, "SELECT epoch, member FROM lease WHERE subscription = ? AND slot = ?", slot):
        if owner == member.number:
            return Taken(Lease(slot, epoch, owner))
        if owner in live_members(connection, now):
            return Taken(None)
    return None


def acquire(connection: apsw.Connection, slot: Slot, member: Membership, now: Now) -> Lease | None:
    """Take the slot for `member`, which is alive, unless another live member owns it.

    Raises:
        StoreError: The subscription is not registered.
    """
    if slot != RELAY and first_of(connection, "SELECT 1 FROM subscription WHERE name = ?", (slot.subscription,)) is None:
        raise StoreError(f"subscription {slot.subscription!r} is not in the store: register the app that declares it")
    found = taken(connection, slot, member, now)
    if found is not None:
        return found.lease
    sql = "SELECT 1 FROM lease WHERE subscription = ? AND slot = ? AND member IS NOT NULL"
    is_unclean = first_of(connection, sql, slot) is not None
    beat(connection, member, now)
    epoch = first_of(connection, "UPDATE meta SET epoch = epoch + 1 RETURNING epoch")
    connection.execute(
        "INSERT INTO lease VALUES (?, ?, ?, ?) "
        "ON CONFLICT (subscription, slot) DO UPDATE SET epoch = excluded.epoch, member = excluded.member",
        (*slot, epoch, member.number),
    )
    return Lease(slot, epoch, member.number, is_unclean)


def release(connection: apsw.Connection, lease: Lease) -> None:
    """Free the slot, if the lease still counts."""
    connection.execute(
        "UPDATE lease SET member = NULL WHERE subscription = ? AND slot = ? AND epoch = ? AND member = ?",
        (*lease.slot, lease.epoch, lease.member),
    )


def is_valid(connection: apsw.Connection, lease: Lease) -> bool:
    """Return whether nobody has taken the slot since the lease was given."""
    rows = rows_of(connection, "SELECT epoch, member FROM lease WHERE subscription = ? AND slot = ?", lease.slot)
    return rows == [(lease.epoch, lease.member)]


def check(connection: apsw.Connection, lease: Lease, slot: Slot) -> None:
    """Refuse who does not own the slot.

    Raises:
        LeaseLost: The lease is for another slot, or somebody else has taken this one.
    """
    if lease.slot != slot or not is_valid(connection, lease):
        what = "the relay" if slot == RELAY else f"slot {slot.number} of {slot.subscription!r}"
        raise LeaseLost(
            f"member {lease.member} owns {what} no longer (epoch {lease.epoch}): nothing was changed; acquire it again"
        )


def live_members(connection: apsw.Connection, now: Now) -> Mapping[int, Mapping[str, Sequence[str]]]:
    """Return the live members and what each handles, by number."""
    return {number: handles for number, is_live, handles in _members(connection, now) if is_live}


def attempt(connection: apsw.Connection, lease: Lease, attempted: Attempt | None) -> None:
    """Carry out `Store.attempt` inside the transaction of its group."""
    check(connection, lease, lease.slot)
    if attempted is None:
        connection.execute("DELETE FROM attempt WHERE subscription = ? AND slot = ?", lease.slot)
    else:
        connection.execute("INSERT OR REPLACE INTO attempt VALUES (?, ?, ?)", (*lease.slot, msgspec.msgpack.encode(attempted)))


def attempted(connection: apsw.Connection, slot: Slot) -> Attempt | None:
    """Return what was attempted in the slot and did not end."""
    body: bytes | None = first_of(connection, "SELECT attempt FROM attempt WHERE subscription = ? AND slot = ?", slot)
    return None if body is None else msgspec.msgpack.decode(body, type=Attempt)


def pauses(connection: apsw.Connection, subscription: str, now: Now) -> Sequence[str]:
    """Return why live members have paused a subscription."""
    live = live_members(connection, now)
    found: list[str] = []
    for number, paused in rows_of(connection, "SELECT number, paused FROM member ORDER BY number"):
        why = msgspec.json.decode(paused, type=dict[str, str]).get(subscription)
        if number in live and why is not None:
            found.append(why)
    return found


def _members(connection: apsw.Connection, now: Now) -> Sequence[tuple[int, bool, Mapping[str, Sequence[str]]]]:
    found: list[tuple[int, bool, Mapping[str, Sequence[str]]]] = []
    rows = rows_of(
        connection, "SELECT number, pid, pid_start, boot_id, pid_namespace, handles, seen_s FROM member ORDER BY number"
    )
    for number, pid, start, boot, namespace, handles, seen_s in rows:
        process = Process(pid, start, boot, namespace)
        # The monotonic time of another boot says nothing about this one.
        is_live = boot == now.process.boot and seen_s > now.seconds - now.lease_s and not is_dead(process, seen_from=now.process)
        found.append((number, is_live, msgspec.json.decode(handles, type=dict[str, list[str]])))
    return found
