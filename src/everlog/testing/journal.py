"""What the log of a world holds, read as it grows, in the log's order."""

from __future__ import annotations

from collections.abc import Mapping

from everlog.errors import RecordsGone
from everlog.log import Log
from everlog.position import BEGINNING, Offset, TopicPartition
from everlog.record import StoredRecord


class Journal:
    """A copy of what was published, also of what retention has deleted since.

    Args:
        log: The log.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._reader = log.reader({})
        self._through: dict[TopicPartition, Offset] = {}
        self.records: list[StoredRecord] = []

    async def heads(self) -> Mapping[TopicPartition, Offset]:
        """Return where each partition of the users' topics ends."""
        heads: dict[TopicPartition, Offset] = {}
        for topic in await self._log.topics():
            if not topic.name.startswith("everlog."):
                heads.update((await self._log.head(topic.name)).offsets)
        return heads

    async def read_on(self) -> None:
        """Read what is new."""
        heads = await self.heads()
        for where in heads:
            if where not in self._through:
                self._through[where] = BEGINNING
                self._reader.assign({where: BEGINNING})
        while await self._is_behind(heads):
            try:
                batch = await self._reader.next()
            except RecordsGone as gone:
                where = TopicPartition(gone.topic, gone.partition)
                self._through[where] = Offset(gone.first)
                self._reader.revoke([where])
                self._reader.assign({where: Offset(gone.first)})
                continue
            self.records.extend(batch.records())
            self._through.update(batch.through)

    async def _is_behind(self, heads: Mapping[TopicPartition, Offset]) -> bool:
        behind = [where for where, head in heads.items() if self._through[where] < head]
        for where in behind:
            if (await self._log.backlog(where.topic, {where.partition: self._through[where]})).count:
                return True
        return False

    def close(self) -> None:
        """Read no more."""
        self._reader.close()
