"""The `merge-branches` pass: parallel branches of a sum become one, exactly where possible."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, fx

from esper.passbase import Context, Pass, Proposals, Remark
from esper.plan import Refusal
from esper.propose import MergeBranches as Proposal
from esper.propose.swaps import Merging
from esper_passes.capture import capture
from esper_passes.fitting import Fitted, fit, held_out
from esper_passes.merge_branches import MergeBranchesRewrite
from esper_passes.parallel import Chain, alike, pair_of_chains
from esper_passes.refit import digest

if TYPE_CHECKING:
    from esper.ir.model import Model

aten = torch.ops.aten
_NOTHING = Remark("analysis", "no-branches", "no sum has two branches that would merge")


@dataclass(frozen=True)
class MergeBranches(Pass):
    """Merge parallel branches of one sum: kernels add up, hidden layers join, twins are averaged.

    The first two compute the same as before. Averaging halves a pair of branches that take the
    same steps in the same shapes, and fits the one that stays to what both gave on calibration
    data; it is tried only if asked for.
    """

    name: ClassVar[str] = "merge-branches"

    how: Literal["exact", "average"] = field(
        default="exact", metadata={"doc": "exact: what computes the same; average: twins, too"}
    )
    only: str = field(default="*", metadata={"doc": "glob over names of nodes that end a branch"})
    steps: int = field(default=200, metadata={"doc": "steps of the internal distillation"})
    lr: float = field(default=3e-3, metadata={"doc": "its learning rate, which falls to zero"})
    held_out: float = field(
        default=0.25, metadata={"doc": "share of the batches, the last ones, that only judge"}
    )

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, not {self.lr}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held-out must lie between 0 and 1, not {self.held_out}")

    def propose(self, model: Model, context: Context) -> Proposals:
        """Sums in graph order, again after each merge, since what was merged may merge further."""
        refused: set[tuple[str, str, Merging]] = set()
        proposed = False
        while True:
            wish = self._next(model, refused)
            if wish is None:
                break
            a, b, how = wish
            refused.add(wish)
            proposed = True
            if how != "average":
                yield Proposal(a=a, b=b, how=how, proposer=self.name)
                continue
            made = self._fitted(model, a, b, context)
            if isinstance(made, Remark):
                yield made
                continue
            name, payload, evidence = made
            # They stay at hand: whoever runs the pass may apply it again, and clears them.
            model.payloads[name] = payload
            yield Proposal(a=a, b=b, how=how, digest=name, proposer=self.name, evidence=evidence)
        if not proposed:
            yield _NOTHING

    def _next(
        self, model: Model, refused: set[tuple[str, str, Merging]]
    ) -> tuple[str, str, Merging] | None:
        ways: tuple[Merging, ...] = ("add", "concatenate")
        if self.how == "average":
            ways = ("add", "average", "concatenate")
        return next(
            (
                (a.name, b.name, how)
                for a, b in self._sums(model)
                for how in ways
                if (a.name, b.name, how) not in refused and _fits(model, a, b, how)
            ),
            None,
        )

    def _sums(self, model: Model) -> Iterator[tuple[fx.Node, fx.Node]]:
        for node in model.graph.nodes:
            if node.target is not aten.add.Tensor or node.kwargs or len(node.args) != 2:
                continue
            a, b = node.args
            if not isinstance(a, fx.Node) or not isinstance(b, fx.Node) or a is b:
                continue
            if any(fnmatch.fnmatchcase(end.name, self.only) for end in (a, b)):
                yield a, b

    def _fitted(
        self, model: Model, a: str, b: str, context: Context
    ) -> Remark | tuple[str, dict[str, Tensor], dict[str, float | int | str]]:
        batches = context.batches(f"{self.name}{{how=average}}")
        if len(batches) < 2:
            return Remark(
                "missed",
                "too-little-data",
                "at least two calibration batches are needed, one of them to judge",
                b,
                "give more data",
            )
        nodes = model.nodes
        chains = pair_of_chains(nodes[a], nodes[b])
        assert chains is not None
        stays, goes = chains
        values = [capture(model, {stays.source.name, a, b}, batch) for batch in batches]
        inputs = [v[stays.source.name] for v in values]
        targets = [[v[a] + v[b]] for v in values]
        fixed, start = _start(model, stays, goes)
        found: Fitted = fit(
            lambda index, tensors: [stays.run(inputs[index], {**fixed, **tensors})],
            targets,
            start,
            judged=1,
            held=held_out(len(batches), self.held_out),
            steps=self.steps,
            lr=self.lr,
            progress=lambda done, total: context.progress(done, total, self.name),
        )
        payload = {**fixed, **found.tensors}
        evidence: dict[str, float | int | str] = {
            "error_averaged": found.before,
            "error_fitted": found.after,
            "steps": found.step,
        }
        return digest(payload), payload, evidence


def _fits(model: Model, a: fx.Node, b: fx.Node, how: Merging) -> bool:
    """Whether a way of merging is worth proposing."""
    if how == "average":
        chains = pair_of_chains(a, b)
        return chains is not None and not alike(model, *chains) and bool(chains[0].reads())
    wish = Proposal(a=a.name, b=b.name, how=how)
    return not isinstance(MergeBranchesRewrite().plan(model, wish), Refusal)


def _start(model: Model, stays: Chain, goes: Chain) -> tuple[dict[str, Any], dict[str, Any]]:
    """Averages of both branches, sums in the last step that has tensors: (fixed, trained)."""
    last = [node for node in stays.nodes if any(i.op == "get_attr" for i in node.all_input_nodes)]
    fixed: dict[str, Tensor] = {}
    trained: dict[str, Tensor] = {}
    for mine, theirs in zip(stays.reads(), goes.reads(), strict=True):
        one, two = model.tensor(str(mine.target)), model.tensor(str(theirs.target))
        assert one is not None
        assert two is not None
        total = one.detach() + two.detach()
        adds = bool(last) and last[-1] in mine.users
        if isinstance(one, torch.nn.Parameter) and one.is_floating_point():
            trained[str(mine.target)] = total if adds else total / 2
        elif one.is_floating_point():
            fixed[str(mine.target)] = total / 2
        else:
            fixed[str(mine.target)] = one.detach()
    return fixed, trained
