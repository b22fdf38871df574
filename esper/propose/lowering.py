"""Proposals that put custom kernels in the place of ops, and take them out again."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from esper.propose.base import ProposalBase, Tolerance

LinearKernel = Literal[
    "vnm_linear", "int8_linear", "vnm_int8_linear", "vnm_dynamic_linear", "sparse24_linear"
]
#: Kernels that skip what is zero in whole runs.
OF_RUNS: tuple[LinearKernel, ...] = ("vnm_linear", "vnm_int8_linear", "vnm_dynamic_linear")


class _Lowering(ProposalBase):
    """A proposal for one node after which the same is computed, with sums in another order."""

    node: str

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.node,)

    @property
    def tolerance(self) -> Tolerance:
        return "reassociates"


class LowerLinear(_Lowering):
    """A linear layer computes with its weight packed: zeros are dropped, int8 is not widened.

    Attributes:
        node: name of the layer's node, which keeps its name.
        kernel: the op of `esper_kernels` that it calls from now on.
        rows, run: for kernels of runs: how many outputs share the inputs that they read, and how
            many inputs in a row are kept or dropped together.
        freeze: the weight trains no more. On a CPU, one that does not is laid out once for the
            fastest product.
    """

    type: Literal["lower-linear"] = "lower-linear"
    kernel: LinearKernel = "vnm_linear"
    rows: int = Field(default=0, ge=0)
    run: int = Field(default=0, ge=0)
    freeze: bool = False

    @model_validator(mode="after")
    def _runs(self) -> Self:
        if (self.kernel in OF_RUNS) != bool(self.rows and self.run):
            need = "needs rows and run" if self.kernel in OF_RUNS else "takes no rows and run"
            raise ValueError(f"{self.kernel} {need}")
        return self


class LowerGatedMlp(_Lowering):
    """act(x G^T) * (x U^T) in one op; both weights are packed alike, or neither is.

    Attributes:
        node: name of the node of the product.
        rows, run: of the runs that both weights keep; 0 for weights without zeros.
        freeze: as for `LowerLinear`, both weights.
    """

    type: Literal["lower-gated-mlp"] = "lower-gated-mlp"
    rows: int = Field(default=0, ge=0)
    run: int = Field(default=0, ge=0)
    freeze: bool = False

    @model_validator(mode="after")
    def _runs(self) -> Self:
        if bool(self.rows) != bool(self.run):
            raise ValueError("give both rows and run, or neither")
        return self


class LowerLowRank(_Lowering):
    """Two linear layers with nothing between them in one op.

    Attributes:
        node: name of the node of the second one; nothing else reads the first.
    """

    type: Literal["lower-low-rank"] = "lower-low-rank"


class LowerAttentionProjections(_Lowering):
    """Queries, keys and values of one value in one op, laid out by heads.

    Attributes:
        node: name of the node of the layer whose outputs are queries, keys and values.
    """

    type: Literal["lower-attention-projections"] = "lower-attention-projections"


class RaiseKernel(_Lowering):
    """The way back: a kernel becomes the ops again that it was lowered from, on unpacked weights.

    Attributes:
        node: name of the node that calls the kernel.
    """

    type: Literal["raise-kernel"] = "raise-kernel"
