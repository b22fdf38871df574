"""Small modules as users write them, by topic."""

from __future__ import annotations

from tests.zoo.entry import Entry
from tests.zoo.patterns import (
    attention,
    convolution,
    custom,
    decoders,
    experts,
    mixing,
    recurrent,
    regions,
    structure,
    windows,
)

TABLES: tuple[tuple[Entry, ...], ...] = (
    structure.TABLE,
    recurrent.TABLE,
    regions.TABLE,
    attention.TABLE,
    windows.TABLE,
    mixing.TABLE,
    experts.TABLE,
    convolution.TABLE,
    decoders.TABLE,
    custom.TABLE,
)
