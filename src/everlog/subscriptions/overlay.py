"""What this process's finished units have written: what the store has not committed yet, and the rows that it committed last.

A handler sees these writes before they are committed; the committer validates every version read, so that whoever read a write
that never came is run again. Behind the commit a row is kept for as long as nobody else can write it: state is written under the lease of a
slot of its subscription, so that holds while this process has all of these slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from everlog.store import Delete, Put, ScanRead, StateKey, Store, Unit, Versioned

if TYPE_CHECKING:
    import asyncio  # loaded when it is used: `import everlog` does without

_MOST_KEPT: Final = 8_192
_MOST_KEPT_BYTES: Final = 512
"""Of one row's value."""
_MOST_VOID: Final = 65_536
"""So many versions that never came are remembered: more than handlers can be suspended over. The commit would find a reader all the same."""


class _Entry(msgspec.Struct):
    """The newest uncommitted write to a row."""

    version: int
    value: bytes | None
    is_blind: bool
    """An addition to a row that its unit had not read: what it comes to is known at the commit."""
    done: asyncio.Future[None] | None = None


class Overlay:
    """Uncommitted writes of one process to one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._entries: dict[StateKey, _Entry] = {}
        self._whole: set[str] = set()  # subscriptions of which this process has all slots
        self._kept: dict[StateKey, Versioned] = {}  # rows of these as this process committed them last, the latest ones
        self._void: dict[int, None] = {}  # versions that were shown and never came, the newest ones
        self._readers = 0  # so many wait for a row that was added to
        self._is_read: asyncio.Event | None = None

    def own(self, subscription: str, *, is_whole: bool) -> None:
        """Note whether this process has all slots of a subscription; to be told before it gives one back."""
        if is_whole:
            self._whole.add(subscription)
        elif subscription in self._whole:
            self._whole.remove(subscription)
            self._kept.clear()

    def apply(self, unit: Unit, values: Mapping[StateKey, bytes]) -> None:
        """Show a finished unit's writes to later readers.

        Args:
            unit: The unit, about to be committed.
            values: What an addition comes to, where its unit had read the row.
        """
        for place, write in unit.writes.items():
            known = self._entries.get(place)
            done = known.done if known is not None else None
            if isinstance(write, Put):
                entry = _Entry(unit.version, write.value, is_blind=False, done=done)
            elif isinstance(write, Delete):
                entry = _Entry(0, None, is_blind=False, done=done)
            else:
                entry = _Entry(unit.version, values.get(place), is_blind=place not in values, done=done)
            self._entries[place] = entry

    def forget(self, unit: Unit, *, is_committed: bool) -> None:
        """Take a unit's writes away: they are committed, or never will be.

        Where they never will be, later writes to the same rows go too: their units may have read these, and whoever read them in turn would
        be run again for nothing, for as long as one of them is under way. Without them, readers see what is committed.
        """
        if not is_committed and unit.writes:
            self._void[unit.version] = None
            if len(self._void) > _MOST_VOID:
                del self._void[next(iter(self._void))]
        if not is_committed:
            for place in unit.reads:
                self._kept.pop(place, None)
        keeps = is_committed and unit.slot.subscription in self._whole
        for place, write in unit.writes.items():
            entry = self._entries.get(place)
            is_own = entry is not None and entry.version == (0 if isinstance(write, Delete) else unit.version)
            self._kept.pop(place, None)
            if entry is not None and (is_own or not is_committed):
                del self._entries[place]
                if keeps and not entry.is_blind:
                    self._keep(place, entry)
                if entry.done is not None and not entry.done.done():
                    entry.done.set_result(None)

    def _keep(self, place: StateKey, entry: _Entry) -> None:
        if entry.value is not None and len(entry.value) > _MOST_KEPT_BYTES:
            return
        self._kept[place] = Versioned(entry.value, entry.version)
        if len(self._kept) > _MOST_KEPT:
            del self._kept[next(iter(self._kept))]

    def known(self, place: StateKey) -> Versioned | None:
        """Return a row as the next unit should see it, if the store need not be asked and nothing be waited for."""
        entry = self._entries.get(place)
        if entry is None:
            return self._kept.get(place)
        return None if entry.is_blind else Versioned(entry.value, entry.version)

    def is_doomed(self, reads: Mapping[StateKey, int], scans: Sequence[ScanRead]) -> bool:
        """Tell whether something that was read will never be committed, so that the reader cannot be either."""
        if not self._void:
            return False
        return any(version in self._void for version in reads.values()) or any(
            version in self._void for scan in scans for _, version in scan.rows
        )

    async def read(self, place: StateKey) -> Versioned:
        """Return a row as the next unit should see it.

        A blind addition is waited for: its sum is the store's to say.
        """
        entry = self._entries.get(place)
        if entry is None or not entry.is_blind:
            return await self._current(place)
        import asyncio  # it costs 40 ms, and whoever only declares an app does not need it

        if entry.done is None:
            entry.done = asyncio.get_running_loop().create_future()
        self._readers += 1
        try:
            await asyncio.shield(entry.done)
            return await self._current(place)
        finally:
            self._readers -= 1
            if not self._readers and self._is_read is not None:
                self._is_read.set()

    async def _current(self, place: StateKey) -> Versioned:
        known = self.known(place)
        return known if known is not None else (await self._store.read([place]))[0]

    @property
    def is_awaited(self) -> bool:
        """Somebody waits until what is added to a row is committed: whoever starts handlers lets them have their turn first.

        Else the next addition is there before the last is committed, for as long as there is a backlog.
        """
        return self._readers > 0

    async def read_by_all(self) -> None:
        """Wait until nobody waits any more for a row that was added to."""
        import asyncio

        while self._readers:
            self._is_read = self._is_read or asyncio.Event()
            self._is_read.clear()
            await self._is_read.wait()

    async def scan(self, state: str, prefix: str) -> list[tuple[str, Versioned]]:
        """Return the rows under a prefix as the next unit should see them, by key text."""
        touched = [place for place in self._entries if place[0] == state and matches(place[1], prefix)]
        latest: dict[str, Versioned] = {}
        for place in touched:  # waits for blind additions, so before the store is read
            latest[place[1]] = await self.read(place)
        rows = dict(await self._store.scan(state, prefix))
        for place in touched:
            entry = self._entries.get(place)
            if entry is not None and not entry.is_blind:
                rows[place[1]] = Versioned(entry.value, entry.version)
            elif place[1] not in rows and latest[place[1]].value is not None:
                rows[place[1]] = latest[place[1]]
        return sorted((key, row) for key, row in rows.items() if row.value is not None)


def matches(key: str, prefix: str) -> bool:
    """Tell whether a key's canonical text starts with the whole elements of a prefix's."""
    return prefix in ("[]", key) or key.startswith(prefix[:-1] + ",")
