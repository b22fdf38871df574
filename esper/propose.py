"""The typed vocabulary of change: what any proposer may ask for.

A proposal is plain frozen data with a JSON round trip. It names its targets by stable ID, so it
means the same on a reloaded model, in a log and in a replay. Other packages extend the vocabulary
with `register`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, TypeAdapter, WrapValidator

from esper.errors import UsageError

Tolerance = Literal["exact", "reassociates", "lossy"]


class ProposalBase(BaseModel):
    """Fields that every proposal has.

    Attributes:
        type: names the kind of change; each subclass has one value.
        proposer: who asks (a pass, an agent, a person, a replayed log).
        evidence: figures on which the proposer relied, for the record.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str
    proposer: str = "user"
    evidence: dict[str, float | int | str] = Field(default_factory=dict)

    @property
    def targets(self) -> tuple[str, ...]:
        """Stable IDs or names of the parts that change."""
        return ()

    @property
    def tolerance(self) -> Tolerance:
        """How outputs may differ from what the proposal means to compute."""
        return "exact"


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


def _type_of(cls: type[ProposalBase]) -> str:
    return str(cls.model_fields["type"].default)


_Union = (
    PruneUnits
    | KeepVocabulary
    | DropRegion
    | FuseConvBN
    | FoldConstants
    | EliminateDead
    | Refit
    | Cast
    | SelectBackend
)
_BUILT_IN: dict[str, type[ProposalBase]] = {_type_of(cls): cls for cls in get_args(_Union)}
_others: dict[str, type[ProposalBase]] = {}
_P = TypeVar("_P", bound=ProposalBase)


def register(cls: type[_P]) -> type[_P]:
    """Class decorator: a proposal type of another package joins the vocabulary.

    Its `type` must be that of the package's entry point in `esper.rewrites`, through which logs
    that name it find the class. Raises UsageError for a type that is taken.
    """
    name = _type_of(cls)
    if name in _BUILT_IN or _others.get(name, cls) is not cls:
        raise UsageError(f"the proposal type {name!r} is taken")
    _others[name] = cls
    return cls


def _validate(value: Any, built_in: Callable[[Any], Any]) -> Any:
    """Types of other packages are looked up by name, all else is the union's."""
    name = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    if isinstance(name, str) and name not in _others and name not in _BUILT_IN:
        for point in importlib.metadata.entry_points(group="esper.rewrites", name=name):
            point.load()  # importing the rewrite registers its proposal
    other = _others.get(name) if isinstance(name, str) else None
    return built_in(value) if other is None else other.model_validate(value)


if TYPE_CHECKING:
    Proposal = ProposalBase
else:
    Proposal = Annotated[
        _Union,
        Field(discriminator="type"),
        WrapValidator(_validate),
        SerializeAsAny(),
    ]

ADAPTER: TypeAdapter[Proposal] = TypeAdapter(Proposal)


def parse(data: dict[str, Any] | str) -> Proposal:
    """A proposal from plain data or JSON text. Raises pydantic.ValidationError."""
    return ADAPTER.validate_json(data) if isinstance(data, str) else ADAPTER.validate_python(data)


def schema() -> dict[str, Any]:
    """JSON schema of the union."""
    return ADAPTER.json_schema()
