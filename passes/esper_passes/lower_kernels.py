"""The pass that puts custom kernels where they are faster than the ops that are there."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from esper.passbase import Context, Pass, Proposals, Remark
from esper.plan import Refusal
from esper_passes.contest import Contest
from esper_passes.example_sizes import ExampleSizes
from esper_passes.kernel_choice import Chooser
from esper_passes.linear_contests import contest_of
from esper_passes.lowerable import lowerable

if TYPE_CHECKING:
    from esper.ir.model import Model


@dataclass(frozen=True)
class LowerKernels(Pass):
    """Pack weights for custom kernels (V:N:M and blocks, int8, fused MLPs) where those are faster.

    A layer is proposed where the kernel beat the present ops clearly, on random data of the
    example's sizes: as a table shipped for the device says, or as measured here once and kept in
    the user's cache directory. The gate then judges the whole step. Weights keep training; files
    that hold kernels need `import esper_kernels.ops` before they are loaded.
    """

    name: ClassVar[str] = "lower-kernels"
    lowers: ClassVar[bool] = True

    only: str = field(default="*", metadata={"doc": "glob over names of weights"})
    margin: float = field(
        default=0.05, metadata={"doc": "least gain of a kernel over the ops that it replaces"}
    )
    choose: Literal["measured", "all"] = field(
        default="measured", metadata={"doc": "all proposes whatever fits, and measures nothing"}
    )

    def __post_init__(self) -> None:
        if self.margin < 0:
            raise ValueError(f"margin must not be negative, it is {self.margin}")

    def propose(self, model: Model, context: Context) -> Proposals:
        """One proposal for each place where a kernel wins, after one to run where kernels do."""
        chooser = Chooser(model, context, self.name)
        if chooser.bound:
            yield Remark(
                "missed",
                "backend-without-kernels",
                f"{chooser.bound} was asked for, which has no custom kernels",
                remedy="ask for --backend auto, eager or inductor",
            )
            return
        found = 0
        for name in list(model.nodes):
            for wish in self._at(model, name, context):
                if isinstance(wish, Remark):
                    yield wish
                    continue
                found += 1
                evidence: dict[str, float | int | str] = {"weight": wish.weight}
                if self.choose == "measured":
                    ratio = chooser.ratio(wish)
                    evidence |= {"ratio": ratio.median, "lower": ratio.lower, "pairs": ratio.pairs}
                    if ratio.lower <= 1 + self.margin:
                        yield _lost(wish, evidence)
                        continue
                move = chooser.move()
                if move is not None:
                    yield move
                yield wish.proposal.model_copy(update={"evidence": evidence})
        if chooser.trouble:
            yield Remark("analysis", "choice-cache", chooser.trouble)
        if not found:
            yield Remark(
                "analysis",
                "nothing-to-lower",
                "no layer has a weight that a kernel could use",
                remedy="sparsify or quantise first: sparsify{pattern=128:1:4x16}",
            )

    def _at(self, model: Model, name: str, context: Context) -> Iterator[Contest | Remark]:
        """What could be lowered at a node, or why a layer there cannot."""
        node = model.nodes.get(name)
        layer = None if node is None else lowerable(model, node)
        if isinstance(layer, Refusal):
            yield Remark("missed", layer.code, layer.reason, name, layer.remedy)
        elif layer is not None and fnmatch.fnmatchcase(layer.weight, self.only):
            sizes = ExampleSizes(model, context.inputs)
            contest = contest_of(model, layer, sizes, self.name)
            if contest is not None:
                yield contest


def _lost(contest: Contest, evidence: Mapping[str, float | int | str]) -> Remark:
    ratio, lower = float(evidence["ratio"]), float(evidence["lower"])
    facts = contest.facts
    what = f"{facts['op']} on {facts['tokens']} x {facts['inputs']} to {facts['outputs']}"
    return Remark(
        "missed",
        "kernel-slower",
        f"{contest.weight}: {what} ({facts['pattern']}) has {ratio:.2f}x the speed of the ops "
        f"that are there, {lower:.2f}x at least",
        contest.proposal.targets[0],
        "a sparser pattern, longer runs or other sizes may pay",
        {**evidence},
    )
