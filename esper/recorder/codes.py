"""Short codes of events: eight characters that name one event of one run.

A code is the event's number, scrambled by a permutation that the run's name chooses. So codes are
unique within a log without a table, the number can be computed back, and the code of another run's
event almost never means anything here. The alphabet is Crockford's base 32, without I, L, O and U:
a code survives being read aloud, and what was misread as one of these is read back.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
LENGTH = 8
_BITS = 5 * LENGTH
_MASK = (1 << _BITS) - 1
_HALF = _BITS // 2
_PAIRS = [first + second for first in ALPHABET for second in ALPHABET]
_VALUES = {character: value for value, character in enumerate(ALPHABET)}
_MISREAD = str.maketrans("OIL", "011", "- ")

#: Events that a log can hold: as many as there are codes.
MOST = 1 << _BITS


class Codes:
    """Codes of one run."""

    def __init__(self, run: str) -> None:
        key = hashlib.blake2b(run.encode(), digest_size=15, person=b"esper code").digest()
        words = [int.from_bytes(key[i : i + 5], "little") for i in (0, 5, 10)]
        # Odd factors and shifts by half the bits can be undone modulo 2**40: a permutation.
        self._first, self._second, self._offset = words[0] | 1, words[1] | 1, words[2]
        self._undo_first = pow(self._first, -1, 1 << _BITS)
        self._undo_second = pow(self._second, -1, 1 << _BITS)

    def code(self, number: int) -> str:
        """The code of an event by its number."""
        x = (number * self._first + self._offset) & _MASK
        x ^= x >> _HALF
        x = (x * self._second) & _MASK
        x ^= x >> _HALF
        return (
            _PAIRS[x >> 30] + _PAIRS[(x >> 20) & 1023] + _PAIRS[(x >> 10) & 1023] + _PAIRS[x & 1023]
        )

    def number(self, code: str) -> int:
        """The number that has this code (of eight characters), whether or not it was recorded."""
        x = 0
        for character in code:
            x = x << 5 | _VALUES[character]
        x ^= x >> _HALF
        x = (x * self._undo_second) & _MASK
        x ^= x >> _HALF
        return ((x - self._offset) * self._undo_first) & _MASK


@lru_cache(maxsize=64)
def codes(run: str) -> Codes:
    """The codes of a run."""
    return Codes(run)


def normalized(text: str) -> str | None:
    """A code or its beginning as it is written here; None for what can be no code."""
    found = text.strip().upper().translate(_MISREAD)
    return found if 0 < len(found) <= LENGTH and all(c in _VALUES for c in found) else None
