"""Proposals of offline passes: cuts, folds, casts, backends."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from esper.propose.base import ProposalBase, Tolerance


class PruneUnits(ProposalBase):
    """Cut units of an axis out of every tensor that holds them.

    Exact against the model in which these units are masked to zero wherever they are consumed,
    unless the axis shares statistics between units (`Axis.lossy_reason`).

    Attributes:
        axis: axis ID.
        units: birth numbers of the units to cut.
        fold_constants: a unit whose output is a known constant leaves that constant in its
            consumers' biases instead of zero, where this is exact.
    """

    type: Literal["prune-units"] = "prune-units"
    axis: str
    units: tuple[int, ...] = Field(min_length=1)
    fold_constants: bool = False

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.axis,)


class KeepVocabulary(ProposalBase):
    """Keep some rows of an embedding, by token; callers go on using the ids that they know.

    Ids are looked up in a table before they reach the embedding, and those of tokens that are gone
    count as `unknown`. An output along the vocabulary keeps its size and order: where a token is
    gone it holds minus infinity. Exact for inputs of kept tokens at outputs of kept tokens.

    Attributes:
        axis: ID of a vocabulary axis.
        tokens: birth numbers of the rows that stay: the ids of the original vocabulary.
        unknown: the token among them that stands for all that go.
    """

    type: Literal["keep-vocabulary"] = "keep-vocabulary"
    axis: str
    tokens: tuple[int, ...] = Field(min_length=1)
    unknown: int

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.axis,)


class DropRegion(ProposalBase):
    """Bypass a shape-preserving region: its output becomes its input."""

    type: Literal["drop-region"] = "drop-region"
    region: str

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.region,)

    @property
    def tolerance(self) -> Tolerance:
        return "lossy"


class FuseConvBN(ProposalBase):
    """Fold an evaluation-mode batch norm into the convolution or linear layer before it."""

    type: Literal["fuse-conv-bn"] = "fuse-conv-bn"
    convolution: str
    batch_norm: str

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.convolution, self.batch_norm)

    @property
    def tolerance(self) -> Tolerance:
        return "reassociates"


class FoldConstants(ProposalBase):
    """Compute a node that depends on no input and no trainable parameter now, and store it."""

    type: Literal["fold-constants"] = "fold-constants"
    nodes: tuple[str, ...] = Field(min_length=1)

    @property
    def targets(self) -> tuple[str, ...]:
        return self.nodes


class EliminateDead(ProposalBase):
    """Remove nodes whose results reach no output and have no effects, and tensors nobody reads."""

    type: Literal["eliminate-dead"] = "eliminate-dead"
    nodes: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        return (*self.nodes, *self.tensors)


class Refit(ProposalBase):
    """Replace a consumer's weight and bias by a least-squares refit on calibration data.

    The solved tensors travel in `Rewrite` payloads by digest, not in the proposal.
    """

    type: Literal["refit"] = "refit"
    node: str
    digest: str

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.node,)

    @property
    def tolerance(self) -> Tolerance:
        return "lossy"

    @property
    def payload(self) -> str:
        return self.digest


class Cast(ProposalBase):
    """Compute in a lower floating-point precision inside; inputs and outputs keep their dtype."""

    type: Literal["cast"] = "cast"
    dtype: Literal["bfloat16", "float16"]

    @property
    def tolerance(self) -> Tolerance:
        return "lossy"


class SelectBackend(ProposalBase):
    """Run the model on another backend; the graph itself does not change."""

    type: Literal["select-backend"] = "select-backend"
    backend: Literal["eager", "inductor", "onnxruntime", "openvino"]

    @property
    def tolerance(self) -> Tolerance:
        return "reassociates"
