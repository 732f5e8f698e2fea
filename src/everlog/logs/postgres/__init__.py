"""The log in a schema of a PostgreSQL database: many machines publish to it and read it at once."""

from everlog.logs.postgres.log import open_log as open_log
