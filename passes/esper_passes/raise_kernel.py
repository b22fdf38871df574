"""The rewrite behind `RaiseKernel`: the ops again that a kernel was lowered from.

What they were is remembered with the node (`esper.ir.origin`), so that names, regions and axes are
those of before. A program that was read from a `.pt2` file has lost that; its kernels become the
plainest ops that compute the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import fx

from esper.passbase import Rewrite
from esper.plan import Plan, Refusal
from esper.propose import RaiseKernel
from esper_passes.kernel_ops import ops as kernels
from esper_passes.lower_low_rank import raise_low_rank
from esper_passes.raise_attention import raise_attention
from esper_passes.raise_gated import raise_gated
from esper_passes.raise_integer import raise_integer
from esper_passes.raise_linear import raise_linear

if TYPE_CHECKING:
    from esper.ir.model import Model

# Op -> what plans its way back.
_RAISES: dict[Any, Callable[[Model, RaiseKernel, fx.Node], Plan]] = {
    kernels.vnm_linear.default: raise_linear,
    kernels.int8_linear.default: raise_linear,
    kernels.vnm_int8_linear.default: raise_linear,
    kernels.vnm_dynamic_linear.default: raise_integer,
    kernels.sparse24_linear.default: raise_linear,
    kernels.gated_linear.default: raise_gated,
    kernels.low_rank_linear.default: raise_low_rank,
    kernels.attention_projections.default: raise_attention,
}


class RaiseKernelRewrite(Rewrite):
    """The node keeps its name; the weight is dense again, with zeros where nothing was kept."""

    type = "raise-kernel"

    def plan(self, model: Model, proposal: RaiseKernel) -> Plan | Refusal:
        """Refuses nodes that call no kernel (`no-kernel`)."""
        node = model.nodes[proposal.node]
        plan = _RAISES.get(node.target)
        if plan is None:
            return Refusal(
                "no-kernel",
                f"%{node.name} calls no kernel of esper_kernels",
                node.name,
                f"kernels are called by {', '.join(lowered(model)) or 'no node'}",
            )
        return plan(model, proposal, node)


def lowered(model: Model) -> list[str]:
    """Names of the nodes that call a kernel which can be raised, in graph order."""
    return [node.name for node in model.graph.nodes if node.target in _RAISES]
