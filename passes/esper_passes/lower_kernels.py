"""The pass that puts custom kernels where they are faster than the ops that are there."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from esper.passbase import Context, Pass, Proposals, Remark
from esper.plan import Refusal
from esper.propose import ProposalBase
from esper_passes.attention_contest import attention_contest
from esper_passes.contest import Contest
from esper_passes.example_sizes import ExampleSizes
from esper_passes.gated_contest import gated_contest
from esper_passes.kernel_choice import Chooser, Freeze
from esper_passes.linear_contests import linear_contest, low_rank_contest

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper_passes.duel import Ratio


@dataclass(frozen=True)
class LowerKernels(Pass):
    """Pack weights for custom kernels (V:N:M and blocks, int8, fused MLPs) where those are faster.

    A layer is proposed where the kernel beat the present ops clearly, on random data of the
    example's sizes: as a table shipped for the device says, or as measured here once and kept in
    the user's cache directory. The gate then judges the whole step. Weights keep training, unless
    frozen: on a CPU, kernels of runs are fastest on weights that do not change. Files that hold
    kernels need `import esper_kernels.ops` before they are loaded.
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
    freeze: Freeze = field(
        default="auto",
        metadata={"doc": "whether packed weights stop to train; auto: on a CPU, for inference"},
    )

    def __post_init__(self) -> None:
        if self.margin < 0:
            raise ValueError(f"margin must not be negative, it is {self.margin}")

    def propose(self, model: Model, context: Context) -> Proposals:
        """One proposal for each place where a kernel wins, after one to run where kernels do."""
        chooser = Chooser(model, context, self.name, self.freeze)
        if chooser.bound:
            yield Remark(
                "missed",
                "backend-without-kernels",
                f"{chooser.bound} was asked for, which has no custom kernels",
                remedy="ask for --backend auto, eager or inductor",
            )
            return
        sizes = ExampleSizes(model, context.inputs)
        found = 0
        for find in (gated_contest, attention_contest, low_rank_contest, linear_contest):
            for name in list(model.nodes):
                node = model.nodes.get(name)
                contest = None if node is None else find(model, node, sizes)
                if isinstance(contest, Refusal):
                    yield Remark("missed", contest.code, contest.reason, name, contest.remedy)
                elif contest is not None and self._means(contest):
                    found += 1
                    yield from self._decide(contest, chooser)
        if chooser.trouble:
            yield Remark("analysis", "choice-cache", chooser.trouble)
        if not found:
            yield Remark(
                "analysis",
                "nothing-to-lower",
                "no layer has a weight that a kernel could use",
                remedy="first sparsify{pattern=128:1:4x16}, or quantize{mode=weight-int8}",
            )

    def _means(self, contest: Contest) -> bool:
        return any(fnmatch.fnmatchcase(name, self.only) for name in contest.weights)

    def _decide(self, contest: Contest, chooser: Chooser) -> Iterator[ProposalBase | Remark]:
        """The proposal where the kernel wins, else why not."""
        evidence: dict[str, float | int | str] = {"weight": contest.weights[0]}
        if self.choose == "measured":
            ratio = chooser.ratio(contest, 1 + self.margin)
            evidence |= {"ratio": ratio.median, "lower": ratio.lower, "pairs": ratio.pairs}
            if ratio.lower <= 1 + self.margin:
                than = "the ops that are there"
                remedy = f"it takes {1 + self.margin:g}x to be chosen"
                if not ratio.clear:
                    remedy += "; the bounds are far apart: measure on a quieter machine"
                yield _lost(contest, ratio, than, remedy)
                return
            if contest.rival is not None:
                ratio = chooser.ratio(contest.rival)
                if ratio.median < 1:
                    yield _lost(contest, ratio, "a kernel for each layer", "those are looked at")
                    return
        move = chooser.move()
        if move is not None:
            yield move
        update = {"evidence": evidence, "proposer": self.name}
        yield chooser.proposal(contest).model_copy(update=update)


def _lost(contest: Contest, ratio: Ratio, than: str, remedy: str) -> Remark:
    return Remark(
        "missed",
        "kernel-slower",
        f"{contest.text()} has {ratio.median:.2f}x the speed of {than}, between "
        f"{ratio.lower:.2f}x and {ratio.upper:.2f}x, for {', '.join(contest.weights)}",
        contest.proposal.targets[0],
        remedy,
        {"ratio": ratio.median, "lower": ratio.lower, "upper": ratio.upper, "pairs": ratio.pairs},
    )
