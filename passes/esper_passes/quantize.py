"""The `quantize` pass."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from esper.passbase import Context, Pass, Proposals, Remark
from esper.propose import QuantizeLayers
from esper.propose.swaps import Quantization
from esper_passes.affine import Affine, affine
from esper_passes.editing import weight_of
from esper_passes.quantization import GROUPED, misfit

if TYPE_CHECKING:
    from esper.ir.model import Model


@dataclass(frozen=True)
class Quantize(Pass):
    """Keep weights as int8 or int4, or multiply integers: layer by layer, as the gate admits.

    weight-int8 and weight-int4 make files and memory smaller and cost time, since the weight is
    written out in floating point at each call. dynamic-int8 (linear layers) also rounds the inputs
    row by row and multiplies integers; it is the mode that is faster, on CPUs with instructions
    for it.
    """

    name: ClassVar[str] = "quantize"

    mode: Quantization = field(
        default="dynamic-int8",
        metadata={"doc": "dynamic-int8 for speed; weight-int8, weight-int4 for memory only"},
    )
    only: str = field(default="*", metadata={"doc": "glob over names of weights"})
    least: int = field(
        default=1024, metadata={"doc": "smaller weights (elements) stay as they are"}
    )

    def __post_init__(self) -> None:
        if self.least < 1:
            raise ValueError(f"least must be at least 1, not {self.least}")

    def propose(self, model: Model, context: Context) -> Proposals:
        """One proposal for each layer that the mode fits, in graph order."""
        found = 0
        for name in list(model.nodes):
            node = model.nodes.get(name)
            layer = None if node is None else affine(model, node, grouped=self.mode in GROUPED)
            if not isinstance(layer, Affine) or not fnmatch.fnmatchcase(layer.weight, self.only):
                continue
            size = weight_of(model, layer).numel()
            refusal = misfit(model, layer, self.mode)
            if refusal is not None:
                yield Remark("missed", refusal.code, refusal.reason, name, refusal.remedy)
            elif size >= self.least:
                yield QuantizeLayers(
                    nodes=(name,),
                    mode=self.mode,
                    proposer=self.name,
                    evidence={"weight": layer.weight, "elements": size},
                )
            found += refusal is None and size >= self.least
        if not found:
            yield Remark(
                "analysis",
                "nothing-to-quantise",
                f"no floating weight of {self.least} elements or more is left that "
                f"{self.mode} fits",
                remedy="lower `least` or choose another mode",
            )
