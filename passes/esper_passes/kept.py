"""Which entries of a layer's weight are kept when it is packed, and where a kernel finds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from esper.plan import Plan, Refusal
from esper.state import Create, Rearrange
from esper_kernels.run_sparse import RunSparse
from esper_kernels.sparse24 import Sparse24
from esper_passes import packing

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper_passes.lowerable import Lowerable


@dataclass(frozen=True)
class Runs:
    """Kept runs: `index` is that of `RunSparse`."""

    index: Tensor
    rows: int
    run: int

    suffix: ClassVar[str] = "index"

    def move(self, shape: tuple[int, ...], turned: bool) -> Rearrange:
        """From the dense weight, stored as (inputs, outputs) where `turned`, to kept values."""
        return packing.pack_runs(self.index, shape, self.rows, self.run, turned)

    def text(self, inputs: int) -> str:
        """Groups of rows, runs that each keeps, runs, and inputs of a run: `16:16:64x16`."""
        return f"{len(self.index)}:{self.index.shape[1]}:{-(-inputs // self.run)}x{self.run}"


@dataclass(frozen=True)
class TwoOfFour:
    """Two of four: `index` is the metadata of `Sparse24`."""

    index: Tensor

    suffix: ClassVar[str] = "metadata"

    def move(self, shape: tuple[int, ...], turned: bool) -> Rearrange:
        """From the dense weight, stored as (inputs, outputs) where `turned`, to kept values."""
        return packing.pack24(self.index, shape, turned)

    def text(self, inputs: int) -> str:
        """The pattern."""
        return "2:4"


Kept = Runs | TwoOfFour


def filled(model: Model, layer: Lowerable) -> Tensor:
    """Where a weight counts, as (outputs, inputs): by its mask, or where it is not zero."""
    tensor = model.tensor(str((layer.mask or layer.read).target))
    assert tensor is not None
    return layer.matrix(tensor.detach()) != 0


def kept_runs(
    model: Model, layer: Lowerable, rows: int, run: int, live: Plan | None = None
) -> Runs | Refusal:
    """All runs that count; a refusal where that would be every run.

    Args:
        live: the plan of the live model, where this is a copy that keeps what that keeps.
    """
    name = layer.node.name
    if live is not None:
        kept = Runs(_index(layer, Runs.suffix, live), rows, run)
        return _missed(model, layer, kept) or kept
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
    return Runs(index, rows, run)


def kept_two_of_four(
    model: Model, layer: Lowerable, live: Plan | None = None
) -> TwoOfFour | Refusal:
    """The entries that count, if they are at most 2 of 4 and of 16 bits; else a refusal.

    Args:
        live: as for `kept_runs`.
    """
    if live is not None:
        kept = TwoOfFour(_index(layer, TwoOfFour.suffix, live))
        return _missed(model, layer, kept) or kept
    try:
        found = Sparse24.pack(filled(model, layer).to(layer.read.meta["val"].dtype))
    except ValueError as error:
        return Refusal(
            "not-two-of-four",
            f"{layer.weight}: {error}",
            layer.node.name,
            "sparsify{pattern=2:4} and cast it to 16 bits first",
        )
    return TwoOfFour(found.metadata)


def _index(layer: Lowerable, suffix: str, live: Plan) -> Tensor:
    """What the live model's plan creates beside the weight."""
    op = live.state.ops[f"{layer.weight}_{suffix}"][0]
    assert isinstance(op, Create)
    return op.value


def _missed(model: Model, layer: Lowerable, kept: Kept) -> Refusal | None:
    """A refusal where entries count that are not kept."""
    counts = filled(model, layer)
    stays = packing.kept(kept.move(layer.size, turned=False), layer.size)
    if not bool((counts & ~stays.to(counts.device)).any()):
        return None
    return Refusal(
        "other-zeros",
        f"{layer.weight} is not zero where the live model's is",
        layer.node.name,
        "lower at the boundary at which the weight becomes sparse",
    )
