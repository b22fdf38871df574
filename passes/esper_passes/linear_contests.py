"""Linear layers that kernels might compute faster: found, and set against the op that is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from esper.propose import LowerLinear
from esper_kernels.run_sparse import unpack
from esper_passes import packing
from esper_passes.contest import Contest, Way
from esper_passes.kernel_ops import ops as kernels
from esper_passes.run_structure import Structure, find_runs

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper_passes.example_sizes import ExampleSizes
    from esper_passes.lowerable import Lowerable


def contest_of(
    model: Model, layer: Lowerable, sizes: ExampleSizes, proposer: str
) -> Contest | None:
    """The kernel that fits a layer best; None where its weight has nothing that one could use."""
    read = layer.read if layer.mask is None else layer.mask
    tensor = model.tensor(str(read.target))
    assert tensor is not None
    filled = layer.matrix(tensor.detach()) != 0
    structure = find_runs(filled)
    if structure is None:
        return None
    index = packing.runs_of(filled, structure.rows, structure.run)
    proposal = LowerLinear(
        node=layer.node.name, kernel="vnm_linear", rows=structure.rows, run=structure.run,
        proposer=proposer,
    )  # fmt: skip
    return Contest(
        proposal, layer.weight, facts(layer, sizes, proposal.kernel, structure, index),
        lambda: _ways(layer, sizes, index, structure),
    )  # fmt: skip


def facts(
    layer: Lowerable, sizes: ExampleSizes, op: str, structure: Structure, index: Tensor
) -> dict[str, object]:
    """What the outcome hangs on."""
    outputs, inputs = layer.size
    kept, runs = index.shape[1], -(-inputs // structure.run)
    return {
        "op": op,
        "tokens": sizes.tokens(layer.x),
        "outputs": outputs,
        "inputs": inputs,
        "dtype": str(layer.x.meta["val"].dtype).removeprefix("torch."),
        "pattern": f"{structure.rows}:{kept}:{runs}x{structure.run}",
        "bias": layer.bias is not None,
    }


def _ways(
    layer: Lowerable, sizes: ExampleSizes, index: Tensor, structure: Structure
) -> tuple[Way, Way]:
    outputs, inputs = layer.size
    value = layer.x.meta["val"]
    new: Any = {"dtype": value.dtype, "device": value.device}
    x = torch.randn(*sizes.of(layer.x), **new)
    values = torch.randn(outputs, index.shape[1] * structure.run, **new)
    bias = None if layer.bias is None else torch.randn(outputs, **new)
    index = index.to(value.device)
    weight = unpack(values, index, structure.rows, structure.run, inputs)
    dense = functional.linear, (x, weight, bias)
    packed = (x, values, index, bias, structure.rows, structure.run)
    return dense, (kernels.vnm_linear.default, packed)
