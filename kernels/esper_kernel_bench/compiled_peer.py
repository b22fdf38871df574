"""Inductor on the dense layer: what `torch.compile` makes of it without our kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from esper_kernel_bench.contender import Built, Contender, copying
from esper_kernel_bench.layers import Layer
from esper_kernel_bench.peer import composed
from esper_kernel_bench.problem import TOLERANCE, Problem
from esper_kernels import roofline

# Without CUDA graphs of its own, since the clock captures one.
_MODES = {True: "max-autotune-no-cudagraphs", False: None}


def inductor(layer: Layer, dtype: torch.dtype, tuned: bool) -> Contender:
    """The compiled layer; `tuned` searches for the best template of its products."""

    def build(problem: Problem) -> Built:
        torch.compiler.reset()  # shapes of the problem before would use up the recompiles
        weights = [*problem.weights, problem.bias]

        def run(x: Tensor, *own: Tensor | None) -> object:
            *matrices, bias = own
            linears = [lambda rows, w=w: functional.linear(rows, w, bias) for w in matrices]
            return composed(layer, linears)(x)

        compiled = torch.compile(run, dynamic=False, fullgraph=True, mode=_MODES[tuned])
        size, unit = dtype.itemsize, roofline.UNITS[dtype]
        stored = roofline.dense(layer.outputs, layer.inputs, size)

        def work(m: int) -> roofline.Work:
            if layer.kind == "gated":
                return roofline.gated_linear(m, stored, stored, size, unit)
            return roofline.linear(m, stored, size, unit)

        reference = problem.reference(*problem.weights)
        bytes_ = int(stored.bytes * len(problem.weights))
        return Built(copying(compiled, weights), bytes_, reference, TOLERANCE[dtype], work)

    name = "Inductor, max-autotune" if tuned else "Inductor"
    return Contender(name, "peer", "dense", 1.0, build)
