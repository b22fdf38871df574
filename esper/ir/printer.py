"""Deterministic text of a model: stable IDs, no addresses, no paths of the machine.

    %linear_4 = linear(%x, w=encoder.0.weight, b=encoder.0.bias) : float32[s0, neurons:64]

Operands are nodes (`%name`) or tensors by name; literals carry the name that the op's schema gives
them and are left out where they have its default. A dimension shows its axes as `kind:size`,
products with `*` (outer first), sums with `|`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from esper.ir.anatomy import Anatomy
from esper.ir.shapes import describe
from esper.ir.terms import Term, atoms_of, show

if TYPE_CHECKING:
    from esper.ir.anatomy import Axis
    from esper.ir.model import Model

_SHORT = {"weight": "w", "bias": "b"}


def print_model(model: Model) -> str:
    """Header, axes, nodes by module, tied and unread tensors, notes. Equal models print equally."""
    labels = _names(model.anatomy)
    nodes = list(model.graph.nodes)
    lines = [f"model in {'training' if model.training else 'evaluation'} mode"]
    inputs = [node for node in nodes if node.op == "placeholder"]
    lines += [f"  input %{node.name} : {_value(model, node, labels)}" for node in inputs]
    output = nodes[-1]
    for leaf in _leaves(output.args):
        if isinstance(leaf, fx.Node):
            lines.append(f"  output %{leaf.name} : {_value(model, leaf, labels)}")
        else:
            lines.append(f"  output {_literal(leaf)}")
    lines += ["", "axes", *(f"  {_axis(axis)}" for axis in model.anatomy.axes.values())]
    lines += ["", "graph", *_graph(model, nodes, labels)]
    canonical = model.canonical_names()
    tied = [f"  {name} is {first}" for name, first in canonical.items() if name != first]
    if tied:
        lines += ["", "tied tensors", *tied]
    read = {canonical.get(str(n.target)) for n in nodes if n.op == "get_attr" and n.users}
    unread = [name for name in dict.fromkeys(canonical.values()) if name not in read]
    if unread:
        lines += ["", "unread tensors", *(f"  {name}" for name in unread)]
    if model.notes:
        lines += ["", "notes", *(f"  {note}" for note in model.notes)]
    return "\n".join(lines)


def print_node(model: Model, node: fx.Node) -> str:
    """One line, for errors too: axes are shown where they are known without a new analysis."""
    labels: dict[int, str] = {}
    table, _, identities = model.derived()
    if table is not None:
        # The line is wanted most when the graph makes no sense, and printing changes nothing.
        with suppress(Exception):
            labels = _names(Anatomy(model, identities))
    return _line(model, node, labels)


def diff(before: Model, after: Model) -> str:
    """Unified diff of two printed models; empty when they print equally."""
    lines = difflib.unified_diff(
        print_model(before).splitlines(),
        print_model(after).splitlines(),
        "before",
        "after",
        n=2,
        lineterm="",
    )
    return "\n".join(lines)


def _names(anatomy: Anatomy) -> dict[int, str]:
    """Atom -> `kind:size` for the atoms that are axes of parameters."""
    return {axis.atom: f"{axis.kind}:{axis.size}" for axis in anatomy.axes.values()}


def _graph(model: Model, nodes: list[fx.Node], labels: dict[int, str]) -> list[str]:
    lines: list[str] = []
    group: str | None = None
    for node in nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        module = str(node.meta.get("module") or "(root)")
        if module != group:
            lines.append(f"  {module}:")
            group = module
        lines.append(f"    {_line(model, node, labels)}")
    lines.append(f"  return {_operand(nodes[-1].args[0], None)}")
    return lines


def _line(model: Model, node: fx.Node, labels: dict[int, str]) -> str:
    if node.op == "output":
        return f"return {_operand(node.args[0] if node.args else None, None)}"
    if node.op in ("placeholder", "get_attr"):
        text = f"{node.op}({node.target})"
    else:
        text = f"{op_name(node.target)}({', '.join(_arguments(node))})"
    line = f"%{node.name} = {text} : {_value(model, node, labels)}"
    if switches := node.meta.get("modes"):
        names = sorted({_argument_name(node, path[0]) for path in switches})
        line += f" ; switches {', '.join(names)}"
    return line


def op_name(target: Any) -> str:
    """`linear` for `aten.linear.default`; ops of other libraries keep the library's name."""
    if isinstance(target, torch._ops.OpOverload):
        name = str(target._opname)
        return name if target.namespace == "aten" else f"{target.namespace}.{name}"
    return str(getattr(target, "__name__", target))


