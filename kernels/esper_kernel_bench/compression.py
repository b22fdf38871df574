"""What is done to a weight, as a word on the command line and in results.

- `dense`: nothing.
- `128:2:4x16`: V:N:M in runs; of every 4 runs of 16 inputs 2 stay, alike for 128 outputs.
- `128x64@0.25`: blocks of 128 outputs by 64 inputs, a quarter of which stays.
- `2:4`: two of four consecutive inputs stay.
- `int8`: symmetric, one scale for each output; `PATTERN+int8` is both.
- `low-rank@0.25`: two factors with a quarter of the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from esper.errors import UsageError
from esper.ir.patterns import Pattern

Family = Literal["dense", "runs", "blocks", "2:4", "int8", "low-rank"]
_TEXT = re.compile(r"(?P<base>[^@+]+)(?:@(?P<density>[0-9.]+))?(?P<int8>\+int8)?")


@dataclass(frozen=True)
class Compression:
    """A parsed word.

    Attributes:
        text: the word.
        family: what decides which ops and peers apply.
        density: share of the weights that stays; of the numbers, for low rank.
        pattern: of a sparse weight.
        int8: whether numbers are integers.
    """

    text: str
    family: Family
    density: float = 1.0
    pattern: Pattern | None = None
    int8: bool = False

    @classmethod
    def parse(cls, text: str) -> Compression:
        """Raises UsageError for what is no such word."""
        match = _TEXT.fullmatch(text)
        base = match["base"] if match else text
        share = match["density"] if match else None
        integers = bool(match and match["int8"])
        if base in ("dense", "int8", "low-rank") and not integers:
            if (share is not None) != (base == "low-rank"):
                raise UsageError(f"--patterns: {text!r} is no pattern; low rank is low-rank@SHARE")
            density = 1.0 if share is None else _share(text, share)
            return cls(text, base, density, None, base == "int8")  # type: ignore[arg-type]
        try:
            pattern = Pattern.parse(base, 0.5 if share is None else _share(text, share))
        except ValueError as error:
            raise UsageError(
                f"--patterns: {text!r} is no pattern: dense, int8, low-rank@SHARE, 2:4, V:N:MxRUN, "
                "or RxC@DENSITY, the last two also with +int8"
            ) from error
        blocks = not pattern.of
        if blocks != (share is not None):
            raise UsageError(f"--patterns: {text!r}: blocks have a density, RxC@0.25, others none")
        if pattern.rows == 1 and not blocks:
            if integers or (pattern.keep, pattern.of, pattern.columns) != (2, 4, 1):
                raise UsageError(f"--patterns: no kernel skips the zeros of {text!r}")
            return cls(text, "2:4", 0.5, pattern)
        return cls(text, "blocks" if blocks else "runs", pattern.density, pattern, integers)

    def misfit(self, outputs: int, inputs: int) -> str:
        """Why a weight of that size cannot have the pattern; empty where it can."""
        return "" if self.pattern is None else self.pattern.misfit((outputs, inputs))


def _share(text: str, share: str) -> float:
    try:
        value = float(share)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise UsageError(f"--patterns: the share of {text!r} lies between 0 and 1")
    return value


_RUNS = (8, 16, 64)
_DENSITIES = ("2:4", "1:4", "1:8")
ALL: tuple[str, ...] = (
    "dense",
    *(f"128:{kept}x{run}" for kept in _DENSITIES for run in _RUNS),
    *(f"128x64@{share}" for share in (0.5, 0.25, 0.125)),
    "2:4",
    "int8",
    *(f"128:{kept}x16+int8" for kept in _DENSITIES),
    "low-rank@0.5",
    "low-rank@0.25",
)
QUICK: tuple[str, ...] = (
    "dense",
    "128:2:4x16",
    "128:1:4x16",
    "128:1:4x64",
    "128x64@0.25",
    "2:4",
    "int8",
    "128:1:4x16+int8",
    "low-rank@0.25",
)


def choose(words: Iterable[str]) -> list[Compression]:
    """The compressions that are named: words of the table by glob, or new ones as they are."""
    texts: dict[str, None] = {}
    for word in words:
        fits = [text for text in ALL if fnmatchcase(text, word)]
        texts.update(dict.fromkeys(fits or [word]))
    return [Compression.parse(text) for text in texts]
