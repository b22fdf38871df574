"""The typed vocabulary of change: what any proposer may ask for.

A proposal is plain frozen data with a JSON round trip. It names its targets by stable ID, so it
means the same on a reloaded model, in a log and in a replay. Other packages extend the vocabulary
with `register`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

from pydantic import Field, SerializeAsAny, TypeAdapter, WrapValidator

from esper.errors import UsageError
from esper.ir.ecology import Blend
from esper.propose.base import ProposalBase, Tolerance
from esper.propose.decay import (
    ForgetScar,
    GrantLease,
    Lyse,
    NoteProbe,
    Sedate,
    TendLedger,
    Wake,
)
from esper.propose.growth import (
    AddBranch,
    Deepen,
    MergeUnits,
    RampUnits,
    ResizeKernel,
    StageKernel,
    WidenUnits,
)
from esper.propose.lowering import (
    LowerAttentionProjections,
    LowerGatedMlp,
    LowerLinear,
    LowerLowRank,
    RaiseKernel,
)
from esper.propose.seeds import AdvanceSeed, CullSeed, PlantSeed
from esper.propose.sparse import ClearMask, FoldMask, GateCells, RegrowMask, SetMask
from esper.propose.structure import (
    Cast,
    DropRegion,
    EliminateDead,
    FoldConstants,
    FuseConvBN,
    KeepVocabulary,
    PruneUnits,
    Refit,
    SelectBackend,
)
from esper.propose.swaps import (
    DequantizeLayers,
    Distil,
    LowRankSwap,
    MergeBranches,
    MergeFactors,
    QuantizeLayers,
    QuantizePhage,
)

__all__ = [
    "ADAPTER",
    "AddBranch",
    "AdvanceSeed",
    "Blend",
    "Cast",
    "ClearMask",
    "CullSeed",
    "Deepen",
    "DequantizeLayers",
    "Distil",
    "DropRegion",
    "EliminateDead",
    "FoldConstants",
    "FoldMask",
    "ForgetScar",
    "FuseConvBN",
    "GateCells",
    "GrantLease",
    "KeepVocabulary",
    "LowRankSwap",
    "LowerAttentionProjections",
    "LowerGatedMlp",
    "LowerLinear",
    "LowerLowRank",
    "Lyse",
    "MergeBranches",
    "MergeFactors",
    "MergeUnits",
    "NoteProbe",
    "PlantSeed",
    "Proposal",
    "ProposalBase",
    "PruneUnits",
    "QuantizeLayers",
    "QuantizePhage",
    "RaiseKernel",
    "RampUnits",
    "Refit",
    "RegrowMask",
    "ResizeKernel",
    "Sedate",
    "SelectBackend",
    "SetMask",
    "StageKernel",
    "TendLedger",
    "Tolerance",
    "Wake",
    "WidenUnits",
    "parse",
    "register",
    "schema",
]


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
    | WidenUnits
    | Sedate
    | Wake
    | Lyse
    | ForgetScar
    | NoteProbe
    | TendLedger
    | GrantLease
    | MergeUnits
    | RampUnits
    | Deepen
    | ResizeKernel
    | StageKernel
    | AddBranch
    | PlantSeed
    | AdvanceSeed
    | CullSeed
    | SetMask
    | RegrowMask
    | GateCells
    | ClearMask
    | FoldMask
    | LowRankSwap
    | MergeFactors
    | MergeBranches
    | Distil
    | QuantizeLayers
    | QuantizePhage
    | DequantizeLayers
    | LowerLinear
    | LowerGatedMlp
    | LowerLowRank
    | LowerAttentionProjections
    | RaiseKernel
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
