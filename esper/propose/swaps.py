"""Proposals that swap a part for a cheaper one that computes almost, or exactly, the same."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from esper.propose.base import ProposalBase, Tolerance

Merging = Literal["add", "concatenate", "average"]
Quantization = Literal["weight-int8", "weight-int4", "dynamic-int8"]


class LowRankSwap(ProposalBase):
    """A layer with its own weight becomes two layers with a narrow value between them.

    Attributes:
        node: name of the layer's node.
        rank: width of the value between.
        energy: instead of `rank`: the least rank whose singular values hold this share of the sum
            of squares of all. Models that a session averages should be given ranks, since energies
            of averaged weights may ask for another one.
        moment: digest of the second moment of the layer's inputs (`esper_passes.low_rank`), which
            makes the factors best for those inputs; empty: best for the weight itself.
    """

    type: Literal["low-rank-swap"] = "low-rank-swap"
    node: str
    rank: int | None = Field(default=None, ge=1)
    energy: float | None = Field(default=None, gt=0, le=1)
    moment: str = ""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.rank is None) == (self.energy is None):
            raise ValueError("give rank or energy, one of the two")
        return self

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.node,)

    @property
    def tolerance(self) -> Tolerance:
        return "lossy"

    @property
    def payload(self) -> str:
        return self.moment


class MergeFactors(ProposalBase):
    """Two layers with nothing between them become one: the way back from `LowRankSwap`.

    Attributes:
        first, second: names of the nodes; the second reads the first and nothing else does.
    """

    type: Literal["merge-factors"] = "merge-factors"
    first: str
    second: str

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.first, self.second)

    @property
    def tolerance(self) -> Tolerance:
        return "reassociates"


class MergeBranches(ProposalBase):
    """Two parallel branches of one sum become one.

    Attributes:
        a, b: names of the nodes whose values are added; `b` goes. One of them may be the value that
            the other branch reads (an identity branch).
        how: `add`: both are linear in one value, so their kernels add up to one that computes the
            same (RepVGG, arXiv:2101.03697). `concatenate`: two layers with an element-wise function
            between become one pair as wide as both, which computes the same in fewer calls.
            `average`: the branches take the same steps in the same shapes; one stays, with tensors
            that were fitted to the sum on calibration data.
        digest: of the fitted tensors, for `average`; they travel in `Model.payloads`.
    """

    type: Literal["merge-branches"] = "merge-branches"
    a: str
    b: str
    how: Merging = "add"
    digest: str = ""

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.a, self.b)

    @property
    def tolerance(self) -> Tolerance:
        return "lossy" if self.how == "average" else "reassociates"

    @property
    def payload(self) -> str:
        return self.digest


class Distil(ProposalBase):
    """Every trained tensor takes the value that a short distillation found for it.

    Attributes:
        digest: of the tensors, which travel in `Model.payloads`.
        drift_before, drift_after: relative distance of the outputs from the teacher's, on batches
            that were held out. Where it did not fall, the proposal is refused.
    """

    type: Literal["distil"] = "distil"
    digest: str
    drift_before: float = Field(ge=0)
    drift_after: float = Field(ge=0)

    @property
    def tolerance(self) -> Tolerance:
        return "lossy"

    @property
    def payload(self) -> str:
        return self.digest


class QuantizeLayers(ProposalBase):
    """Weights of these layers are kept as small integers with scales.

    Attributes:
        nodes: names of the layers' nodes.
        mode: `weight-int8`: weights as int8 with one scale per output, made floating again where
            they are used. `weight-int4`: the same with two weights a byte and one scale for every
            32 inputs of an output. `dynamic-int8`: inputs are rounded to int8 row by row, too, and
            the product is one of integers.
    """

    type: Literal["quantize-layers"] = "quantize-layers"
    nodes: tuple[str, ...] = Field(min_length=1)
    mode: Quantization = "weight-int8"

    @property
    def targets(self) -> tuple[str, ...]:
        return self.nodes

    @property
    def tolerance(self) -> Tolerance:
        return "lossy"


class QuantizePhage(ProposalBase):
    """Quantise and thereby freeze the weights of a stable phage.

    Attributes:
        region: ID of the phage; a committed seed must have been committed for some time.
        mode: as in `QuantizeLayers`.
    """

    type: Literal["quantize-phage"] = "quantize-phage"
    region: str
    mode: Quantization = "weight-int8"

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.region,)

    @property
    def tolerance(self) -> Tolerance:
        return "lossy"


class DequantizeLayers(ProposalBase):
    """The way back from quantisation: the rounded weights become floating parameters again.

    Attributes:
        nodes: names of the layers' nodes.
        trainable: whether the weights train from now on.
    """

    type: Literal["dequantize-layers"] = "dequantize-layers"
    nodes: tuple[str, ...] = Field(min_length=1)
    trainable: bool = True

    @property
    def targets(self) -> tuple[str, ...]:
        return self.nodes

    @property
    def tolerance(self) -> Tolerance:
        return "lossy"
