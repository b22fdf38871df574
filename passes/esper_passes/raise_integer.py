"""The way back from the kernel that multiplies integers: the calls that round and scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx

from esper.ir.codec import encode_target
from esper.ir.origin import Origin, origin_of
from esper.plan import Plan, Ref, Retarget
from esper.state import StateTransform
from esper_passes.integer_layer import integer_calls
from esper_passes.kept import Runs
from esper_passes.packed_weight import Unpacker
from esper_passes.raise_linear import stored

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.propose import RaiseKernel


def raise_integer(model: Model, proposal: RaiseKernel, node: fx.Node) -> Plan:
    """The plan by which a node ends a layer of `quantize{mode=dynamic-int8}` again."""
    args: list[Any] = list(node.args)
    x, values, scale, index, bias, rows, run = args
    remembered = list(origin_of(node)[:-1])
    unpacker = Unpacker(model, node)
    shape = len(stored(model, values)), int(x.meta["val"].shape[-1])
    kept = Runs(stored(model, index), rows, run)
    weight = unpacker.weight(values, index, kept, shape, columns=False, froze=False)

    def call(target: Any, given: tuple[Any, ...], what: str) -> Ref:
        origin = Origin(f"{node.name}_{what}", encode_target(target))
        if remembered and remembered[0].op == origin.op:
            origin = remembered.pop(0)
        return unpacker.call(origin, given)

    given = None if bias is None else Ref(bias.name)
    target, new, _ = integer_calls(call, x, node, weight, Ref(scale.name), given)
    return Plan(
        proposal=proposal,
        summary=f"%{node.name} rounds its inputs and multiplies integers again",
        edits=(*unpacker.inserts, Retarget(node.name, target, new), *unpacker.gone),
        state=StateTransform(unpacker.state),
        tolerance=proposal.tolerance,
    )
