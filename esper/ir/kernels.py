"""What is known of custom kernels: op libraries of other packages.

A package that defines ops under `torch.ops.<library>` says so in the entry-point group
`esper.kernels`: the name of the entry is that of the library, and its value a mapping from op to
`Kernel`. Loading it defines the ops, which happens when a graph or a file first names the library,
in every process.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import fx

    from esper.ir.axes import Rule
    from esper.ir.model import Model

GROUP = "esper.kernels"
#: Frozen reason of dims along which a packed tensor lays out what a kernel reads.
PACKED = "packed for a kernel"


@dataclass(frozen=True)
class Kernel:
    """One op of a kernel library.

    Attributes:
        module: by whose import the op is defined; programs that load it need that and not Esper.
        rule: its axis rule.
        check: sentences about tensors that a node reads and that are not packed as the op expects.
    """

    module: str
    rule: Rule
    check: Callable[[Model, fx.Node], Iterator[str]]


@cache
def library(name: str) -> Mapping[Any, Kernel]:
    """The ops of a kernel library, which are defined from then on; empty where none is installed.

    Raises:
        ImportError: it is installed and cannot be imported.
    """
    found: dict[Any, Kernel] = {}
    for point in importlib.metadata.entry_points(group=GROUP, name=name):
        found |= point.load()
    return found


def define_all() -> None:
    """Define the ops of every installed library, before a file is read that may name any."""
    for point in importlib.metadata.entry_points(group=GROUP):
        library(point.name)


def kernel(target: Any) -> Kernel | None:
    """What is known of a call target as a kernel; None for the ops of PyTorch and unknown ones."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace == "aten":
        return None
    return library(target.namespace).get(target)


def used(graph: fx.Graph) -> tuple[str, ...]:
    """Kernels that a graph calls, as `esper::vnm_linear`, sorted."""
    names = {
        str(node.target._schema.name)
        for node in graph.nodes
        if node.op == "call_function" and kernel(node.target) is not None
    }
    return tuple(sorted(names))


def modules(graph: fx.Graph) -> tuple[str, ...]:
    """What a program must import before it loads a file that holds this graph, sorted."""
    found = (kernel(node.target) for node in graph.nodes if node.op == "call_function")
    return tuple(sorted({each.module for each in found if each is not None}))


def sentence(graph: fx.Graph) -> str:
    """Which custom kernels a graph calls and what loading a file of it takes; empty without any."""
    names = used(graph)
    if not names:
        return ""
    imports = " and ".join(f"`import {module}`" for module in modules(graph))
    return f"custom kernels inside: {', '.join(names)}; loading a file of it needs {imports}"
