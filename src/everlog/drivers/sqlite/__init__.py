"""One SQLite file used by many processes: safe opening, one writer at a time, and a bell for those who wait."""
