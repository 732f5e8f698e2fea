"""Handling events again: up to where a replay publishes nothing, and where progress begins anew."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from everlog.errors import CommandRefused
from everlog.position import BEGINNING, Offset, TopicPartition
from everlog.store import Again, Fresh, Muted

_encode: Final = msgspec.msgpack.Encoder().encode


class At(NamedTuple):
    """How far a partition is handled, as it is stored."""

    through: Offset
    unfinished: frozenset[Offset]
    dedupe: bytes


def check_stored(subscription: str, known: Collection[str]) -> None:
    """Check that a store holds a subscription.

    Raises:
        CommandRefused: It does not.
    """
    if subscription not in known:
        raise CommandRefused(f"subscription {subscription!r} is not in the store: it holds {', '.join(sorted(known)) or 'none'}")


def check_back(again: Again, stood: Mapping[TopicPartition, At]) -> None:
    """Check that a subscription can go back to where it is to begin again.

    Raises:
        CommandRefused: It stands before that, or nowhere.
    """
    name = again.subscription
    for where, offset in again.after.items():
        if where not in stood:
            raise CommandRefused(
                f"subscription {name!r} has no progress in {where.topic}/{where.partition}: it begins there anyway"
            )
        if offset > stood[where].through:
            raise CommandRefused(
                f"subscription {name!r} stands at offset {stood[where].through} of {where.topic}/{where.partition}, and was to go back to "
                f"{offset}: nothing was changed"
            )


def handled_again(again: Again, held: Mapping[TopicPartition, Mapping[Offset, int]]) -> Sequence[int]:
    """Return the rows of held records that are handled again, and so are held no more.

    Args:
        again: Behind which offsets.
        held: The rows of held records, by where these stand in the log.
    """
    return [
        row for where, rows in held.items() if where in again.after for offset, row in rows.items() if offset > again.after[where]
    ]


def grown(types: Mapping[str, Sequence[str]], again: Again) -> dict[str, Sequence[str]]:
    """Return the types that a subscription handles from now on, by topic."""
    found = dict(types)
    for topic, more in again.grown.items():
        found[topic] = sorted({*found.get(topic, ()), *more})
    return found


def muted_after(where: TopicPartition, at: At, muted: Muted | None, held: Mapping[Offset, int]) -> Muted:
    """Return whose events were published before: of what was finished in this generation, or muted in it."""
    muted = muted or Muted(where, BEGINNING)
    candidates = {*at.unfinished, *held, *muted.but}
    through = max(at.through, muted.through)

    def is_open(offset: Offset) -> bool:
        """Not finished in this generation."""
        return offset > at.through or offset in at.unfinished or offset in held

    def is_new(offset: Offset) -> bool:
        return is_open(offset) and (offset > muted.through or offset in muted.but)

    fresh = [
        Fresh(
            one.types,
            max(one.above, at.through),
            sorted(
                offset for offset in {*candidates, *one.below} if is_open(offset) and (offset > one.above or offset in one.below)
            ),
        )
        for one in muted.fresh
    ]
    return Muted(where, through, sorted(offset for offset in candidates if offset <= through and is_new(offset)), fresh)


def with_fresh(muted: Muted, again: Again) -> Muted:
    """Return it with the types that are handled from now on: all of their records were passed by."""
    types = again.grown.get(muted.where.topic, ())
    if not types:
        return muted
    return msgspec.structs.replace(muted, fresh=[*muted.fresh, Fresh(types, BEGINNING)])


def back(at: At, after: Offset | None) -> tuple[Offset, bytes, bytes]:
    """Return through, unfinished and dedupe of a partition that begins again behind an offset; ``None``: that goes on."""
    if after is None or after >= at.through:
        return at.through, _encode(sorted(at.unfinished)), at.dedupe
    return after, _encode(sorted(offset for offset in at.unfinished if offset <= after)), b""