def _arguments(node: fx.Node) -> list[str]:
    schema = _schema(node)
    texts = []
    for position, value in enumerate(node.args):
        if position < len(schema) and _is_default(schema[position], value):
            continue
        name = schema[position].name if position < len(schema) else None
        texts.append(_operand(value, None if position == 0 else name))
    for name, value in node.kwargs.items():
        if any(a.name == name and _is_default(a, value) for a in schema):
            continue
        texts.append(_operand(value, name, named=True))
    return texts


def _schema(node: fx.Node) -> Sequence[Any]:
    if isinstance(node.target, torch._ops.OpOverload):
        return list(node.target._schema.arguments)
    return []


def _is_default(argument: Any, value: Any) -> bool:
    if isinstance(value, fx.Node) or not argument.has_default_value():
        return False
    default = argument.default_value
    return type(default) is type(value) and bool(default == value)


def _argument_name(node: fx.Node, step: int | str) -> str:
    schema = _schema(node)
    if isinstance(step, int) and step < len(schema):
        return str(schema[step].name)
    return str(step)


def _operand(value: Any, name: str | None, named: bool = False) -> str:
    if isinstance(value, fx.Node):
        tensor = value.op == "get_attr"
        text = str(value.target) if tensor else f"%{value.name}"
        prefix = name if named or tensor else None
    else:
        text, prefix = _literal(value), name
    return text if prefix is None else f"{_SHORT.get(prefix, prefix)}={text}"


def _literal(value: Any) -> str:
    if isinstance(value, fx.Node):
        return str(value.target) if value.op == "get_attr" else f"%{value.name}"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, slice):
        return f"{_literal(value.start)}:{_literal(value.stop)}:{_literal(value.step)}"
    if isinstance(value, torch.device):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str, complex)):
        return repr(value)
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return str(value).removeprefix("torch.")
    return f"<{type(value).__name__}>"  # no repr: it may hold an address


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


# -- values and axes -----------------------------------------------------------------------------


def _value(model: Model, node: fx.Node, labels: dict[int, str]) -> str:
    terms = None
    if labels:
        table = model.table
        if node.op == "get_attr":
            terms = table.tensors.get(model.canonical_names().get(str(node.target), ""))
        else:
            terms = table.values.get(node.name)
    return _with_axes(node.meta.get("val"), terms, labels)


def _with_axes(value: Any, terms: Any, labels: dict[int, str]) -> str:
    if isinstance(value, (list, tuple)):
        each = (
            terms if isinstance(terms, tuple) and len(terms) == len(value) else [None] * len(value)
        )
        return (
            "("
            + ", ".join(_with_axes(v, t, labels) for v, t in zip(value, each, strict=True))
            + ")"
        )
    if not isinstance(value, torch.Tensor) or not isinstance(terms, tuple):
        return describe(value)
    if len(terms) != value.ndim:
        return describe(value)
    dims = [_dim(size, term, labels) for size, term in zip(value.shape, terms, strict=True)]
    return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(dims)}]"


def _dim(size: Any, term: Term, labels: dict[int, str]) -> str:
    if not isinstance(size, int):
        return str(size.node.expr)
    atoms = set(atoms_of(term))
    if size == 1 or not atoms or not atoms <= labels.keys():
        return str(size)
    return show(term, labels)


def _axis(axis: Axis) -> str:
    units = "" if axis.unit_ids == tuple(range(axis.size)) else f" units {_ranges(axis.unit_ids)}"
    line = f"{axis.id} : {axis.size}{units}"
    if axis.frozen_reason is not None:
        where = f" at %{axis.frozen_node}" if axis.frozen_node else ""
        return f"{line}, frozen: {axis.frozen_reason}{where}"
    return line if axis.lossy_reason is None else f"{line}, lossy: {axis.lossy_reason}"


def _ranges(numbers: Sequence[int]) -> str:
    """`0-2,5` for 0, 1, 2, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
