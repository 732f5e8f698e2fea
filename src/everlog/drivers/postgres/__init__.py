"""What a log and a store in PostgreSQL share: the place that a URL names, connections and transactions, the schema, the bell."""
