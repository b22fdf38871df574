"""All entries by name."""

from __future__ import annotations

from tests.zoo import (
    audio,
    classics,
    moe,
    multimodal,
    patterns,
    seq2seq,
    series,
    state_space,
    text_decoders,
    text_encoders,
    vision,
)
from tests.zoo.entry import Entry

TABLES: tuple[tuple[Entry, ...], ...] = (
    classics.TABLE,
    text_encoders.TABLE,
    text_decoders.TABLE,
    seq2seq.TABLE,
    vision.TABLE,
    audio.TABLE,
    series.TABLE,
    multimodal.TABLE,
    moe.TABLE,
    state_space.TABLE,
    *patterns.TABLES,
)

ENTRIES: dict[str, Entry] = {entry.name: entry for table in TABLES for entry in table}
assert len(ENTRIES) == sum(map(len, TABLES)), "two entries bear one name"
