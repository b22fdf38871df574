"""From a call's arguments to the flat inputs of a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from esper.ir.model import Model


def binder(model: Model) -> Any:
    """A function from a call's arguments to a list, one item a placeholder, in their order.

    It binds by the model's own calling convention, so keywords may come in any order. It raises
    TypeError or ValueError for arguments that do not fit.
    """
    graph = fx.Graph()
    inputs = [graph.placeholder(n.name) for n in model.graph.find_nodes(op="placeholder")]
    graph.output(list(inputs))
    info = getattr(model.graph._codegen, "pytree_info", None)
    if info is not None:
        leaves = pytree.tree_structure([0] * len(inputs))
        graph.set_codegen(_PyTreeCodeGen(info._replace(out_spec=leaves)))
    return fx.GraphModule(torch.nn.Module(), graph)
