"""Linear layers that multiply integers, as `quantize{mode=dynamic-int8}` writes them down.

Each row of the input is rounded to int8 with a scale of its own, multiplied as integers, and scaled
back. One place says which calls those are, so that what is written is what is recognised.

Rows are made float32 before, and results have the dtype of the input after. In half precision a
quotient of the largest element could round to 128, which is no int8, sums of integers would lose
most of their bits, and float16 would divide a row of zeros by zero. Models in float32 have these
calls, too, which do nothing until the model is cast or `torch.autocast` hands them half precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from esper.plan import Ref

aten = torch.ops.aten
LEAST = 1e-12  # a row of zeros is divided by this

Call = tuple[Any, tuple[Any, ...], str]
"""An op, its arguments, and what it is for, which becomes part of its name."""


class IntegerLayer(NamedTuple):
    """One such layer in a graph.

    Attributes:
        x: what it rounds, (..., inputs).
        values, scale: reads of int8 (outputs, inputs) and of a scale for each output.
        bias: node of the bias.
        calls: those of `integer_calls` but the last.
        rows: what is divided by its steps, in the precision of the layer's arithmetic.
        full: calls in that precision, between the casts that are around them; none where there are
            no such casts.
    """

    x: fx.Node
    values: fx.Node
    scale: fx.Node
    bias: fx.Node | None
    calls: tuple[fx.Node, ...]
    rows: fx.Node
    full: tuple[fx.Node, ...]


def wider(dtype: torch.dtype) -> torch.dtype:
    """What rows of a dtype are rounded in, and scales of the weight are stored in."""
    return torch.promote_types(dtype, torch.float32)


def integer_calls(
    call: Callable[[Any, tuple[Any, ...], str], Ref],
    source: fx.Node,
    like: fx.Node,
    values: Ref,
    scale: Ref,
    bias: Any,
) -> Call:
    """Make all calls of a layer but the last, which is returned.

    Args:
        call: makes one.
        source: what is rounded.
        like: a node with the layer's value.
        values, scale, bias: as for `IntegerLayer`.
    """
    x = Ref(source.name)
    flat = source.meta["val"].ndim == 2
    if not flat:
        x = call(aten.reshape.default, (x, [-1, int(source.meta["val"].shape[-1])]), "rows")
    given, x = x, call(aten.to.dtype, (x, wider(source.meta["val"].dtype)), "wide")
    size = call(aten.abs.default, (x,), "abs")
    largest = call(aten.amax.default, (size, [-1], True), "largest")
    floor = call(aten.clamp_min.default, (largest, LEAST), "floor")
    step = call(aten.div.Tensor, (floor, 127), "step")
    ratio = call(aten.div.Tensor, (x, step), "ratio")
    whole = call(aten.round.default, (ratio,), "round")
    small = call(aten.to.dtype, (whole, torch.int8), "small")
    columns = call(aten.t.default, (values,), "columns")
    product = call(aten._int_mm.default, (small, columns), "product")
    rows = call(aten.mul.Tensor, (product, step), "stepped")
    last: Call = (aten.mul.Tensor, (rows, scale), "scaled")
    if bias is not None:
        last = (aten.add.Tensor, (call(*last), bias), "biased")
    last = (aten.to.other, (call(*last), given), "narrow")
    if not flat:
        result = call(*last)
        last = (aten.reshape.default, (result, _sizes(call, like, source)), "quantised")
    return last


def _sizes(
    call: Callable[[Any, tuple[Any, ...], str], Ref], like: fx.Node, source: fx.Node
) -> list[Any]:
    """Sizes of the layer's value: one symbol follows from the numbers, more are read off the input.

    Of several none follows, since another may be zero.
    """
    sizes: list[Any] = list(like.meta["val"].shape)
    symbols = [dim for dim, size in enumerate(sizes) if not isinstance(size, int)]
    for dim in symbols:
        size = (Ref(source.name), dim)
        sizes[dim] = -1 if len(symbols) == 1 else call(aten.sym_size.int, size, "size")
    return sizes


def integer_linear(x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """What those calls compute."""
    rows = x.reshape(-1, x.shape[-1]).to(wider(x.dtype))
    step = rows.abs().amax(-1, keepdim=True).clamp_min(LEAST) / 127
    small = (rows / step).round().to(torch.int8)
    out = torch._int_mm(small, values.t()) * step * scale
    out = out if bias is None else out + bias
    return out.to(x.dtype).reshape(*x.shape[:-1], len(values))


def integer_layer(node: fx.Node) -> IntegerLayer | None:
    """The layer whose value is that of `node`; None for other nodes, those inside a layer too."""
    product = _product(node)
    if product is None:
        return None
    found = _inside(product)
    if found is None:
        return None
    x, values, before, step = found
    stepped = _follower(product, aten.mul.Tensor, (product, step))
    scaled = None if stepped is None else _follower(stepped, aten.mul.Tensor, (stepped, None))
    if stepped is None or scaled is None or not _vector(scaled.args[1]):
        return None
    scale: Any = scaled.args[1]
    calls, end = [*before, product, stepped], scaled
    bias: Any = None
    biased = _follower(end, aten.add.Tensor, (end, None))
    if biased is not None and _vector(biased.args[1]):
        bias = biased.args[1]
        calls.append(end)
        end = biased
    rows, full = x, tuple[fx.Node, ...]()
    given = _source(rows, aten.to.dtype, wider(rows.meta["val"].dtype))
    if given is not None and set(rows.users) <= set(calls):
        narrowed = _follower(end, aten.to.other, (end, given))
        if narrowed is not None:
            full = (rows, *calls, end)
            x, calls, end = given, list(full), narrowed
    shaped = _follower(end, aten.reshape.default, (end, None))
    if shaped is not None and _restores(shaped, x):
        flattened: Any = x
        x = flattened.args[0]
        sizes = [n for n in shaped.all_input_nodes if n.target is aten.sym_size.int]
        calls = [flattened, *calls, end, *(n for n in sizes if set(n.users) == {shaped})]
        end = shaped
    if end is not node:
        return None
    return IntegerLayer(x, values, scale, bias, tuple(calls), rows, full)


def _product(node: fx.Node) -> fx.Node | None:
    """The product of integers that a node's value comes from by way of a layer's last calls."""
    ends = (aten.reshape.default, aten.to.other, aten.add.Tensor, aten.mul.Tensor)
    found: Any = node
    for _ in range(6):
        if not isinstance(found, fx.Node):
            return None
        if found.target is aten._int_mm.default:
            return found
        if found.target not in ends:
            return None
        found = found.args[0]
    return None


def _inside(product: fx.Node) -> tuple[fx.Node, fx.Node, list[fx.Node], fx.Node] | None:
    """Rows that are rounded, integers of the weight, calls before the product, and the steps."""
    small, columns = product.args
    whole = _source(small, aten.to.dtype, torch.int8)
    ratio = _source(whole, aten.round.default)
    x = _source(ratio, aten.div.Tensor, None)
    step: Any = ratio.args[1] if x is not None and ratio is not None else None
    floor = _source(step, aten.div.Tensor, 127)
    largest = _source(floor, aten.clamp_min.default, LEAST)
    size = _source(largest, aten.amax.default, [-1], True)
    values = _source(columns, aten.t.default)
    if values is None or values.op != "get_attr" or _source(size, aten.abs.default) is not x:
        return None
    calls: Any = [size, largest, floor, step, ratio, whole, small, columns]
    return None if x is None else (x, values, calls, step)


def _source(node: Any, target: Any, *rest: Any) -> fx.Node | None:
    """The first argument of a call of `target` with the `rest` behind it; None matches any."""
    if not isinstance(node, fx.Node) or node.target is not target or node.kwargs:
        return None
    first, *others = node.args
    same = len(others) == len(rest) and all(
        wanted is None or given == wanted for given, wanted in zip(others, rest, strict=True)
    )
    return first if same and isinstance(first, fx.Node) else None


def _follower(node: fx.Node, target: Any, args: tuple[Any, ...]) -> fx.Node | None:
    """The only user of a node, if it is that call; None among `args` matches any."""
    users = list(node.users)
    if len(users) != 1 or users[0].target is not target or users[0].kwargs:
        return None
    given = users[0].args
    if len(given) != len(args):
        return None
    same = all(w is None or g is w for g, w in zip(given, args, strict=True))
    return users[0] if same else None


def _vector(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr" and value.meta["val"].ndim == 1


def _restores(shaped: fx.Node, rows: fx.Node) -> bool:
    """Whether the value has the leading sizes again that were one in the rows."""
    if rows.target is not aten.reshape.default or rows.args[1] != [-1, rows.meta["val"].shape[-1]]:
        return False
    source: Any = rows.args[0]
    before, after = source.meta["val"].shape, shaped.meta["val"].shape
    return source.meta["val"].ndim != 2 and list(map(str, before[:-1])) == list(
        map(str, after[:-1])
    )
