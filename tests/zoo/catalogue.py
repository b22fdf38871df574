"""All entries by name."""

from __future__ import annotations

from tests.zoo import classics, patterns
from tests.zoo.entry import Entry

TABLES: tuple[tuple[Entry, ...], ...] = (classics.TABLE, *patterns.TABLES)

ENTRIES: dict[str, Entry] = {entry.name: entry for table in TABLES for entry in table}
assert len(ENTRIES) == sum(map(len, TABLES)), "two entries bear one name"
