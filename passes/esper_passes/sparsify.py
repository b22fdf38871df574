"""The pass that masks weights by a pattern."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from esper.ir.patterns import Pattern
from esper.ir.sparsity import contracted_dim
from esper.ir.weights import weight_of
from esper.passbase import Aim, Context, Pass, Proposals, Remark
from esper.propose import FoldMask, SetMask
from esper.state import digest
from esper_passes.weight_scores import weight_scores

if TYPE_CHECKING:
    from esper.ir.model import Model

_BLOCK = "16x16"


@dataclass(frozen=True)
class Sparsify(Pass):
    """Put weights to zero in a pattern (2:4, V:N:M, blocks); no faster until kernels skip zeros."""

    name: ClassVar[str] = "sparsify"
    aim: ClassVar[Aim] = "prepare"
    for_kernels: ClassVar[bool] = True

    pattern: str = field(
        default="2:4",
        metadata={
            "doc": "N:M, V:N:M (alike for V outputs), V:N:MxC (the same of runs of C inputs), RxC "
            f"blocks, block is {_BLOCK}"
        },
    )
    density: float = field(default=0.5, metadata={"doc": "share of blocks that stay"})
    saliency: Literal["magnitude", "taylor", "fisher", "random"] = field(
        default="magnitude", metadata={"doc": "how entries are ranked; the middle two need data"}
    )
    only: str = field(default="*", metadata={"doc": "glob over names of weights"})
    keep_masks: bool = field(
        default=False,
        metadata={"doc": "leave masks in the graph for training on; compact folds them later"},
    )

    def __post_init__(self) -> None:
        Pattern.parse(self._pattern, self.density)  # raises ValueError

    @property
    def _pattern(self) -> str:
        return _BLOCK if self.pattern == "block" else self.pattern

    def propose(self, model: Model, context: Context) -> Proposals:
        """A mask for each weight that a layer contracts and the pattern divides."""
        found = [name for name in _weights(model) if fnmatch.fnmatchcase(name, self.only)]
        chosen: list[str] = []
        for name in found:
            dim = contracted_dim(model, name)
            why = Pattern.parse(self._pattern, self.density, dim).misfit(
                tuple(model.get_parameter(name).shape)
            )
            if why:
                yield Remark(
                    "missed", "pattern-size", f"{name} cannot be masked by {self._pattern}: {why}",
                    name, "prune to a multiple first, or choose a pattern that divides it",
                )  # fmt: skip
            else:
                chosen.append(name)
        if not found:
            yield Remark(
                "missed", "no-weight", f"no layer contracts a weight that matches {self.only!r}"
            )
        scores = self._scores(model, chosen, context)
        for name in chosen:
            label = ""
            if name in scores:
                label = digest(scores[name])
                model.payloads[label] = {"scores": scores[name]}
            record = yield SetMask(
                tensor=name, pattern=self._pattern, density=self.density, scores=label,
                proposer=self.name, evidence={"saliency": self.saliency},
            )  # fmt: skip
            passed = record is not None and record.kind == "passed"
            if not passed:  # else the engine may want to apply it again
                model.payloads.pop(label, None)
            elif not self.keep_masks:
                yield FoldMask(tensor=name, proposer=self.name)

    def _scores(self, model: Model, names: list[str], context: Context) -> dict[str, torch.Tensor]:
        if self.saliency == "random":
            generator = torch.Generator().manual_seed(context.seed)
            return {
                name: torch.rand(
                    model.get_parameter(name).shape, generator=generator, dtype=torch.float64
                )
                for name in names
            }
        if self.saliency == "magnitude" or not names:
            return {}
        return weight_scores(
            model, names, self.saliency, context, f"sparsify{{saliency={self.saliency}}}"
        )


def _weights(model: Model) -> list[str]:
    """Parameters of several dims that contractions read, in graph order."""
    names, parameters = model.canonical_names(), dict(model.named_parameters())
    reads = [found[0] for node in model.graph.nodes if (found := weight_of(node)) is not None]
    every = dict.fromkeys(names[str(read.target)] for read in reads)
    return [
        name
        for name in every
        if name in parameters and parameters[name].ndim > 1 and parameters[name].is_floating_point()
    ]
