"""The log in one SQLite file, the default."""

from everlog.logs.sqlite.examine import examine_log
from everlog.logs.sqlite.log import SqliteLog, open_log

__all__ = ["SqliteLog", "examine_log", "open_log"]
