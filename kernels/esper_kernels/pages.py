"""On a CPU, what new memory costs, and how to pay less.

Memory that was never written is mapped page by page, 4 KiB at a time, which takes longer than
writing it does. Small pieces come from the heap, whose end glibc gives back whenever more than its
trim threshold is free there, to be mapped again at the next call. Whether that happens at every
layer or never hangs on where the heap of a process happens to end (`vnm_linear/README.md` has
figures).

Memory from 32 MiB on is mapped anew at each call (mallopt(3), M_MMAP_THRESHOLD) and cleared page by
page when it is first written, in pages of 4 KiB unless asked otherwise: as long as a sparse product
itself may take. Pages of 2 MiB take a fraction of that (Documentation/admin-guide/mm/transhuge.rst
of Linux). PyTorch asks for them if THP_MEM_ALLOC_ENABLE is set, for every tensor.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable

import torch
from torch import Tensor

_LARGE = 2 << 20
MAPPED = 32 << 20  # bytes from which glibc always maps; below, memory may have been written before


@functools.cache
def keep_freed() -> None:
    """Let glibc keep up to 64 MiB of what is freed, once for the process.

    It raises its thresholds by itself when a mapped piece is freed: pieces as large come from the
    heap thenceforth, and twice as much stays there (mallopt(3), M_MMAP_THRESHOLD). So one as large
    as counts is taken and freed, unwritten. Where thresholds are set by the environment, or memory
    comes from another allocator, that changes nothing.
    """
    torch.empty(MAPPED - (64 << 10), dtype=torch.uint8, device="cpu")


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return advise


def new_output(like: Tensor, *shape: int) -> Tensor:
    """An uninitialised tensor of the type of another, on a CPU.

    Asking for large pages is advice: a kernel without them refuses, which changes nothing.
    """
    out = like.new_empty(shape)
    if out.nbytes >= MAPPED and (advise := _madvise()):
        start = -(-out.data_ptr() // _LARGE) * _LARGE
        stop = (out.data_ptr() + out.nbytes) // _LARGE * _LARGE
        advise(start, stop - start, mmap.MADV_HUGEPAGE)
    return out
