"""Gated MLPs set against their ops, and against kernels for their layers where those have any."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx
from torch.nn import functional

from esper.propose import LowerGatedMlp
from esper_passes.contest import Contest, Way
from esper_passes.contest_parts import bytes_of, facts, input_of, runs_of
from esper_passes.gated import Gated, gated
from esper_passes.kept import filled
from esper_passes.kernel_ops import ops as kernels
from esper_passes.random_weight import RandomWeight
from esper_passes.run_structure import find_runs

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper_passes.example_sizes import ExampleSizes

_ACT: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


def gated_contest(model: Model, node: fx.Node, sizes: ExampleSizes) -> Contest | None:
    """A gated MLP whose weights have the same runs, or none; None for what is no such MLP."""
    found = gated(model, node)
    if not isinstance(found, Gated):
        return None  # its layers say why
    layers = (found.gate, found.up)
    first, second = (find_runs(filled(model, layer)) for layer in layers)
    shapes = [None if each is None else (each.rows, each.run) for each in (first, second)]
    if shapes[0] != shapes[1]:
        return None
    rows, run = shapes[0] or (0, 0)
    kept = [runs_of(model, found.gate, first), runs_of(model, found.up, second)]
    act = _ACT[found.activation]

    def weights() -> tuple[RandomWeight, RandomWeight]:
        gate, up = (RandomWeight.like(a, b) for a, b in zip(layers, kept, strict=True))
        return gate, up

    def fused(x: Tensor, gate: RandomWeight, up: RandomWeight) -> Way:
        runs = (rows, run) if run else (None, None)
        reads = (gate.values, up.values, gate.scale, up.scale, gate.index, up.index)
        call = kernels.gated_linear.default
        leaves = (x, *gate.trained_packed, *up.trained_packed)
        return Way(lambda: call(x, *reads, found.activation, *runs), leaves)

    def against_ops(x: Tensor) -> tuple[Way, Way]:
        gate, up = weights()
        present = Way(lambda: act(gate.dense(x)) * up.dense(x), (x, *gate.trained, *up.trained))
        return present, fused(x, gate, up)

    def against_kernels(x: Tensor) -> tuple[Way, Way]:
        gate, up = weights()
        way = fused(x, gate, up)
        apart = Way(lambda: act(gate.packed(x)) * up.packed(x), way.leaves)
        return apart, way

    proposal = LowerGatedMlp(node=node.name, rows=rows, run=run)
    names = tuple(layer.weight for layer in layers)
    int8 = found.gate.scale is not None
    hang_on = {
        **facts("gated_linear", found.gate, sizes, *kept),
        "activation": found.activation,
        "int8": int8,
    }
    x, size, rival = input_of(found.gate, sizes), bytes_of(layers), None
    if run or int8:
        told = {**hang_on, "against": "kernels"}
        rival = Contest(proposal, names, told, x, against_kernels, size)
    return Contest(proposal, names, hang_on, x, against_ops, size, rival)
