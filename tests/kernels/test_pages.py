"""Large outputs on a CPU: asked for in large pages, and otherwise as any other."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from esper_kernels import pages
from esper_kernels.pages import MAPPED, new_output
from esper_kernels.vnm_linear import cpu, reference
from tests.kernels.problems import Sizes, sparse

SMAPS = Path("/proc/self/smaps")
LARGE = MAPPED // 4 + (1 << 20)  # numbers of float32: two large pages more, wherever it starts


def advised(out: Tensor) -> bool:
    """Whether Linux was asked for large pages in the middle of a tensor (proc_pid_smaps(5))."""
    middle, inside = out.data_ptr() + out.nbytes // 2, False
    for line in SMAPS.read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= middle < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise LookupError("no mapping holds the tensor")


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists() or not SMAPS.exists(),
    reason="this kernel has no large pages",
)
def test_only_large_outputs_ask() -> None:
    like = torch.zeros(1)
    assert advised(new_output(like, LARGE))
    assert not advised(like.new_empty(LARGE))
    assert not advised(new_output(like, MAPPED // 4 - 1))


@pytest.mark.parametrize("missing", [False, True])
def test_an_output_is_like_any_other(monkeypatch: pytest.MonkeyPatch, missing: bool) -> None:
    if missing:
        monkeypatch.setattr(pages, "_madvise", lambda: None)
    out = new_output(torch.zeros(1, dtype=torch.float64), 4, LARGE // 8)
    assert out.shape == (4, LARGE // 8)
    assert out.dtype == torch.float64
    assert out.is_contiguous()
    assert out.fill_(3).sum() == 3 * out.numel()
    assert out.resize_(5, LARGE // 4).fill_(2).sum() == 2 * out.numel()


@pytest.mark.parametrize("outputs", [1024, 1000])  # whole groups, and a shorter one
@pytest.mark.parametrize("trains", [False, True])
def test_a_product_that_is_large(outputs: int, trains: bool) -> None:
    sizes = Sizes(inputs=64, outputs=outputs, rows=128, run=16)
    packed, bias = sparse(sizes, torch.float32), torch.randn(outputs)
    samples = MAPPED // 4 // outputs + 1
    x = torch.randn(samples, sizes.inputs)
    values = packed.values.clone().requires_grad_(trains)
    with torch.no_grad():
        out = cpu.forward(x, values, packed.index, bias, sizes.rows, sizes.run)
    expected = reference.forward(x, packed.values, packed.index, bias, sizes.rows, sizes.run)
    assert out.nbytes >= MAPPED
    torch.testing.assert_close(out, expected, rtol=2e-5, atol=2e-5)


FAULTS = """
import ctypes, resource, sys, torch
import esper_kernels.ops
torch.set_num_threads(1)
if sys.argv[1] == "op":
    x, weight = torch.randn(2, 4), torch.ones(3, 4, dtype=torch.int8)
    torch.ops.esper.int8_linear(x, weight, torch.ones(3), None)
libc, size = ctypes.CDLL(None), 3 << 20
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    layer = [libc.malloc(size) for _ in range(8)]
    for block in layer:
        ctypes.memset(block, 1, size)
    for block in reversed(layer):
        libc.free(block)
    last = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(last)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_what_is_freed_is_kept_after_the_first_op() -> None:
    """Page faults of a layer that frees 24 MiB, in processes that called an op and that did not."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}

    def faults(called: str) -> int:
        command = [sys.executable, "-c", FAULTS, called]
        done = subprocess.run(command, env=ours, capture_output=True, text=True, check=True)
        return int(done.stdout.split()[-1])

    # Something that lives may lie behind what is freed, by chance; then nothing is given back.
    assert any(faults("nothing") > 1000 for _ in range(5))
    assert all(faults("op") < 100 for _ in range(2))
