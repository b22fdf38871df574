"""Ports: what callers of a model rely on, recorded once when it is traced.

Rewrites may change anything inside; the names, shapes and dtypes of inputs, the shapes and dtypes
of outputs and the structure of both stay.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import fx

from esper.ir.pytrees import encode_spec
from esper.ir.shapes import describe

if TYPE_CHECKING:
    from esper.ir.model import Model

# A dimension within brackets that is no plain number.
_SYMBOLIC = re.compile(r"(?<=[\[ ])[^\[\],]*[a-z][^\[\],]*(?=[\],])")


@dataclass(frozen=True)
class Ports:
    """The contract with callers.

    Attributes:
        inputs: `name: float32[s0, 3, 16, 16]` in order.
        outputs: `float32[s0, 5]` in order, flattened.
        structure: JSON text of the input and output structures.
        ties: groups of names that stand for one tensor.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    structure: str
    ties: tuple[tuple[str, ...], ...]


def read_ports(model: Model) -> Ports:
    """The ports of the graph as it is now."""
    inputs, outputs = [], []
    for node in model.graph.nodes:
        if node.op == "placeholder":
            inputs.append(f"{node.name}: {describe(node.meta.get('val'))}")
        elif node.op == "output":
            leaves = node.args[0] if isinstance(node.args[0], (list, tuple)) else [node.args[0]]
            outputs = [
                describe(leaf.meta.get("val")) if isinstance(leaf, fx.Node) else repr(leaf)
                for leaf in leaves
            ]
    info = getattr(model.graph._codegen, "pytree_info", None)
    structure = None
    if info is not None:
        out = None if info.out_spec is None else encode_spec(info.out_spec)
        structure = [list(info.orig_args), encode_spec(info.in_spec), out]
    groups: dict[str, list[str]] = {}
    for name, first in model.canonical_names().items():
        groups.setdefault(first, []).append(name)
    ties = tuple(tuple(names) for names in groups.values() if len(names) > 1)
    return Ports(tuple(inputs), tuple(outputs), json.dumps(structure), ties)


def same_description(a: str, b: str) -> bool:
    """Equal up to the writing of symbolic sizes, which PyTorch versions simplify differently."""
    return a == b or _SYMBOLIC.sub("?", a) == _SYMBOLIC.sub("?", b)
