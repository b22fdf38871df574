"""The rewrite behind `LowerLowRank`: two layers in a row in one op, and its way back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx

from esper.ir.origin import Origin, origin_of
from esper.passbase import Rewrite
from esper.plan import Erase, Plan, Ref, Refusal, Retarget
from esper.propose import LowerLowRank, RaiseKernel
from esper.state import StateTransform
from esper_passes.editing import occupied
from esper_passes.kernel_ops import ops as kernels
from esper_passes.lowerable import Lowerable, lowerable, origins
from esper_passes.packed_weight import Packer, Unpacker
from esper_passes.raise_linear import LINEAR, as_layer

if TYPE_CHECKING:
    from esper.ir.model import Model


class LowerLowRankRewrite(Rewrite):
    """The node of the second layer calls the kernel; that of the first goes."""

    type = "lower-low-rank"

    def plan(self, model: Model, proposal: LowerLowRank) -> Plan | Refusal:
        """Refuses what is no pair of stored weights with nothing between (`no-low-rank-pair`)."""
        pair = low_rank_pair(model, model.nodes[proposal.node])
        if pair is None:
            return Refusal(
                "no-low-rank-pair",
                f"%{proposal.node} reads no layer without a bias that it alone reads",
                proposal.node,
                "swap it for a low-rank pair first (low-rank)",
            )
        if isinstance(pair, Refusal):
            return pair
        down, up = pair
        if (place := occupied(model, [down.node])) is not None:
            return place
        _ = model.anatomy.axes, model.anatomy.phages  # IDs are those of the two layers
        packer = Packer(model, up.node)
        reads = [packer.add(layer, None).values for layer in pair]
        bias = None if up.bias is None else Ref(up.bias.name)
        args = (Ref(down.x.name), *reads, bias)
        origin = origins(down.node, up.node)
        return Plan(
            proposal=proposal,
            summary=f"%{up.node.name} computes with esper::low_rank_linear",
            edits=(
                Retarget(up.node.name, kernels.low_rank_linear.default, args, origin),
                Erase(down.node.name),
            ),
            state=StateTransform(packer.state),
            tolerance=proposal.tolerance,
            figures={"rank": down.size[0]},
        )


def low_rank_pair(model: Model, node: fx.Node) -> tuple[Lowerable, Lowerable] | Refusal | None:
    """Two layers with stored weights, the second of which is a node; None for what is no pair.

    The value between is narrower than what enters and what leaves.
    """
    up = lowerable(model, node)
    if not isinstance(up, Lowerable):
        return up
    down = lowerable(model, up.x)
    if not isinstance(down, Lowerable) or len(up.x.users) > 1 or down.bias is not None:
        return None
    if (
        down.between is not None
        or up.between is not None
        or down.size[0] >= min(down.size[1], up.size[0])
    ):
        return None
    return down, up


def raise_low_rank(model: Model, proposal: RaiseKernel, node: fx.Node) -> Plan:
    """The plan by which a node is the second of two layers again."""
    args: list[Any] = list(node.args)
    x, down, up, bias = args
    calls = origin_of(node) or (Origin(f"{node.name}_low", LINEAR), Origin(node.name, LINEAR))
    first, second = calls
    unpacker = Unpacker(model, node)
    inner, outer = (
        unpacker.add(read, None, None, None, _size(read), call, call)
        for read, call in ((down, first), (up, second))
    )
    narrow = unpacker.call(first, as_layer(first, Ref(x.name), inner, None)[1])
    target, new = as_layer(second, narrow, outer, bias)
    return Plan(
        proposal=proposal,
        summary=f"%{node.name} is {second.op} of a low-rank value again",
        edits=(*unpacker.inserts, Retarget(node.name, target, new)),
        state=StateTransform(unpacker.state),
        tolerance=proposal.tolerance,
    )


def _size(read: fx.Node) -> tuple[int, int]:
    outputs, inputs = read.meta["val"].shape
    return int(outputs), int(inputs)
