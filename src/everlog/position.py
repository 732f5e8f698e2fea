"""Where a record stands: topic partitions, offsets, and positions as one opaque token."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from typing import Final, NamedTuple, NewType
from uuid import UUID

import msgspec

from everlog.errors import PositionRefused

Offset = NewType("Offset", int)
"""The place of a record in its partition. Offsets of a partition grow; above an adapter they are compared, never computed."""

BEGINNING: Final = Offset(-1)
"""Before the first record of any partition."""


class TopicPartition(NamedTuple):
    """One ordered part of a topic."""

    topic: str
    partition: int


class _Token(msgspec.Struct, array_like=True, frozen=True):
    version: int
    log: bytes
    offsets: dict[str, dict[int, int]]


_TOKEN_VERSION: Final = 1
_RAW_VERSION: Final = msgspec.Raw(msgspec.msgpack.encode(_TOKEN_VERSION))


class Position(msgspec.Struct, frozen=True):
    """A place in several partitions of one log: in each, after the record at the offset given.

    A partition that is not named is not read past at all: a reader starts it at the oldest record that is kept.
    """

    log: UUID
    offsets: Mapping[TopicPartition, Offset]

    def token(self) -> str:
        """Return the position as text for a URL, a header or a shell: `A-Z a-z 0-9 - _`, with a checksum."""
        by_topic: dict[str, dict[int, int]] = {}
        for (topic, partition), offset in sorted(self.offsets.items()):
            by_topic.setdefault(topic, {})[partition] = offset
        body = msgspec.msgpack.encode(_Token(_TOKEN_VERSION, self.log.bytes, by_topic))
        return base64.urlsafe_b64encode(zlib.crc32(body).to_bytes(4, "big") + body).decode().rstrip("=")

    @classmethod
    def parse(cls, token: str, *, log: UUID) -> Position:
        """Return the position that `token` names in the log with the identity `log`.

        Raises:
            PositionRefused: The text is no position token, or it belongs to another log.
        """
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            if zlib.crc32(raw[4:]).to_bytes(4, "big") != raw[:4]:
                raise ValueError("checksum")
            version, *_ = msgspec.msgpack.decode(raw[4:], type=list[msgspec.Raw])
            if version != _RAW_VERSION:
                raise PositionRefused("the position was made by a newer Everlog: upgrade this one")
            parsed = msgspec.msgpack.decode(raw[4:], type=_Token)
            identity = UUID(bytes=parsed.log)
            # The checksum is no secret: whoever sends a token may have made it.
            if any(p < 0 or not BEGINNING <= o < 1 << 63 for parts in parsed.offsets.values() for p, o in parts.items()):
                raise ValueError("no place of a record")
        except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
            shown = token if len(token) <= 40 else token[:40] + "…"
            raise PositionRefused(f"expected a position as `tail --json` or a record gives it, found {shown!r}") from error
        if identity != log:
            raise PositionRefused(f"the position belongs to log {identity}, and this log is {log}: start from a time instead")
        return cls(log, {TopicPartition(t, p): Offset(o) for t, parts in parsed.offsets.items() for p, o in parts.items()})
