"""Members and leases: who is alive, who owns a slot, and who may therefore commit for it. The time is the server's.

A lease counts for a commit while its row stays as it is, whatever the time. That its owner was silent for too long only allows another
to take it, which changes the row; so the old owner can go on for as long as nobody did.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import psycopg

from everlog.drivers.members import VERSION_BITS, Membership, able
from everlog.drivers.postgres.database import Connection
from everlog.drivers.process import Process, is_dead
from everlog.errors import LeaseLost, StoreError
from everlog.store import RELAY, Attempt, Joined, Lease, Slot, Survey
from everlog.stores.postgres.rows import columns, first_of, rows_of, run, text_of

BEAT: Final = """
    INSERT INTO member VALUES (%s, %s, %s, %s, %s, %s, now_us(), %s)
    ON CONFLICT (number) DO UPDATE SET seen_us = excluded.seen_us, paused = excluded.paused
"""
_TAKE: Final = """
    INSERT INTO lease VALUES (%s, %s, %s, %s)
    ON CONFLICT (subscription, slot) DO UPDATE SET epoch = excluded.epoch, member = excluded.member
"""
_MEMBERS: Final = """
    SELECT number, pid, pid_start, boot_id, pid_namespace, handles, seen_us > now_us() - %s FROM member ORDER BY number
"""
_LEASES: Final = """
    SELECT subscription, slot, epoch, member FROM lease
    WHERE (subscription, slot) IN (SELECT * FROM unnest(%s::text[], %s::integer[])) FOR SHARE
"""


class Here(NamedTuple):
    """The place from which others are judged."""

    lease_us: int
    process: Process


def beat_values(member: Membership) -> tuple[object, ...]:
    """Return the values of `BEAT`."""
    process = member.process
    paused = {name: text_of(why) for name, why in member.paused.items()}
    return (
        member.number, process.pid, process.start, process.boot, process.namespace,
        msgspec.json.encode(member.handles).decode(), msgspec.json.encode(paused).decode(),
    )  # fmt: skip


async def join(connection: Connection, process: Process, handles: Mapping[str, Sequence[str]], here: Here) -> Joined:
    """Give out a number that no process ever had, and forget the members that are gone."""
    gone = [number for number, is_live, _ in await _members(connection, here) if not is_live]
    # A member that was only silent writes its row again with its next heartbeat.
    await run(connection, "DELETE FROM member WHERE number = ANY(%s)", (gone,))
    number: int = await first_of(connection, "UPDATE service SET next_member = next_member + 1 RETURNING next_member - 1")
    await beat(connection, Membership(number, process, handles))
    return Joined(number, number << VERSION_BITS)


async def beat(connection: Connection, member: Membership) -> None:
    """Note that the member is alive."""
    await run(connection, BEAT, beat_values(member))


async def leave(connection: Connection, member: int) -> None:
    """Free what the member owns, and forget it."""
    await run(connection, "UPDATE lease SET member = NULL WHERE member = %s", (member,))
    await run(connection, "DELETE FROM member WHERE number = %s", (member,))


async def survey(connection: Connection, subscription: str, me: Membership | None, here: Here) -> Survey:
    """Return the live members that may work on the subscription, and the owner of each of its slots. `me` is alive in any case."""
    live = dict(await live_members(connection, here))
    if me is not None:
        live[me.number] = me.handles
    slots = await rows_of(connection, "SELECT slot, member FROM lease WHERE subscription = %s ORDER BY slot", (subscription,))
    return Survey(
        able({number: handles[subscription] for number, handles in live.items() if subscription in handles}),
        {slot: member if member in live else None for slot, member in slots},
    )


async def processes(connection: Connection) -> Sequence[Process]:
    """Return the processes of all members, gone ones included."""
    rows = await rows_of(connection, "SELECT DISTINCT pid, pid_start, boot_id, pid_namespace FROM member")
    return [Process(*row) for row in rows]


class Taken(NamedTuple):
    """A slot that is not free."""

    lease: Lease | None
    """The asker's own; ``None`` where another live member owns it."""


async def taken(connection: Connection, slot: Slot, member: Membership, here: Here) -> Taken | None:
    """Return who has the slot, as `member` sees it; ``None`` where it is free."""
    for epoch, owner in await rows_of(connection, "SELECT epoch, member FROM lease WHERE subscription = %s AND slot = %s", slot):
        if owner == member.number:
            return Taken(Lease(slot, epoch, owner))
        if owner in await live_members(connection, here):
            return Taken(None)
    return None


