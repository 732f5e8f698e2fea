"""The store in one SQLite file per app: the default, for the processes of one machine."""

from everlog.stores.sqlite.examine import examine_store
from everlog.stores.sqlite.store import SqliteStore, open_store

__all__ = ["SqliteStore", "examine_store", "open_store"]
