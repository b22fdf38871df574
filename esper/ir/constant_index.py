"""Indexing with constants whose structure is plain, spelled as what it is.

`x[:, torch.tensor([0, 1, 4, 5])]` takes two slices, `[0, 3, 1, 4, 2, 5]` shuffles channels,
`[0, 0, 1, 1]` repeats each unit: said with slices, views and repeats, units stay in reach of cuts,
whereas rows that data addresses are frozen. Constants are tensors that the model's code makes, and
buffers that are not saved; those in a state dict may be loaded with other values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from esper.ir import shapes

aten = torch.ops.aten

MOST_RUNS = 8  # slices that one index may become
_MOST_VALUES = 65536
_CONSTANT_OPS = {
    aten.lift_fresh_copy.default,
    aten.lift_fresh.default,
    aten.detach.default,
    aten.clone.default,
    aten.alias.default,
    aten.to.dtype,
    aten.to.device,
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.transpose.int,
    aten.t.default,
    aten.permute.default,
    aten.unsqueeze.default,
    aten.squeeze.dims,
    aten.slice.Tensor,
    aten.cat.default,
    aten.stack.default,
    aten.flip.default,
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
}


def spell_constant_indices(module: fx.GraphModule) -> None:
    """Rewrite, in place, what is indexed with structured constants."""
    lasting = set(module.state_dict(keep_vars=True))
    for node in list(module.graph.nodes):
        found = _indexed(node)
        if found is None:
            continue
        x, dim, index = found
        size = x.meta["val"].shape[dim]
        values = constant(module, index, lasting)
        if values is None or values.ndim != 1 or not isinstance(size, int):
            continue
        with module.graph.inserting_before(node):
            result = _Spelling(node, dim, size).spell(x, values.tolist(), _ones(node, index))
        if result is not None:
            node.replace_all_uses_with(result)
            made = node.all_input_nodes
            module.graph.erase_node(node)
            for each in made:
                _sweep(each)


def _ones(node: fx.Node, index: Any) -> tuple[int, int]:
    """Dims of size one that an index puts before and after the one along which it selects."""
    if node.target is not aten.index.Tensor:
        return 0, 0
    sizes = list(index.meta["val"].shape)
    before = next((i for i, size in enumerate(sizes) if size != 1), 0)
    return before, len(sizes) - 1 - before


def _sweep(node: fx.Node) -> None:
    """Erase what made the index, where nothing else reads it."""
    if not node.users and node.op in ("get_attr", "call_function"):
        operands = node.all_input_nodes
        node.graph.erase_node(node)
        for operand in operands:
            _sweep(operand)


def _indexed(node: fx.Node) -> tuple[fx.Node, int, Any] | None:
    """The operand, dim and index of a selection along one dim."""
    if node.target is aten.index_select.default:
        x, dim, index = node.args
    elif node.target is aten.index.Tensor:
        x, indices = node.args
        given = [i for i, each in enumerate(indices) if each is not None]  # type: ignore[arg-type]
        if len(given) != 1:
            return None
        dim, index = given[0], indices[given[0]]  # type: ignore[index]
    elif node.target is aten.gather.default:
        x, dim, index = node.args[:3]
        base = _spread(x, dim, index)
        if base is None:
            return None
        index = base
    else:
        return None
    assert isinstance(x, fx.Node)
    if not isinstance(dim, int) or x.meta["val"].ndim == 0:
        return None
    return x, dim % x.meta["val"].ndim, index


def _spread(x: Any, dim: Any, index: Any) -> fx.Node | None:
    """What a gather's index repeats along all other dims, if it does and covers them."""
    if index.target is not aten.expand.default:
        return None
    base = index.args[0]
    wanted, given = list(x.meta["val"].shape), list(index.meta["val"].shape)
    own = list(base.meta["val"].shape)
    dim %= len(wanted)
    beside = [i for i in range(len(wanted)) if i != dim]
    own = [1] * (len(wanted) - len(own)) + own
    if all(shapes.same_size(wanted[i], given[i]) and own[i] == 1 for i in beside):
        return base  # type: ignore[no-any-return]
    return None


def constant(module: fx.GraphModule, node: Any, lasting: set[str]) -> torch.Tensor | None:
    """The integers that a node always has, flat where only one dim is not one; None if unknown."""
    value = _value(module, node, lasting, {})
    if value is None or value.dtype is not torch.int64 or value.numel() > _MOST_VALUES:
        return None
    return value.flatten() if value.numel() in value.shape else value


