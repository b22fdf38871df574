"""Which runs of a layer's weight are kept when it is packed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from esper.plan import Plan, Refusal
from esper.state import Create
from esper_kernels.run_sparse import RunSparse
from esper_passes import packing

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper_passes.lowerable import Lowerable


def filled(model: Model, layer: Lowerable) -> Tensor:
    """Where a weight counts, as (outputs, inputs): by its mask, or where it is not zero."""
    tensor = model.tensor(str((layer.mask or layer.read).target))
    assert tensor is not None
    return layer.matrix(tensor.detach()) != 0


def chosen(model: Model, layer: Lowerable, rows: int, run: int) -> Tensor | Refusal:
    """The index of all runs that count; a refusal where that would be every run."""
    name = layer.node.name
    try:
        index = RunSparse.pack(filled(model, layer), rows, run).index
    except ValueError as error:
        return Refusal("no-runs", f"{layer.weight}: {error}", name, "name other runs")
    if index.shape[1] == -(-layer.size[1] // run):
        return Refusal(
            "nothing-to-skip",
            f"some group of {rows} rows of {layer.weight} needs every run of {run} inputs",
            name,
            "sparsify it first, or name the rows and runs of its pattern",
        )
    return index


def followed(model: Model, layer: Lowerable, rows: int, run: int, live: Plan) -> Tensor | Refusal:
    """The index that the live model's plan has for the same weight, if it keeps all that counts."""
    name = f"{layer.weight}_index"
    index = next(
        op.value
        for tensor, ops in live.state.ops.items()
        for op in ops
        if isinstance(op, Create) and tensor.startswith(name)
    )
    counts = filled(model, layer)
    if bool((counts & ~packing.kept(index, layer.size, rows, run).to(counts.device)).any()):
        return Refusal(
            "other-zeros",
            f"{layer.weight} is not zero where the live model's is",
            layer.node.name,
            "lower at the boundary at which the weight becomes sparse",
        )
    return index
