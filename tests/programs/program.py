"""A program as data, and the model that it stands for.

A program is a list of steps over a growing list of values, each with a dynamic batch in front.
Operands are picked modulo the number of values and shapes are adapted by linear layers, so that
every list of steps is a program: nothing is filtered, and shrinking works.

`Plant` splices the graph of one case of the op rules (`tests.ir.rule_cases`) between random
surroundings: what the case knows as input and output of a model are units of neighbouring layers
here. Graphs are built node by node, which is a hundred times faster than exporting each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

import esper
from esper.ir import shapes
from esper.ir.axes import shape_of
from esper.ir.model import Model
from esper.ir.module_tree import adopt, owner_of
from esper.ir.ports import read_ports
from tests.ir.rule_cases import traced_case

aten = torch.ops.aten
BATCH = 3
DTYPE = torch.float64

UNARY: dict[str, Any] = {
    "relu": aten.relu.default,
    "gelu": aten.gelu.default,
    "tanh": aten.tanh.default,
    "silu": aten.silu.default,
    "abs": aten.abs.default,
}


@dataclass(frozen=True)
class Plant:
    """A case of the op rules on the value `at`; `tied`: with the weights of its last use."""

    case: str
    at: int = 0
    tied: bool = False


@dataclass(frozen=True)
class Unary:
    """An element-wise op."""

    op: str
    at: int = 0


@dataclass(frozen=True)
class Linear:
    """A linear layer to `width`."""

    width: int
    at: int = 0


@dataclass(frozen=True)
class Add:
    """A residual sum; the second value is adapted to the first."""

    at: int
    other: int


@dataclass(frozen=True)
class Cat:
    """Two values along the last dim, of which a middle part goes on when `part`."""

    at: int
    other: int
    part: bool = False


Step = Plant | Unary | Linear | Add | Cat


@dataclass(frozen=True)
class Program:
    """`width` of the input [batch, width] and the steps from there."""

    width: int
    steps: tuple[Step, ...]


@cache
def _input(shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    """The fake value of an input with a dynamic batch. All share one mode, so may meet."""
    if shape != () or dtype is not DTYPE:
        root = _input((), DTYPE)
        with root.fake_mode:
            return root.new_empty((root.shape[0], *shape), dtype=dtype)
    model = esper.trace(_Identity(), (torch.zeros(BATCH, dtype=DTYPE),))
    (node,) = model.graph.find_nodes(op="placeholder")
    return node.meta["val"]


class _Identity(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Anything that needs a batch."""
        return x.sin()