def _value(
    module: fx.GraphModule, node: Any, lasting: set[str], known: dict[fx.Node, Any]
) -> torch.Tensor | None:
    if not isinstance(node, fx.Node):
        return None
    if node not in known:
        known[node] = None
        if node.op == "get_attr" and not any(map(_writes, node.users)):
            known[node] = _attribute(module, str(node.target), lasting)
        elif node.target in _CONSTANT_OPS:
            inputs = {each: _value(module, each, lasting, known) for each in node.all_input_nodes}
            size = node.meta["val"].numel()
            whole = all(value is not None for value in inputs.values())
            if whole and isinstance(size, int) and size <= _MOST_VALUES:
                args, kwargs = fx.map_arg((node.args, node.kwargs), inputs.__getitem__)
                known[node] = node.target(*args, **kwargs)
    found: torch.Tensor | None = known[node]
    return found


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _attribute(module: fx.GraphModule, name: str, lasting: set[str]) -> torch.Tensor | None:
    path, _, leaf = name.rpartition(".")
    value = getattr(module.get_submodule(path), leaf, None)
    if not isinstance(value, torch.Tensor) or isinstance(value, torch.nn.Parameter):
        return None
    made_by_code = leaf.startswith(("lifted_tensor_", "_tensor_constant"))
    if value.is_meta or (name in lasting and not made_by_code):
        return None
    return value.detach()


class _Spelling:
    """Builds the nodes that stand for one index along one dim."""

    def __init__(self, node: fx.Node, dim: int, size: int) -> None:
        self._node, self._dim, self._size = node, dim, size
        self._mode = shapes.fake_mode(node.graph)

    def spell(self, x: fx.Node, values: list[int], ones: tuple[int, int]) -> fx.Node | None:
        """The indexed value, or None where nothing plain says what the index does.

        Args:
            x: what is indexed.
            values: positions along the dim.
            ones: dims of size one that come before and after that dim.
        """
        result = self._selected(x, values)
        if result is None:
            return None
        before, after = ones
        for place in [self._dim + 1] * after + [self._dim] * before:
            result = self._call(aten.unsqueeze.default, result, place)
        return result

    def _selected(self, x: fx.Node, values: list[int]) -> fx.Node | None:
        size, dim = self._size, self._dim
        values = [v + size if v < 0 else v for v in values]
        count = len(values)
        if not count or not all(0 <= v < size for v in values):
            return None
        runs = _runs(values)
        if len(runs) == 1:
            return self._slice(x, *runs[0])
        step = values[1] - values[0]
        if values[0] < step and values == list(range(values[0], size, step)):
            # Up to the end: the form in which the rule of slices understands a stride.
            return self._call(aten.slice.Tensor, x, dim, values[0], size, step)
        if values == list(range(size))[::-1]:
            return self._call(aten.flip.default, x, [dim])
        if count % size == 0 and values == [v for v in range(size) for _ in range(count // size)]:
            return self._call(aten.repeat_interleave.self_int, x, count // size, dim)
        if count == size and step > 1 and size % step == 0:
            rows = size // step
            if values == [r * step + c for c in range(step) for r in range(rows)]:
                return self._shuffle(x, rows, step)
        if len(runs) <= MOST_RUNS and 2 * len(runs) <= count:
            parts = [self._slice(x, *run) for run in runs]
            return self._call(aten.cat.default, parts, dim)
        return None

    def _slice(self, x: fx.Node, start: int, stop: int) -> fx.Node:
        if (start, stop) == (0, self._size):
            return x
        return self._call(aten.slice.Tensor, x, self._dim, start, stop)

    def _shuffle(self, x: fx.Node, rows: int, columns: int) -> fx.Node:
        """The channel shuffle: rows x columns, read column by column."""
        dim = self._dim
        grid = self._call(aten.unflatten.int, x, dim, [rows, columns])
        turned = self._call(aten.transpose.int, grid, dim, dim + 1)
        return self._call(aten.flatten.using_ints, turned, dim, dim + 1)

    def _call(self, target: Any, *args: Any) -> fx.Node:
        return shapes.add_call(self._node.graph, target, args, self._node, self._mode)


def _runs(values: list[int]) -> list[tuple[int, int]]:
    """Maximal runs of rising neighbours, as (first, last + 1)."""
    runs: list[tuple[int, int]] = []
    for value in values:
        if runs and runs[-1][1] == value:
            runs[-1] = (runs[-1][0], value + 1)
        else:
            runs.append((value, value + 1))
    return runs
