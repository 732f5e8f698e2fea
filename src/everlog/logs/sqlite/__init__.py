"""The log in one SQLite file, the default."""

from everlog.logs.sqlite.log import SqliteLog, open_log

__all__ = ["SqliteLog", "open_log"]
