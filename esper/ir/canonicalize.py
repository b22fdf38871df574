"""Bring an exported graph into the forms that rules and passes rely on.

Guards, metadata assertions and slot markers go, regions that are graphs of their own are
inlined, in-place element-wise ops become functional where nothing else sees the mutation, ops of
several names get one, `split` and `chunk` state their sizes, slices and selections count from the
front, squeezes name what goes, and attention states its scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from esper.ir import shapes
from esper.ir.constant_index import spell_constant_indices
from esper.ir.higher_order import inline_regions
from esper.ir.inplace import functionalize
from esper.ir.marker import take_markers
from esper.ir.spelling import spell

aten = torch.ops.aten

_ASSERTIONS = {
    aten._assert_tensor_metadata.default,
    aten._assert_async.msg,
    aten._assert_async.default,
}


def canonicalize(module: fx.GraphModule) -> None:
    """Rewrite `module.graph` in place; values in `meta["val"]` are kept for every new node."""
    inline_regions(module)
    _drop_checks(module)
    take_markers(module.graph)
    _state_bounds(module.graph)
    functionalize(module.graph)
    spell(module)
    spell_constant_indices(module)
    _state_sizes(module.graph)
    _drop_totals(module.graph)
    _state_views(module.graph)
    _state_squeezed(module.graph)
    _state_scale(module.graph)
    _state_layout(module.graph)
    module.graph.lint()


def _drop_checks(module: fx.GraphModule) -> None:
    for node in reversed(module.graph.nodes):
        guard = node.op == "call_module" and str(node.target) == "_guards_fn"
        if guard or (node.op == "call_function" and node.target in _ASSERTIONS):
            module.graph.erase_node(node)
    if hasattr(module, "_guards_fn"):
        delattr(module, "_guards_fn")


def _state_sizes(graph: fx.Graph) -> None:
    """split.Tensor and chunk become split_with_sizes where the dim is static."""
    for node in graph.nodes:
        if node.target not in (aten.split.Tensor, aten.chunk.default):
            continue
        dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
        sizes = [value.shape[dim] for value in node.meta["val"]]
        if all(isinstance(size, int) for size in sizes):
            node.target = aten.split_with_sizes.default
            node.args, node.kwargs = (node.args[0], sizes, dim), {}


def _drop_totals(graph: fx.Graph) -> None:
    """`repeat_interleave` may be told the size of its result, which only saves it the sum."""
    for node in graph.find_nodes(op="call_function", target=aten.repeat_interleave.self_int):
        node.kwargs = {k: v for k, v in node.kwargs.items() if k != "output_size"}


def _state_views(graph: fx.Graph) -> None:
    """Sizes of views that are computed from others (batch * heads) hide literals.

    They become literals where they are static, and -1 where that says the same.
    """
    for node in graph.nodes:
        if node.target not in (aten.view.default, aten.reshape.default, aten.expand.default):
            continue
        stated, after = list(node.args[1]), list(node.meta["val"].shape)
        computed = {
            i
            for i, size in enumerate(stated)
            if isinstance(size, fx.Node) and size.target is not aten.sym_size.int
        }
        if not computed:
            continue
        static = [_static(size) for size in after]
        if node.target is aten.expand.default:
            before = node.args[0].meta["val"].shape
            lead = len(after) - len(before)
            kept = {
                i for i in computed if i >= lead and shapes.same_size(before[i - lead], after[i])
            }
        else:
            kept = computed if static.count(None) == 1 else set()
        for i, size in enumerate(static):
            if size is not None and (i in computed or stated[i] == -1):
                stated[i] = size
            elif i in kept:
                stated[i] = -1
        node.args = (node.args[0], stated, *node.args[2:])


def _static(size: Any) -> int | None:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression) if expression.is_Integer else None


def _state_bounds(graph: fx.Graph) -> None:
    """Bounds and indices count from the front where the dim is static: else they would move."""
    for node in graph.find_nodes(op="call_function", target=aten.slice.Tensor):
        arguments: list[Any] = [*node.args, *([0, None, None][len(node.args) - 1 :])]
        dim, bounds = arguments[1], arguments[2:4]
        size = node.args[0].meta["val"].shape[dim]
        negative = [isinstance(bound, int) and bound < 0 for bound in bounds]
        if isinstance(size, int) and any(negative):
            bounds = [
                max(bound + size, 0) if below else bound
                for bound, below in zip(bounds, negative, strict=True)
            ]
            node.args = (*arguments[:2], *bounds, *arguments[4:])
    for node in graph.find_nodes(op="call_function", target=aten.select.int):
        x, dim, index = node.args
        size = x.meta["val"].shape[dim]
        if isinstance(size, int) and isinstance(index, int) and index < 0:
            node.args = (x, dim, index + size)


def _state_squeezed(graph: fx.Graph) -> None:
    """A squeeze names the dims that go: an axis cut down to one unit must not go with them."""
    for target in (aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims):
        for node in graph.find_nodes(op="call_function", target=target):
            shape = node.args[0].meta["val"].shape
            named = node.args[1] if len(node.args) > 1 else list(range(len(shape)))
            dims = [
                d
                for d in (named if isinstance(named, (list, tuple)) else [named])
                if len(shape) > 0 and isinstance(shape[d], int) and shape[d] == 1
            ]
            node.target, node.args = aten.squeeze.dims, (node.args[0], dims)


def _state_scale(graph: fx.Graph) -> None:
    """Attention keeps its scale when the head size changes, so the scale must be a literal."""
    for node in graph.nodes:
        if node.target is not aten.scaled_dot_product_attention.default:
            continue
        kwargs = dict(node.kwargs)
        # attn_mask, dropout_p, is_causal become positional, so that both modes line up.
        defaults = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False}
        tail = [kwargs.pop(name, value) for name, value in defaults.items()]
        node.args = (*node.args, *tail[len(node.args) - 3 :])
        size = node.args[0].meta["val"].shape[-1]
        if kwargs.get("scale") is None and isinstance(size, int):
            kwargs["scale"] = size**-0.5
        node.kwargs = kwargs


def _state_layout(graph: fx.Graph) -> None:
    """A complex view needs even strides, which a cut beside it may make odd: it gets a copy."""
    for node in graph.find_nodes(op="call_function", target=aten.view_as_complex.default):
        pairs = node.args[0]
        with graph.inserting_before(node):
            copy = graph.call_function(
                aten.clone.default, (pairs,), {"memory_format": torch.contiguous_format}
            )
        copy.meta = dict(pairs.meta)
        node.replace_input_with(pairs, copy)
