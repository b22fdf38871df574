"""What stands beside our ops on a CPU really computes the layer."""

from __future__ import annotations

import pytest
import torch

from esper_kernel_bench import cpu_peers
from esper_kernel_bench.compression import Compression
from esper_kernel_bench.layers import Layer
from esper_kernel_bench.problem import Problem

PATTERNS = [Compression.parse(text) for text in ("128:1:4x16", "128x64@0.5", "low-rank@0.25")]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.parametrize("bias", [True, False])
def test_every_floating_peer_is_right_with_and_without_a_bias(bias: bool) -> None:
    layer = Layer("toy", "up", 256, 128, bias)
    problem = Problem(layer, (5,), torch.float32, "cpu", 0)
    seen = set()
    for contender in cpu_peers.peers(layer, PATTERNS, torch.float32):
        if contender.compression == "int8":
            continue  # without VNNI some saturate, and are found to be wrong
        built = contender.build(problem)
        out = built.make()(problem.input(5))
        assert problem.error(out, built.reference, 5) <= built.tolerance, contender.key
        seen.add(contender.name)
    assert {"dense", "oneDNN, prepacked", "MKL CSR", "MKL BSR", "dense, twice"} < seen