async def acquire(connection: Connection, slot: Slot, member: Membership, here: Here) -> Lease | None:
    """Take the slot for `member`, which is alive, unless another live member owns it.

    Raises:
        StoreError: The subscription is not registered.
    """
    known = "SELECT 1 FROM subscription WHERE name = %s"
    if slot != RELAY and await first_of(connection, known, (slot.subscription,)) is None:
        raise StoreError(f"subscription {slot.subscription!r} is not in the store: register the app that declares it")
    found = await taken(connection, slot, member, here)
    if found is not None:
        return found.lease
    owned = "SELECT 1 FROM lease WHERE subscription = %s AND slot = %s AND member IS NOT NULL"
    is_unclean = await first_of(connection, owned, slot) is not None
    await beat(connection, member)
    epoch: int = await first_of(connection, "UPDATE service SET epoch = epoch + 1 RETURNING epoch")
    await run(connection, _TAKE, (*slot, epoch, member.number))
    return Lease(slot, epoch, member.number, is_unclean)


async def release(connection: Connection, lease: Lease) -> None:
    """Free the slot, if the lease still counts."""
    await run(
        connection,
        "UPDATE lease SET member = NULL WHERE subscription = %s AND slot = %s AND epoch = %s AND member = %s",
        (*lease.slot, lease.epoch, lease.member),
    )


async def valid(connection: Connection, leases: Sequence[Lease]) -> Collection[Slot]:
    """Return the slots that nobody has taken since their leases were given, and keep them so until the transaction ends."""
    found = {
        (Slot(subscription, slot), epoch, member)
        for subscription, slot, epoch, member in await rows_of(connection, _LEASES, columns([lease.slot for lease in leases], 2))
    }
    return {lease.slot for lease in leases if (lease.slot, lease.epoch, lease.member) in found}


async def check(connection: Connection, lease: Lease, slot: Slot) -> None:
    """Refuse who does not own the slot.

    Raises:
        LeaseLost: The lease is for another slot, or somebody else has taken this one.
    """
    query = "SELECT epoch, member FROM lease WHERE subscription = %s AND slot = %s"
    if lease.slot != slot or await rows_of(connection, query, slot) != [(lease.epoch, lease.member)]:
        what = "the relay" if slot == RELAY else f"slot {slot.number} of {slot.subscription!r}"
        raise LeaseLost(
            f"member {lease.member} owns {what} no longer (epoch {lease.epoch}): nothing was changed; acquire it again"
        )


async def live_members(connection: Connection, here: Here) -> Mapping[int, Mapping[str, Sequence[str]]]:
    """Return the live members and what each handles, by number."""
    return {number: handles for number, is_live, handles in await _members(connection, here) if is_live}


async def attempt(connection: Connection, lease: Lease, attempted: Attempt | None) -> None:
    """Carry out `Store.attempt` inside its transaction."""
    await check(connection, lease, lease.slot)
    if attempted is None:
        await run(connection, "DELETE FROM attempt WHERE subscription = %s AND slot = %s", lease.slot)
        return
    put = "INSERT INTO attempt VALUES (%s, %s, %s) ON CONFLICT (subscription, slot) DO UPDATE SET attempt = excluded.attempt"
    await run(connection, put, (*lease.slot, msgspec.msgpack.encode(attempted)))


async def attempted(connection: Connection, slot: Slot) -> Attempt | None:
    """Return what was attempted in the slot and did not end."""
    body: bytes | None = await first_of(connection, "SELECT attempt FROM attempt WHERE subscription = %s AND slot = %s", slot)
    return None if body is None else msgspec.msgpack.decode(body, type=Attempt)


async def pauses(connection: Connection, here: Here) -> Mapping[str, Sequence[str]]:
    """Return why live members have paused subscriptions, by subscription."""
    live = await live_members(connection, here)
    found: dict[str, list[str]] = {}
    for number, paused in await rows_of(connection, "SELECT number, paused FROM member ORDER BY number"):
        if number in live:
            for subscription, why in msgspec.json.decode(paused, type=dict[str, str]).items():
                found.setdefault(subscription, []).append(why)
    return found


async def _members(connection: Connection, here: Here) -> Sequence[tuple[int, bool, Mapping[str, Sequence[str]]]]:
    found: list[tuple[int, bool, Mapping[str, Sequence[str]]]] = []
    for number, pid, start, boot, namespace, handles, was_heard in await rows_of(connection, _MEMBERS, (here.lease_us,)):
        # A process of another machine is judged by its silence alone.
        is_live = was_heard and not is_dead(Process(pid, start, boot, namespace), seen_from=here.process)
        found.append((number, is_live, msgspec.json.decode(handles, type=dict[str, list[str]])))
    return found


def accuse(connection: psycopg.Connection[Any], lease: Lease, accused: Attempt) -> None:
    """Store an attempt, if the lease still counts, from a thread.

    Raises:
        LeaseLost: It does not.
    """
    put = """
        INSERT INTO attempt SELECT subscription, slot, %s FROM lease WHERE subscription = %s AND slot = %s AND epoch = %s AND member = %s
        ON CONFLICT (subscription, slot) DO UPDATE SET attempt = excluded.attempt
    """
    body = msgspec.msgpack.encode(accused)
    if not connection.execute(put, (body, *lease.slot, lease.epoch, lease.member)).rowcount:
        raise LeaseLost(f"member {lease.member} owns its slot no longer (epoch {lease.epoch}): nothing was changed")
