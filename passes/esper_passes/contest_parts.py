"""What contests of several kernels have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from esper_passes.kept import Kept, Runs, kept_runs
from esper_passes.lowerable import Lowerable
from esper_passes.run_structure import Structure

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper_passes.example_sizes import ExampleSizes


def runs_of(model: Model, layer: Lowerable, structure: Structure | None) -> Runs | None:
    """The runs that a layer keeps; None for a layer without runs."""
    if structure is None:
        return None
    kept = kept_runs(model, layer, structure.rows, structure.run)
    assert isinstance(kept, Runs)  # a structure skips something
    return kept


def input_of(layer: Lowerable, sizes: ExampleSizes) -> Callable[[], Tensor]:
    """Makes a random value of the sizes that the layer reads."""

    def make() -> Tensor:
        value = layer.x.meta["val"]
        return torch.randn(*sizes.of(layer.x), dtype=value.dtype, device=value.device)

    return make


def bytes_of(layers: Iterable[Lowerable]) -> int:
    """Bytes of the weights that layers read, as they are stored."""
    return sum(layer.read.meta["val"].nbytes for layer in layers)


def facts(op: str, layer: Lowerable, sizes: ExampleSizes, *kept: Kept | None) -> dict[str, object]:
    """What an outcome hangs on, for layers of one size and what they keep."""
    outputs, inputs = layer.size
    patterns = [each.text(inputs) for each in kept if each is not None]
    return {
        "op": op,
        "tokens": sizes.tokens(layer.x),
        "outputs": outputs,
        "inputs": inputs,
        "dtype": dtype_of(layer),
        "pattern": "+".join(dict.fromkeys(patterns)) or "dense",
    }


def dtype_of(layer: Lowerable) -> str:
    """What a layer computes in: `float32`."""
    return str(layer.x.meta["val"].dtype).removeprefix("torch.")
