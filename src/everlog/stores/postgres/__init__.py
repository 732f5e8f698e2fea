"""The store in a schema of a PostgreSQL database: the workers of a service may be on many machines."""

from everlog.stores.postgres.store import open_store as open_store
