"""Other kernels for convolutions: larger ones, and depthwise-then-pointwise pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from esper.passbase import Rewrite
from esper.plan import Erase, Insert, Plan, Ref, Refusal, ReplaceUses, SetArg
from esper.propose import ResizeKernel, StageKernel
from esper.state import Create, Drop, Grow, Op, StateTransform
from esper_passes.liveness import fresh

if TYPE_CHECKING:
    from esper.ir.model import Model

aten = torch.ops.aten
_CONVOLUTIONS = {getattr(aten, f"conv{n}d").default: n for n in (1, 2, 3)}


@dataclass(frozen=True)
class _Convolution:
    """A convolution node, its arguments filled up, and its tensors."""

    node: fx.Node
    rank: int
    weight: str
    value: Tensor
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


def _convolution(model: Model, name: str) -> _Convolution | Refusal:
    node = model.nodes[name]
    rank = _CONVOLUTIONS.get(node.target)
    read: Any = node.args[1] if rank is not None else None
    if rank is None or not isinstance(read, fx.Node) or read.op != "get_attr" or node.kwargs:
        return Refusal(
            "no-convolution",
            f"%{name} ({node.target}) is no convolution with a weight and explicit padding",
            name,
            "name a convolution node",
        )
    weight = model.canonical_names()[str(read.target)]
    if sum(len(model.nodes[r].users) for r in model.readers()[weight]) > 1:
        return Refusal(
            "shared-tensor", f"{weight} serves other places too", name, "untie the tensor before"
        )
    value = model.tensor(weight)
    assert value is not None
    args: list[Any] = [*node.args, *[None] * (7 - len(node.args))]
    stride, padding, dilation = (
        _wide(args[i], default, rank) for i, default in ((3, 1), (4, 0), (5, 1))
    )
    return _Convolution(node, rank, weight, value.detach(), stride, padding, dilation, args[6] or 1)


def _wide(value: Any, default: int, rank: int) -> list[int]:
    items = [default] if value is None else [value] if isinstance(value, int) else list(value)
    return items * rank if len(items) == 1 else items


class ResizeKernelRewrite(Rewrite):
    """A border of zeros around the kernel, and as much more padding."""

    type = "resize-kernel"

    def plan(self, model: Model, proposal: ResizeKernel) -> Plan | Refusal:
        """Refuses sizes that have no border of whole places (`kernel-size`)."""
        found = _convolution(model, proposal.node)
        if isinstance(found, Refusal):
            return found
        present = list(found.value.shape[2:])
        size = list(proposal.size)
        steps = [b - a for a, b in zip(present, size, strict=False)]
        if len(size) != len(present) or any(s < 0 or s % 2 for s in steps) or not any(steps):
            return Refusal(
                "kernel-size",
                f"a kernel of {present} at %{proposal.node} does not grow evenly to {size}",
                proposal.node,
                "give a size along each dimension, larger by an even number",
            )
        ops: list[Op] = []
        shape = list(found.value.shape)
        for dim, step in enumerate(steps, start=2):
            if not step:
                continue
            border = [step if d == dim else s for d, s in enumerate(shape)]
            places = tuple(range(step // 2, step // 2 + shape[dim]))
            ops.append(Grow(dim, places, found.value.new_zeros(border)))
            shape[dim] += step
        padding = [
            p + d * (s // 2) for p, d, s in zip(found.padding, found.dilation, steps, strict=True)
        ]
        args: list[Any] = [*found.node.args, *[None] * (5 - len(found.node.args))]
        args[3], args[4] = found.stride, padding
        encoded = tuple(Ref(a.name) if isinstance(a, fx.Node) else a for a in args)
        return Plan(
            proposal=proposal,
            summary=f"the kernel of %{proposal.node} grows from {present} to {size}",
            # Windows are no axes, so the analysis is made anew: an edit that is no size says so.
            edits=(SetArg(proposal.node, (), encoded),),
            state=StateTransform({found.weight: tuple(ops)}),
            tolerance="reassociates",
            figures={"parameters_added": int(torch.Size(shape).numel() - found.value.numel())},
        )


class StageKernelRewrite(Rewrite):
    """The best depthwise-then-pointwise pair in the least-squares sense (a truncated SVD)."""

    type = "stage-kernel"

    def plan(self, model: Model, proposal: StageKernel) -> Plan | Refusal:
        """Refuses grouped convolutions and single-place kernels (`no-staging`)."""
        found = _convolution(model, proposal.node)
        if isinstance(found, Refusal):
            return found
        outs, ins, *kernel = found.value.shape
        places = int(torch.Size(kernel).numel())
        if found.groups != 1 or places == 1:
            return Refusal(
                "no-staging",
                f"%{proposal.node} has {found.groups} groups and a kernel of {kernel}: there is "
                "nothing to take apart",
                proposal.node,
                "stage a convolution of one group with a window",
            )
        rank = min(proposal.multiplier, places, outs)
        depthwise, pointwise, error = staged(found.value, rank)
        node = found.node
        module = str(node.meta.get("module", ""))
        prefix = f"{module}." if module else ""
        tensors = {name for name, _ in model.all_tensors()}
        names = [fresh(tensors, f"{prefix}{leaf}.weight") for leaf in ("depthwise", "pointwise")]
        taken = set(model.nodes)
        read_d, read_p, first, second = (
            fresh(taken, f"{node.name}_{part}")
            for part in ("depthwise_weight", "pointwise_weight", "depthwise", "pointwise")
        )
        x, weight, bias = (*node.args[:3], None)[:3]
        assert isinstance(x, fx.Node)
        assert isinstance(weight, fx.Node)
        target: Any = node.target
        one = [1] * found.rank
        into = (Ref(x.name), Ref(read_d), None, found.stride, found.padding, found.dilation, ins)
        out = (Ref(first), Ref(read_p), Ref(bias.name) if isinstance(bias, fx.Node) else None)
        modules = [name.rpartition(".")[0] for name in names]
        return Plan(
            proposal=proposal,
            summary=f"%{node.name} becomes {rank} depthwise filters a channel and a pointwise one",
            edits=(
                Insert(read_d, "get_attr", names[0], (), node.name, module=modules[0]),
                Insert(first, "call_function", target, into, node.name, module=modules[0]),
                Insert(read_p, "get_attr", names[1], (), node.name, module=modules[1]),
                Insert(
                    second,
                    "call_function",
                    target,
                    (*out, one, [0] * found.rank, one, 1),
                    node.name,
                    module=modules[1],
                ),
                ReplaceUses(node.name, second),
                Erase(node.name),
                Erase(weight.name),
            ),
            state=StateTransform(
                {
                    names[0]: (Create(depthwise, trainable=True),),
                    names[1]: (Create(pointwise, trainable=True),),
                    found.weight: (Drop(),),
                }
            ),
            tolerance="reassociates" if rank == min(places, outs) else "lossy",
            figures={
                "weight_error": error,
                "parameters_before": found.value.numel(),
                "parameters_after": depthwise.numel() + pointwise.numel(),
            },
        )


def staged(weight: Tensor, multiplier: int) -> tuple[Tensor, Tensor, float]:
    """A pair whose product is closest to a convolution's weight, channel by channel.

    The weight of input channel i is a matrix (outputs x kernel places); its best approximation of
    rank `multiplier` is its truncated singular value decomposition (Eckart and Young 1936), rows
    being the depthwise filters and columns the pointwise weights.

    Args:
        weight: (O, I, *kernel).
        multiplier: filters for each input channel.

    Returns:
        depthwise (I * multiplier, 1, *kernel), pointwise (O, I * multiplier, 1, ...), and the
        relative error of the weight in the Frobenius norm.
    """
    outs, ins, *kernel = weight.shape
    matrices = weight.double().flatten(2).transpose(0, 1)  # I, O, K
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    root = s[:, :multiplier].sqrt()
    depthwise = root[:, :, None] * vh[:, :multiplier]  # I, m, K
    pointwise = u[:, :, :multiplier] * root[:, None, :]  # I, O, m
    error = (pointwise @ depthwise - matrices).norm() / matrices.norm().clamp_min(1e-300)
    first = depthwise.reshape(ins * multiplier, 1, *kernel).to(weight)
    second = pointwise.permute(1, 0, 2).reshape(outs, ins * multiplier, *[1] * len(kernel))
    return first.contiguous(), second.to(weight).contiguous(), float(error)
