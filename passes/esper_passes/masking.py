"""What every change of a mask has in common: the plan that puts a given mask in force."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from esper.ir.ecology import Sparsity
from esper.ir.sparsity import Mask
from esper.ir.weights import MASK
from esper.plan import Edit, Insert, Plan, Ref, Refusal, ReplaceUses, SetLife
from esper.state import Create, Forget, Op, Replace, StateTransform
from esper_passes.liveness import fresh

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.propose import Proposal


def set_anew(
    model: Model,
    proposal: Proposal,
    life: Sparsity,
    mask: torch.Tensor,
    summary: str,
    figures: Mapping[str, Any],
    before: Mask | None,
) -> Plan:
    """The plan by which a weight has `mask` from now on, instead of the mask before, if any.

    Entries that come on start at zero; what the optimizer remembers of changed entries goes.
    """
    old = before.value if before is not None else torch.ones_like(mask)
    weight: list[Op] = []
    for at, values in ((mask & ~old, True), (old & ~mask, False)):
        if bool(at.any()):
            weight.append(Forget(at, values))
    ops: dict[str, tuple[Op, ...]] = {life.tensor: tuple(weight)} if weight else {}
    edits: list[Edit] = []
    if before is not None:
        if not torch.equal(mask, old):
            ops[life.mask] = (Replace(mask),)
    else:
        ops[life.mask] = (Create(mask, trainable=False),)
        edits += _reads(model, life)
    same = {} if before is None else {"since": before.life.since}
    news = bool(ops) or before is None or life.model_copy(update=same) != before.life
    return Plan(
        proposal=proposal,
        summary=summary,
        edits=tuple(edits),
        state=StateTransform(ops),
        lives=(SetLife(f"mask:{life.tensor}", life),) if news else (),
        tolerance=proposal.tolerance,
        figures={
            "density": float(mask.float().mean()),
            "came_on": int((mask & ~old).sum()),
            "went_off": int((old & ~mask).sum()),
            **figures,
        },
    )


def _reads(model: Model, life: Sparsity) -> list[Edit]:
    nodes = model.nodes
    names = set(nodes)
    edits: list[Edit] = []
    for reader in model.readers().get(life.tensor, ()):
        node = nodes[reader]
        if not node.users:
            continue
        read, masked = fresh(names, f"{reader}_mask"), fresh(names, f"{reader}_masked")
        names |= {read, masked}
        # Before the first of its users: a read may stand anywhere above them.
        first, module = min(node.users), str(node.meta.get("module") or "")
        edits += [
            Insert(read, "get_attr", life.mask, (), first.name, module=module),
            Insert(
                masked, "call_function", MASK, (Ref(read), Ref(reader), 0.0), first.name,
                module=str(first.meta.get("module") or ""),
            ),
            ReplaceUses(reader, masked, tuple(user.name for user in node.users)),
        ]  # fmt: skip
    return edits


def given(plan: Plan, life: Sparsity | None) -> torch.Tensor | None:
    """The mask that a plan puts in force; None where it leaves that of before."""
    name = next((c.life.mask for c in plan.lives if isinstance(c.life, Sparsity)), "")
    name = name or ("" if life is None else life.mask)
    for op in plan.state.ops.get(name, ()):
        if isinstance(op, (Create, Replace)):
            return op.value
    return None


def payload(model: Model, digest: str, tensor: str) -> torch.Tensor | Refusal:
    """Scores of a weight's entries that a proposal names by digest."""
    scores = model.payloads.get(digest, {}).get("scores")
    if scores is None:
        return Refusal(
            "missing-payload",
            f"the scores {digest or '(none named)'} of {tensor} are not in memory",
            tensor,
            "build the proposal from session.signals, which keeps them",
        )
    if scores.shape != model.get_parameter(tensor).shape:
        return Refusal(
            "missing-payload",
            f"the scores {digest} have shape {tuple(scores.shape)}, {tensor} has another by now",
            tensor,
            "score it again",
        )
    return scores
