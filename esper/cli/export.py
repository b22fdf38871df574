"""A model as an exported program again, with the dynamic dimensions that it was traced with."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch.utils import _pytree as pytree

from esper.cli.pt2_read import first_line, quiet_torch
from esper.errors import OutputError
from esper.ir.model import Model
from esper.passbase import Batch

_PLAIN = (tuple, list, dict)


def export_program(model: Model, inputs: Batch) -> tuple[torch.export.ExportedProgram, list[str]]:
    """The model in evaluation mode as an exported program.

    Dimensions that are symbolic in the model stay dynamic. Structured outputs whose class a fresh
    process may not know become dictionaries with the same keys.

    Returns:
        The program and notes for the person.

    Raises:
        OutputError: when export fails.
    """
    model = copy.deepcopy(model).cpu().eval()
    notes = _plain_outputs(model)
    inputs = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.detach().cpu(), inputs)
    args, kwargs = _widen(model, inputs)
    try:
        with quiet_torch(), torch.no_grad():
            program = torch.export.export(
                model, args, kwargs, dynamic_shapes=_dynamic(model, args, kwargs), strict=False
            )
    except Exception as error:
        raise OutputError(f"the result cannot be exported: {first_line(error)}") from error
    return program, notes


def symbolic_dims(model: Model) -> list[set[int]]:
    """For every placeholder, the dimensions that are symbolic."""
    found: list[set[int]] = []
    for node in model.graph.nodes:
        if node.op == "placeholder":
            value = node.meta.get("val")
            shape = tuple(value.shape) if isinstance(value, torch.Tensor) else ()
            found.append({i for i, size in enumerate(shape) if _symbolic(size)})
    return found


def _symbolic(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and not size.node.expr.is_Integer


def _widen(model: Model, inputs: Batch) -> Batch:
    """Examples of size one in a symbolic dimension are doubled: export would bake a one in."""
    leaves, spec = pytree.tree_flatten(inputs)
    dims = symbolic_dims(model)
    if len(dims) != len(leaves):
        return inputs
    wide = list(leaves)
    for i, (leaf, symbolic) in enumerate(zip(leaves, dims, strict=True)):
        for dim in sorted(symbolic):
            if isinstance(leaf, torch.Tensor) and leaf.shape[dim] == 1:
                wide[i] = torch.cat([wide[i], wide[i]], dim)
    args, kwargs = pytree.tree_unflatten(wide, spec)
    return args, kwargs


def _dynamic(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    leaves, spec = pytree.tree_flatten((args, kwargs))
    dims = symbolic_dims(model)
    if len(dims) != len(leaves):
        raise OutputError(
            f"the model takes {len(dims)} values and the example inputs hold {len(leaves)}"
        )
    auto = torch.export.Dim.AUTO
    marked = [
        dict.fromkeys(sorted(symbolic), auto) if isinstance(leaf, torch.Tensor) else None
        for leaf, symbolic in zip(leaves, dims, strict=True)
    ]
    positional, named = pytree.tree_unflatten(marked, spec)
    names = list(inspect.signature(model.forward).parameters)
    return {**dict(zip(names, positional, strict=False)), **named}


def _plain_outputs(model: Model) -> list[str]:
    """Turn structured outputs into dictionaries, in place."""
    codegen: Any = model.graph._codegen
    info = getattr(codegen, "pytree_info", None)
    if info is None or info.out_spec is None:
        return []
    changed: list[str] = []
    spec = _plain_spec(info.out_spec, changed)
    if not changed:
        return []
    codegen.pytree_info = info._replace(out_spec=spec)
    model._out_spec = spec
    model.recompile()
    types = ", ".join(sorted(set(changed)))
    note = f"outputs of type {types} are saved as dictionaries with the same keys, so that the "
    return [note + "file loads without the library that defines them"]


def _plain_spec(spec: Any, changed: list[str]) -> Any:
    if spec.is_leaf():
        return spec
    children = [_plain_spec(child, changed) for child in spec.children()]
    kind, context = spec.type, spec.context
    if isinstance(kind, type) and issubclass(kind, dict) and kind.__module__.startswith("transfor"):
        changed.append(kind.__name__)
        kind, context = dict, list(context)
    return pytree.TreeSpec(kind, context, children)
