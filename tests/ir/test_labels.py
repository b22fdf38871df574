"""The second oracle: labels laid out by torch itself land where the algebra says.

Random programs of data-movement ops are analysed, then run on tensors whose elements say which
units own them. A cut of an unfrozen atom must also select, with literals corrected, exactly the
block of the uncut result that the algebra promises.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from esper.ir.axes import AxisTable, analyse
from esper.ir.modes import set_path
from esper.ir.rules import REGISTRY
from esper.ir.terms import Term, kept_index, size_of, unit_index

aten = torch.ops.aten
SHAPES = ((12,), (6, 4), (4, 6), (2, 12), (12, 2), (3, 8), (2, 3, 4), (4, 3, 2), (24,))


@dataclass
class Program:
    """A graph that moves data, with real tensors as recorded values."""

    graph: fx.Graph = field(default_factory=fx.Graph)
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    values: list[fx.Node] = field(default_factory=list)

    def source(self, shape: tuple[int, ...]) -> None:
        name = f"t{len(self.inputs)}"
        self.inputs[name] = torch.empty(shape, dtype=torch.int64)
        node = self.graph.get_attr(name)
        node.meta["val"] = self.inputs[name]
        self.values.append(node)

    def call(self, target: Any, *args: Any) -> fx.Node:
        node = self.graph.call_function(target, args)
        real = fx.map_arg(args, lambda n: n.meta["val"])
        node.meta["val"] = target(*real)
        if isinstance(node.meta["val"], torch.Tensor):
            self.values.append(node)
        return node

    def analyse(self) -> AxisTable:
        tensors = {name: (name, tuple(t.shape)) for name, t in self.inputs.items()}
        return analyse(self.graph, tensors, REGISTRY)

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        known: dict[fx.Node, Any] = {}
        for node in self.graph.nodes:
            if node.op == "get_attr":
                known[node] = inputs[str(node.target)]
            else:
                known[node] = node.target(*fx.map_arg(node.args, known.__getitem__))
        return {n.name: v for n, v in known.items() if isinstance(v, torch.Tensor)}


@st.composite
def programs(draw: st.DrawFn, constants: bool = False) -> Program:
    """With `constants`, some elements come from no input, and some units are mere copies."""
    program = Program()
    steps = {**_STEPS, "pad": _pad, "repeat": _repeat} if constants else _STEPS
    for _ in range(draw(st.integers(1, 2))):
        program.source(draw(st.sampled_from(SHAPES)))
    for _ in range(draw(st.integers(1, 7))):
        node = draw(st.sampled_from(program.values))
        steps[draw(st.sampled_from(sorted(steps)))](draw, program, node)
    return program


def _split_dim(draw: st.DrawFn, program: Program, node: fx.Node) -> None:
    shape = list(node.meta["val"].shape)
    dim = draw(st.integers(0, len(shape) - 1))
    divisors = [d for d in range(1, shape[dim] + 1) if shape[dim] % d == 0]
    outer = draw(st.sampled_from(divisors))
    sizes = [*shape[:dim], outer, shape[dim] // outer, *shape[dim + 1 :]]
    program.call(
        aten.view.default if node.meta["val"].is_contiguous() else aten.reshape.default, node, sizes
    )


def _merge_dims(draw: st.DrawFn, program: Program, node: fx.Node) -> None:
    shape = list(node.meta["val"].shape)
    if len(shape) > 1:
        dim = draw(st.integers(0, len(shape) - 2))
        sizes = [*shape[:dim], shape[dim] * shape[dim + 1], *shape[dim + 2 :]]
        program.call(aten.reshape.default, node, sizes)


def _flatten(draw: st.DrawFn, program: Program, node: fx.Node) -> None:
    start = draw(st.integers(0, node.meta["val"].ndim - 1))
    program.call(aten.flatten.using_ints, node, start, -1)


def _regroup(draw: st.DrawFn, program: Program, node: fx.Node) -> None:
    """A view that both merges and splits."""
    numel = node.meta["val"].numel()
    outer = draw(st.sampled_from([d for d in range(1, numel + 1) if numel % d == 0]))
    program.call(aten.reshape.default, node, [outer, numel // outer])


def _permute(draw: st.DrawFn, program: Program, node: fx.Node) -> None:
    order = draw(st.permutations(range(node.meta["val"].ndim)))
    program.call(aten.permute.default, node, order)


def _transpose(draw: st.DrawFn, program: Program, node: fx.Node) -> None:
    last = node.meta["val"].ndim - 1
    a, b = draw(st.integers(-1, last)), draw(st.integers(0, last))
    program.call(aten.transpose.int, node, a, b)


def _split(draw: st.DrawFn, program: Program, node: fx.Node) -> None:
    dim = draw(st.integers(-1, node.meta["val"].ndim - 1))
    size = node.meta["val"].shape[dim]
    first = draw(st.integers(0, size))
    if 0 < first < size:
        parts = program.call(aten.split_with_sizes.default, node, [first, size - first], dim)
        for i in range(2):
            program.call(operator.getitem, parts, i)


def _slice(draw: st.DrawFn, program: Program, node: fx.Node) -> None:
    dim = draw(st.integers(0, node.meta["val"].ndim - 1))
    size = node.meta["val"].shape[dim]
    start = draw(st.integers(-size, size - 1))
    first = start % size if start < 0 else start
    end = draw(st.sampled_from([first + 1, size, size + 3, 2**63 - 1, -1]))
    if end != -1 or first < size - 1:
        program.call(aten.slice.Tensor, node, dim, start, end)


def _cat(draw: st.DrawFn, program: Program, node: fx.Node) -> None:
    shape = node.meta["val"].shape
    dim = draw(st.integers(0, len(shape) - 1))
    fits = [
        other
        for other in program.values
        if len(other.meta["val"].shape) == len(shape)
        and all(
            i == dim or a == b
            for i, (a, b) in enumerate(zip(other.meta["val"].shape, shape, strict=True))
        )
    ]
    program.call(aten.cat.default, [node, draw(st.sampled_from(fits))], dim)


def _combine(draw: st.DrawFn, program: Program, node: fx.Node) -> None:
    fits = [v for v in program.values if v.meta["val"].shape == node.meta["val"].shape]
    program.call(aten.bitwise_or.Tensor, node, draw(st.sampled_from(fits)))


def _unsqueeze(draw: st.DrawFn, program: Program, node: fx.Node) -> None:
    made = program.call(aten.unsqueeze.default, node, draw(st.integers(-1, 1)))
    if draw(st.booleans()):
        program.call(aten.squeeze.default, made)


def _select(draw: st.DrawFn, program: Program, node: fx.Node) -> None:
    dim = draw(st.integers(0, node.meta["val"].ndim - 1))
    if node.meta["val"].ndim > 1:
        index = draw(st.integers(0, node.meta["val"].shape[dim] - 1))
        program.call(aten.select.int, node, dim, index)


def _strided(draw: st.DrawFn, program: Program, node: fx.Node) -> None:
    dim = draw(st.integers(0, node.meta["val"].ndim - 1))
    step = draw(st.integers(2, 4))
    size = node.meta["val"].shape[dim]
    start = draw(st.integers(0, size - 1))
    end = draw(st.sampled_from([size, size + 1, 2**63 - 1]))
    program.call(aten.slice.Tensor, node, dim, start, end, step)


def _repeat(draw: st.DrawFn, program: Program, node: fx.Node) -> None:
    counts = [draw(st.integers(1, 2)) for _ in node.meta["val"].shape]
    program.call(aten.repeat.default, node, [draw(st.integers(1, 2)), *counts])


def _shuffle(draw: st.DrawFn, program: Program, node: fx.Node) -> None:
    shape = node.meta["val"].shape
    if len(shape) == 3:
        groups = draw(st.sampled_from([g for g in range(1, shape[1] + 1) if shape[1] % g == 0]))
        program.call(aten.channel_shuffle.default, node, groups)


def _diagonal(draw: st.DrawFn, program: Program, node: fx.Node) -> None:
    if node.meta["val"].ndim > 1:
        a, b = draw(st.permutations(range(node.meta["val"].ndim)))[:2]
        program.call(aten.diagonal.default, node, draw(st.integers(0, 1)), a, b)


def _view_as(draw: st.DrawFn, program: Program, node: fx.Node) -> None:
    fits = [v for v in program.values if v.meta["val"].numel() == node.meta["val"].numel()]
    program.call(aten.reshape_as.default, node, draw(st.sampled_from(fits)))


def _pad(draw: st.DrawFn, program: Program, node: fx.Node) -> None:
    rank = draw(st.integers(1, node.meta["val"].ndim))
    widths = [draw(st.integers(0, 2)) for _ in range(2 * rank)]
    program.call(aten.pad.default, node, widths, "constant", 0)


_STEPS = {
    "select": _select,
    "strided": _strided,
    "shuffle": _shuffle,
    "diagonal": _diagonal,
    "view as": _view_as,
    "split dim": _split_dim,
    "merge dims": _merge_dims,
    "flatten": _flatten,
    "regroup": _regroup,
    "permute": _permute,
    "transpose": _transpose,
    "split": _split,
    "slice": _slice,
    "cat": _cat,
    "combine": _combine,
    "unsqueeze": _unsqueeze,
}


def owned(terms: tuple[Term, ...], atom: int, table: AxisTable) -> torch.Tensor:
    """Bit u of an element is set when unit u of the atom owns it along some dimension."""
    bits = torch.zeros([size_of(term, table.sizes) for term in terms], dtype=torch.int64)
    for dim, term in enumerate(terms):
        unit = torch.from_numpy(unit_index(term, atom, table.sizes))
        along = torch.where(unit < 0, 0, torch.ones_like(unit) << unit.clamp_min(0))
        bits |= along.reshape([-1] + [1] * (len(terms) - dim - 1))
    return bits


def block(tensor: torch.Tensor, terms: tuple[Term, ...], keep: Any, sizes: Any) -> torch.Tensor:
    for dim, term in enumerate(terms):
        tensor = tensor.index_select(dim, torch.from_numpy(kept_index(term, keep, sizes)))
    return tensor


@settings(max_examples=300)
@given(programs())
def test_labels_land_where_the_algebra_says(program: Program) -> None:
    table = program.analyse()
    assert not table.unknown
    for atom, info in table.atoms.items():
        if info.frozen is not None:
            continue
        labels = {name: owned(table.tensors[name], atom, table) for name in program.inputs}
        for name, landed in program.run(labels).items():
            assert torch.equal(landed, owned(table.values[name], atom, table)), (name, atom)


@settings(max_examples=300)
@given(programs(constants=True), st.randoms(use_true_random=False))
def test_a_cut_selects_the_promised_block(program: Program, random: Any) -> None:
    table = program.analyse()
    free = [a for a, info in table.atoms.items() if info.frozen is None and table.sizes[a] > 1]
    if not free:
        return
    atom = random.choice(free)
    size = table.sizes[atom]
    keep = {atom: np.array(sorted(random.sample(range(size), random.randint(1, size - 1))))}
    data = {
        name: torch.arange(t.numel()).reshape(t.shape) + 1000 * i
        for i, (name, t) in enumerate(program.inputs.items())
    }
    before = program.run(data)
    smaller = {**table.sizes, atom: len(keep[atom])}
    nodes = {node.name: node for node in program.graph.nodes}
    for literal in table.literals_of.get(atom, ()):
        set_path(nodes[literal.node], literal.path, sum(size_of(t, smaller) for t in literal.terms))
    cut = {name: block(t, table.tensors[name], keep, table.sizes) for name, t in data.items()}
    for name, value in program.run(cut).items():
        expected = block(before[name], table.values[name], keep, table.sizes)
        assert torch.equal(value, expected), name


def test_the_programs_leave_something_to_cut() -> None:
    """Guards against an analysis that proves everything by freezing everything."""
    program = Program()
    program.source((6, 4))
    (node,) = program.values
    merged = program.call(aten.reshape.default, node, [24])
    split = program.call(aten.split_with_sizes.default, merged, [8, 16])

    parts = [program.call(operator.getitem, split, i) for i in range(2)]
    program.call(aten.cat.default, parts[::-1], 0)
    table = program.analyse()
    assert list(table.sizes.values()) == [2, 4, 4]
    assert all(info.frozen is None for info in table.atoms.values())
