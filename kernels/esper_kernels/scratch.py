"""On a CPU, memory that an op fills and reads within one call, kept for the next.

Memory that was never written has to be mapped page by page, which takes longer than gathering into
it. What is over 32 MiB glibc maps anew each time (mallopt(3), M_MMAP_THRESHOLD), and it gives back
less when that lies at the top of the heap. Below a few MiB the allocator is as fast.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

MOST = 64 << 20  # bytes kept for each thread that calls
_LEAST = 4 << 20


class _Kept(threading.local):
    memory: Tensor | None = None


_kept = _Kept()


def scratch(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    """A contiguous tensor of any content, in the memory of what this thread got before.

    None where new memory is as good, or where too much would be kept.
    """
    size = math.prod(shape) * dtype.itemsize
    if not _LEAST <= size <= MOST:
        return None
    memory = _kept.memory
    if memory is None or len(memory) < size:
        # One made in inference mode could not be written outside of it.
        with torch.inference_mode(False):
            memory = _kept.memory = torch.empty(size, dtype=torch.uint8)
    return memory[:size].view(dtype).view(shape)
