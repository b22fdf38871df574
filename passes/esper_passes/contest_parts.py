"""What contests of several kernels have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from esper_passes.kept_runs import chosen
from esper_passes.kernel_ops import ops as kernels
from esper_passes.lowerable import Lowerable
from esper_passes.random_weight import RandomWeight
from esper_passes.run_structure import Structure

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper_passes.example_sizes import ExampleSizes


def index_of(model: Model, layer: Lowerable, structure: Structure | None) -> Tensor | None:
    """The runs that a layer keeps; None for a layer without runs."""
    if structure is None:
        return None
    index = chosen(model, layer, structure.rows, structure.run)
    assert isinstance(index, Tensor)  # a structure skips something
    return index


def input_of(layer: Lowerable, sizes: ExampleSizes) -> Tensor:
    """A random value of the sizes that the layer reads."""
    value = layer.x.meta["val"]
    return torch.randn(*sizes.of(layer.x), dtype=value.dtype, device=value.device)


def packed(x: Tensor, weight: RandomWeight, rows: int, run: int) -> Tensor:
    """A layer by the kernel that fits its weight."""
    values, scale, index, bias = weight.values, weight.scale, weight.index, weight.bias
    out: Tensor
    if index is None:
        out = kernels.int8_linear.default(x, values, scale, bias)
    elif scale is None:
        out = kernels.vnm_linear.default(x, values, index, bias, rows, run)
    else:
        out = kernels.vnm_int8_linear.default(x, values, scale, index, bias, rows, run)
    return out


def facts(
    op: str, layers: list[tuple[Lowerable, Tensor | None]], run: int, sizes: ExampleSizes
) -> dict[str, object]:
    """What an outcome hangs on, for layers of one size with their runs."""
    layer = layers[0][0]
    outputs, inputs = layer.size
    kept = [f"{len(i)}:{i.shape[1]}:{-(-inputs // run)}x{run}" for _, i in layers if i is not None]
    return {
        "op": op,
        "tokens": sizes.tokens(layer.x),
        "outputs": outputs,
        "inputs": inputs,
        "dtype": dtype_of(layer),
        "pattern": "+".join(dict.fromkeys(kept)) or "dense",
    }


def dtype_of(layer: Lowerable) -> str:
    """What a layer computes in: `float32`."""
    return str(layer.x.meta["val"].dtype).removeprefix("torch.")
