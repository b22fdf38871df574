"""On a CPU, how many bytes of samples an op works on at once, by kind of processor.

Samples are gathered, rounded and multiplied in parts that are large enough to read the weight
seldom, and small enough not to wait for memory. Where the second begins is measured
(`vnm_linear/README.md`): processors with AMX multiply faster than they read what left a cache, so
their parts are smaller. Rounding passes over its part several times and has smaller ones by itself.
"""

from __future__ import annotations

from esper_kernels.precision import has_tiles
from esper_kernels.scratch import MOST


def gathered() -> int:
    """Bytes of gathered inputs; at most what `scratch` keeps."""
    return 16 << 20 if has_tiles() else MOST


def rounded() -> int:
    """Bytes that are made of samples which are rounded to integers first."""
    return 8 << 20 if has_tiles() else 4 << 20