class Builder:
    """Builds the graph of one program."""

    def __init__(self, program: Program) -> None:
        self.graph = fx.Graph()
        self.holder = nn.Module()
        self.scratch = Model(nn.Module(), fx.Graph())
        self.generator = torch.Generator().manual_seed(program.width)
        self.inputs: list[torch.Tensor] = []
        self.extra: list[fx.Node] = []
        self.planted: dict[str, str] = {}
        self.count = 0
        self.mode = _input((), DTYPE).fake_mode
        first = self.input((program.width,), DTYPE)
        self.values = [self.linear(first, program.width + 1)]
        for step in program.steps:
            self.values.append(self.step(step))

    # -- nodes ---------------------------------------------------------------------------------

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.valued(self.graph.call_function(target, args, kwargs))

    def valued(self, node: fx.Node, **meta: Any) -> fx.Node:
        node.meta = {"module": "", "source": "", **meta}
        node.meta["val"] = shapes.evaluate(self.scratch, node, self.mode)
        return node

    def input(self, shape: tuple[int, ...], dtype: torch.dtype) -> fx.Node:
        last = [n for n in self.graph.nodes if n.op == "placeholder"]
        first = next(iter(self.graph.nodes), self.graph._root)
        with self.graph.inserting_after(last[-1]) if last else self.graph.inserting_before(first):
            node = self.graph.placeholder(f"x{len(self.inputs)}")
        node.meta = {"val": _input(shape, dtype), "module": "", "source": ""}
        self.inputs.append(
            torch.randn(BATCH, *shape, dtype=dtype, generator=self.generator)
            if dtype.is_floating_point
            else torch.zeros(BATCH, *shape, dtype=dtype)
        )
        return node

    def tensor(self, name: str, value: torch.Tensor) -> fx.Node:
        """A `get_attr` node of a tensor, which is registered unless it is there."""
        owner, leaf = owner_of(self.holder, name), name.rpartition(".")[2]
        if not hasattr(owner, leaf):
            if isinstance(value, nn.Parameter):
                owner.register_parameter(leaf, value)
            else:
                owner.register_buffer(leaf, value)
        known = getattr(owner, leaf)
        node = self.graph.get_attr(name)
        with self.mode:
            fake = torch.empty_strided(known.shape, known.stride(), dtype=known.dtype)
        node.meta = {"module": name.rpartition(".")[0], "source": "", "val": fake}
        return node

    def parameter(self, name: str, *shape: int) -> fx.Node:
        scale = 1 / math.sqrt(shape[-1])
        made = torch.randn(shape, dtype=DTYPE, generator=self.generator) * scale
        return self.tensor(name, nn.Parameter(made))

    # -- layers --------------------------------------------------------------------------------

    def linear(self, x: fx.Node, width: int) -> fx.Node:
        self.count += 1
        name, before = f"linear{self.count}", static(x)[-1]
        weight = self.parameter(f"{name}.weight", width, before)
        return self.call(aten.linear.default, x, weight, self.parameter(f"{name}.bias", width))

    def adapt(self, x: fx.Node, shape: tuple[int, ...]) -> fx.Node:
        """The value with those sizes after the batch."""
        own = static(x)
        if own == shape:
            return x
        if not own:
            x, own = self.call(aten.unsqueeze.default, x, 1), (1,)
        if shape and own[:-1] == shape[:-1]:
            return self.linear(x, shape[-1])
        flat = x if len(own) == 1 else self.call(aten.flatten.using_ints, x, 1)
        wide = self.linear(flat, math.prod(shape))
        if len(shape) == 1:
            return wide
        return self.call(aten.view.default, wide, [-1, *shape])

    # -- steps ---------------------------------------------------------------------------------

    def pick(self, at: int) -> fx.Node:
        return self.values[at % len(self.values)]

    def step(self, step: Step) -> fx.Node:
        x = self.pick(step.at)
        if isinstance(step, Plant):
            return self.plant(step, x)
        if isinstance(step, Unary):
            return self.call(UNARY[step.op], x)
        if isinstance(step, Linear):
            return self.linear(self.adapt(x, static(x) or (1,)), step.width)
        other = self.pick(step.other)
        if isinstance(step, Add):
            return self.call(aten.add.Tensor, x, self.adapt(other, static(x)))
        lead = static(x)[:-1]
        x = self.adapt(x, static(x) or (1,))
        other = self.adapt(other, (*lead, (static(other) or (1,))[-1]))
        both = self.call(aten.cat.default, [x, other], -1)
        wide = static(both)[-1]
        if not step.part or wide < 3:
            return both
        return self.call(aten.slice.Tensor, both, len(static(both)), 1, wide - 1)

    def plant(self, step: Plant, x: fx.Node) -> fx.Node:
        """Copy the case's graph. Values come in bounded, so that long programs stay finite."""
        case, example = traced_case(step.case)
        self.count += 1
        prefix = self.planted.get(step.case) if step.tied else None
        prefix = prefix or f"plant{self.count}"
        self.planted[step.case] = prefix
        batched = example.ndim > 0 and example.shape[0] == BATCH
        if example.dtype is DTYPE and batched:
            fed = self.call(aten.sin.default, self.adapt(x, tuple(example.shape[1:])))
        else:
            fed = self.input(tuple(example.shape[1:]), example.dtype)
            self.inputs[-1] = example
        copies: dict[fx.Node, Any] = {}
        for node in case.graph.nodes:
            if node.op == "placeholder":
                copies[node] = fed
            elif node.op == "get_attr":
                value = case.tensor(str(node.target))
                if value is not None and node.users:
                    copies[node] = self.tensor(f"{prefix}.{node.target}", value)
            elif node.op == "call_function":
                args, kwargs = fx.map_arg((node.args, node.kwargs), copies.__getitem__)
                made = self.graph.call_function(node.target, args, kwargs)
                more = {k: node.meta[k] for k in ("modes",) if k in node.meta}
                copies[node] = self.valued(made, **more)
        (output,) = case.graph.find_nodes(op="output")
        found = [copies[n] for n in output.all_input_nodes]
        self.extra += [n for n in found if n is not fed]
        onward = [n for n in found if self.goes_on(n)]
        # A case with a batch of its own size meets no other value.
        return onward[0] if onward and example.shape[:1] == (BATCH,) else x

    def goes_on(self, node: fx.Node) -> bool:
        """Whether others can compute with a value: floating, with the batch in front."""
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor) or value.dtype is not DTYPE or value.ndim == 0:
            return False
        batch, *rest = shape_of(value)
        (expected,) = shape_of(_input((), DTYPE))
        return bool(batch == expected) and all(isinstance(size, int) for size in rest)


def static(node: fx.Node) -> tuple[int, ...]:
    """Sizes after the batch."""
    return tuple(int(size) for size in node.meta["val"].shape[1:])


def _sign(graph: fx.Graph) -> None:
    """Give a graph the signature that an exported one has: positional tensors in, a tuple out."""
    names = [node.name for node in graph.find_nodes(op="placeholder")]
    (output,) = graph.find_nodes(op="output")
    arguments = pytree.tree_structure((tuple(names), {}))
    results = pytree.tree_structure(tuple(output.args[0]))
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, arguments, results)))


def build(program: Program) -> tuple[Model, tuple[torch.Tensor, ...]]:
    """The model in evaluation mode, and inputs."""
    torch.manual_seed(0)
    builder = Builder(program)
    last = builder.values[-1]
    head = builder.linear(builder.adapt(last, static(last) or (1,)), 2)
    used = [n for n in builder.extra if not n.users]
    builder.graph.output((head, *used))
    _sign(builder.graph)
    model = Model(builder.holder, builder.graph)
    adopt(model, builder.holder)
    shapes.propagate(model)
    model.ports = read_ports(model)
    model.eval()
    model.recompile()
    inputs = tuple(builder.inputs)
    model.example_inputs = (inputs, {})
    return model, inputs
