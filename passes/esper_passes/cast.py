"""Computing in half precision inside, behind ports that keep their dtype."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from esper.passbase import Context, Pass, Proposals, Remark, Rewrite
from esper.plan import Plan, Refusal
from esper.propose import Cast as Proposal
from esper.state import Replace, StateTransform
from esper_passes.casting import DtypeConflictError, Lowering, computation, scales

if TYPE_CHECKING:
    from esper.ir.model import Model

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Cast(Pass):
    """Compute in bfloat16 or float16 inside; inputs and outputs keep their dtype."""

    name: ClassVar[str] = "cast"
    dtype: Literal["bfloat16", "float16"] = field(
        default="bfloat16", metadata={"doc": "precision of the computation inside"}
    )

    def propose(self, model: Model, context: Context) -> Proposals:
        """One proposal for the whole model, or a remark that nothing is left to cast."""
        wide = wide_tensors(model, DTYPES[self.dtype])
        if not wide:
            yield Remark("analysis", "nothing-to-cast", f"no tensor is wider than {self.dtype}")
            return
        yield Proposal(dtype=self.dtype, proposer=self.name, evidence={"tensors": len(wide)})


class CastRewrite(Rewrite):
    """Lowers parameters, floating buffers of the computation, and dtype literals.

    What depends on no parameter and no floating input (rotary tables, masks, positions) is
    computed as before, and cast where the computation reads it, clamped to the range of the new
    dtype so that a mask of the most negative number does not become infinite. A number that keeps
    a divisor from zero (`clamp_min(x, 1e-12)`) and would itself become zero in float16 is raised
    to the least positive one. A module that raises its input to float32 and lowers its result (RMS
    norms, softmax) does so still; if the dtypes do not fit together then, everything is lowered.
    Layers that multiply integers round their rows in full precision (see `integer_layer`).
    """

    type: ClassVar[str] = "cast"

    def plan(self, model: Model, proposal: Proposal) -> Plan | Refusal:
        """Refuses complex models (`complex`), and models whose ops reject the dtype (`dtype`)."""
        dtype = DTYPES[proposal.dtype]
        wide = wide_tensors(model, dtype)
        if not wide:
            return Refusal(
                "nothing-to-cast",
                f"no tensor of the computation is wider than {proposal.dtype}",
                remedy="none is needed: the model computes in this precision already",
            )
        for name, tensor in model.all_tensors():
            if tensor.is_complex():
                return Refusal(
                    "complex", f"{name} is complex", name, "cast real-valued models only"
                )
        islands = True
        try:
            edits = Lowering(model, dtype, islands=True).run()
        except DtypeConflictError:
            islands = False
            try:
                edits = Lowering(model, dtype, islands=False).run()
            except DtypeConflictError as conflict:
                node = conflict.node
                source = str(node.meta.get("source") or "")
                return Refusal(
                    "dtype",
                    f"%{node.name} does not work in {proposal.dtype}: {conflict.why}"
                    + (f" ({source})" if source else ""),
                    node.name,
                    "keep this model in its precision, or try the other half precision",
                )
        before = sum(t.numel() * t.element_size() for t in wide.values())
        after = sum(t.numel() * dtype.itemsize for t in wide.values())
        return Plan(
            proposal=proposal,
            summary=f"cast {len(wide)} tensors to {proposal.dtype}",
            edits=tuple(edits),
            state=StateTransform(
                {name: (Replace(tensor.detach().to(dtype)),) for name, tensor in wide.items()}
            ),
            tolerance="lossy",
            figures={"bytes_before": before, "bytes_after": after, "islands": islands},
        )


def wide_tensors(model: Model, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Floating parameters, and buffers that the computation reads, not yet of this dtype.

    By canonical name. Buffers that only context reads (frequencies of rotary tables) stay, as do
    scales of layers that multiply integers and of kernels.
    """
    inside = computation(model)
    names = model.canonical_names()
    read = {
        names[str(node.target)]
        for node in model.graph.find_nodes(op="get_attr")
        if str(node.target) in names and any(user in inside for user in node.users)
    }
    context = {
        names[str(node.target)]
        for node in model.graph.find_nodes(op="get_attr")
        if str(node.target) in names and any(user not in inside for user in node.users)
    }
    kept = {names[str(read.target)] for read in scales(model)}
    return {
        name: tensor
        for name, tensor in model.all_tensors()
        if names[name] == name
        and name not in kept
        and tensor.is_floating_point()
        and tensor.dtype != dtype
        and (isinstance(tensor, torch.nn.Parameter) or (name in read and name not in context))
    }
