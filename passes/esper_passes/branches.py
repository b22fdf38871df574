"""The rewrite behind `AddBranch`: a branch beside a layer, behind a gate that is closed at first.

The gate is a learned factor for each output, zero at first, so the function stays; the gate has a
gradient from the first step on, the branch from the second (ReZero, arXiv:2003.04887).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from esper.passbase import Rewrite
from esper.plan import Edit, Insert, Plan, Ref, Refusal, ReplaceUses
from esper.propose import AddBranch
from esper.state import Create, Op, StateTransform
from esper_passes.affine import Affine, affine
from esper_passes.liveness import fresh

if TYPE_CHECKING:
    from esper.ir.model import Model

aten = torch.ops.aten


class AddBranchRewrite(Rewrite):
    """A copy of a layer's shape (or two layers with a GELU between), gated and added."""

    type = "add-branch"

    def plan(self, model: Model, proposal: AddBranch) -> Plan | Refusal:
        """Refuses (`no-layer`) what is no linear layer or convolution with a weight of its own."""
        node = model.nodes[proposal.node]
        layer = affine(model, node)
        if not isinstance(layer, Affine):
            return Refusal(
                "no-layer",
                f"%{node.name} ({node.target}) is no layer with a weight of its own",
                node.name,
                "name a linear layer or a convolution of one group",
            )
        weight = model.tensor(layer.weight)
        assert weight is not None
        if layer.form == "convolution" and proposal.width:
            return Refusal(
                "no-layer",
                f"%{node.name} is a convolution, whose branch has one layer",
                node.name,
                "leave width at 0",
            )
        generator = torch.Generator().manual_seed(proposal.seed)
        build = _Builder(model, node, generator)
        x: Any = node.args[layer.operand]
        outputs = weight.shape[1] if layer.form == "columns" else weight.shape[0]
        if layer.form == "convolution":
            value = build.convolution(x.name, node, weight.detach())
        elif proposal.width:
            inputs = layer.matrix(weight).shape[1]
            hidden = build.linear(x.name, "down", proposal.width, inputs, weight)
            hidden = build.call("gelu", aten.gelu.default, Ref(hidden))
            value = build.linear(hidden, "up", outputs, proposal.width, weight)
        else:
            value = build.linear(x.name, "weight", outputs, layer.matrix(weight).shape[1], weight)
        tail = node.meta["val"].ndim - 2 if layer.form == "convolution" else 0
        gate = build.tensor("gate", weight.new_zeros(outputs, *[1] * tail))
        scaled = build.call("gated", aten.mul.Tensor, Ref(value), Ref(gate))
        total = build.call("sum", aten.add.Tensor, Ref(node.name), Ref(scaled))
        users = tuple(user.name for user in node.users)
        return Plan(
            proposal=proposal,
            summary=f"a branch of {build.parameters} parameters beside %{node.name}, gate closed",
            edits=(*build.edits, ReplaceUses(node.name, total, users)),
            state=StateTransform(build.ops),
            tolerance="exact",
            figures={"parameters_added": build.parameters},
        )


class _Builder:
    """Collects nodes and tensors of a branch under `<module>_branch`."""

    def __init__(self, model: Model, node: fx.Node, generator: torch.Generator) -> None:
        modules = {name for name, _ in model.named_modules()}
        base = str(node.meta.get("module", "")) or "root"
        self.path = fresh(modules, f"{base}_branch")
        self.generator = generator
        self.edits: list[Edit] = []
        self.ops: dict[str, tuple[Op, ...]] = {}
        self.parameters = 0
        self._name = node.name
        self._taken = set(model.nodes)
        order = {n: i for i, n in enumerate(model.graph.nodes)}
        self._before = min(node.users, key=order.__getitem__).name

    def _fresh(self, part: str) -> str:
        name = fresh(self._taken, f"{self._name}_branch_{part}")
        self._taken.add(name)
        return name

    def call(self, part: str, target: Any, *args: Any) -> str:
        """A call, by the name of its node."""
        name = self._fresh(part)
        self.edits.append(
            Insert(name, "call_function", target, args, self._before, module=self.path)
        )
        return name

    def tensor(self, leaf: str, value: Tensor) -> str:
        """A new parameter, by the name of the node that reads it."""
        name = f"{self.path}.{leaf}"
        self.ops[name] = (Create(value, trainable=True),)
        self.parameters += value.numel()
        read = self._fresh(leaf.replace(".", "_"))
        self.edits.append(Insert(read, "get_attr", name, (), self._before, module=self.path))
        return read

    def linear(self, x: str, leaf: str, outputs: int, inputs: int, like: Tensor) -> str:
        """A linear layer without bias, by its node; Kaiming's uniform spread (2015)."""
        weight = self._drawn((outputs, inputs), inputs, like)
        read = self.tensor(f"{leaf}.weight" if leaf != "weight" else leaf, weight)
        return self.call(f"{leaf}_layer", aten.linear.default, Ref(x), Ref(read))

    def convolution(self, x: str, node: fx.Node, like: Tensor) -> str:
        """A convolution with the window of `node`, without bias."""
        weight = self._drawn(tuple(like.shape), like[0].numel(), like)
        read = self.tensor("weight", weight)
        return self.call("layer", node.target, Ref(x), Ref(read), None, *node.args[3:])

    def _drawn(self, shape: tuple[int, ...], inputs: int, like: Tensor) -> Tensor:
        bound = inputs**-0.5
        noise = torch.rand(shape, generator=self.generator, dtype=torch.float64) * 2 - 1
        drawn: Tensor = (noise * bound).to(like)
        return drawn
