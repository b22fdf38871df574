"""A barrier among all programs of a launch, which must be on the device together."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_counters: dict[tuple[torch.device, int], Tensor] = {}


@triton.jit
def wait_for_all(counter, programs):
    """Return once all programs have called it; what they stored before is then visible.

    Each program counts itself in with release order, after a barrier of its own threads, and looks
    with acquire order until all are in.
    """
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < programs:
        pass
    tl.debug_barrier()


@triton.jit
def leave(counter, programs):
    """Count out: the last program leaves the counter at zero, as the next launch finds it."""
    if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == 2 * programs - 1:
        tl.store(counter, 0)


def counter_of(device: torch.device) -> Tensor:
    """A counter at zero, for launches that follow one another on the current stream.

    A captured graph may be replayed beside anything, so each captured launch has its own, set to
    zero by a node of the graph.
    """
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros(1, dtype=torch.int32, device=device)
    key = (device, torch.cuda.current_stream(device).cuda_stream)
    if key not in _counters:
        _counters[key] = torch.zeros(1, dtype=torch.int32, device=device)
    return _counters[key]
