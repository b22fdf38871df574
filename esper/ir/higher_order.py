"""Regions that `torch.export` keeps as graphs of their own, inlined.

What surrounds a region and what it holds are then one graph, which every rule and pass sees
whole: `no_grad` stands behind `detach`, autocast is spelled out as casts, and loops over a static
number of steps are unrolled. Regions that depend on data (`cond`, `while_loop`) stay as they are.

Semantics: docs.pytorch.org/docs/stable/higher_order_ops.html, and for autocast
docs.pytorch.org/docs/stable/amp.html.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode

from esper.ir import shapes
from esper.ir.recurrent_shapes import SHAPES

aten = torch.ops.aten

_LOG = logging.getLogger("torch._subclasses.fake_tensor")
# Longer loops stay whole: their graph would be slower to run than to loop.
MOST_NODES = 4096


def inline_regions(module: fx.GraphModule) -> None:
    """Inline, in place, every region that can be; values are recorded for every new node."""
    kept: set[fx.Node] = set()
    while True:
        region = next((n for n in module.graph.nodes if n not in kept and _inliner(n)), None)
        if region is None:
            return
        inliner = _inliner(region)
        assert inliner is not None
        with module.graph.inserting_before(region):
            results = inliner(_Body(module, region))
        if results is None:
            kept.add(region)
        else:
            _replace(module.graph, region, results)
        module.graph.eliminate_dead_code(is_impure_node=_is_live)


class _Body:
    """A region's node, and how nodes are added in front of it."""

    def __init__(self, module: fx.GraphModule, region: fx.Node) -> None:
        self.module, self.region, self.graph = module, region, module.graph
        self.mode = shapes.fake_mode(module.graph)
        self._before = region.prev

    def withdraw(self) -> None:
        """Erase what was added."""
        while self.region.prev is not self._before:
            self.graph.erase_node(self.region.prev)

    def inner(self, reader: Any) -> fx.GraphModule:
        """The graph behind one of the region's arguments."""
        found = self.module.get_submodule(str(reader.target))
        assert isinstance(found, fx.GraphModule)
        return found

    def call(self, target: Callable[..., Any], args: tuple[Any, ...], like: fx.Node) -> fx.Node:
        """Add a call whose provenance is that of `like`."""
        return shapes.add_call(self.graph, target, args, like, self.mode)

    def copy(
        self,
        reader: Any,
        operands: Sequence[Any],
        adjust: Callable[[fx.Node], None] | None = None,
    ) -> list[Any]:
        """Add a copy of an inner graph fed with `operands`; returns its results.

        `adjust` may change each copied call before its value is computed.
        """
        known: dict[fx.Node, Any] = {}
        feeds = iter(operands)
        results: Any = ()
        for original in self.inner(reader).graph.nodes:
            if original.op == "placeholder":
                known[original] = next(feeds)
            elif original.op == "get_attr":
                node = self.graph.get_attr(f"{reader.target}.{original.target}")
                node.meta = dict(original.meta)
                known[original] = node
            elif original.op == "output":
                results = fx.map_arg(original.args[0], known.__getitem__)
            else:
                node = self.graph.node_copy(original, known.__getitem__)
                if adjust is not None:
                    adjust(node)
                if not isinstance(node.target, torch._ops.HigherOrderOperator):
                    node.meta["val"] = shapes.compute(node, self.mode)
                known[original] = node
        return list(results) if isinstance(results, (list, tuple)) else [results]


Inliner = Callable[[_Body], list[Any] | None]


def _inliner(node: fx.Node) -> Inliner | None:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.HigherOrderOperator):
        return None
    return _INLINERS.get(str(node.target))


def _is_live(node: fx.Node) -> bool:
    """Only bodies of inlined regions are swept; everything else is left as it was traced."""
    module = node.graph.owning_module
    if node.op != "get_attr" or module is None:
        return True
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part, None)
    return not isinstance(value, fx.GraphModule)


def _replace(graph: fx.Graph, region: fx.Node, results: list[Any]) -> None:
    for user in list(region.users):
        if user.target is operator.getitem:
            user.replace_all_uses_with(results[int(str(user.args[1]))])
            graph.erase_node(user)
    if region.users:
        region.replace_all_uses_with(results[0])
    graph.erase_node(region)


# -- switches ------------------------------------------------------------------------------------


def _set_grad(body: _Body) -> list[Any]:
    """wrap_with_set_grad_enabled(enabled, graph, *operands)."""
    enabled, reader, *operands = body.region.args
    results = body.copy(reader, operands)
    return results if enabled else [_detached(body, result) for result in results]


def _detached(body: _Body, value: Any) -> Any:
    tensor = value.meta.get("val") if isinstance(value, fx.Node) else None
    if not isinstance(tensor, torch.Tensor) or not tensor.dtype.is_floating_point:
        return value
    return body.call(aten.detach.default, (value,), value)


def _autocast(body: _Body) -> list[Any] | None:
    """wrap_with_autocast(device, dtype, enabled, cache_enabled, graph, *operands)."""
    device, dtype, enabled, _, reader, *operands = body.region.args
    if not enabled:
        return body.copy(reader, operands)
    region = torch.autocast(str(device), dtype=dtype)  # type: ignore[arg-type]
    level = _LOG.level
    try:
        _LOG.setLevel(logging.CRITICAL)  # what cannot be computed is found out by trying
        return body.copy(reader, operands, lambda node: _cast_operands(body, node, region))
    except _MoreThanCastsError:
        body.withdraw()
        return None
    finally:
        _LOG.setLevel(level)


class _MoreThanCastsError(Exception):
    """Autocast does more to an op than cast its operands."""


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which tensors an op casts, and to what."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.casts: dict[int, torch.dtype] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._to_copy.default and kwargs.get("dtype") is not None:
            self.casts[id(args[0])] = kwargs["dtype"]
        return func(*args, **kwargs)


def _cast_operands(body: _Body, node: fx.Node, region: torch.autocast) -> None:
    """Put in front of an op the casts that autocast would make; the op then has its result."""
    # Shapes of recurrent layers are worked out without running them, so casts are not seen.
    if isinstance(node.target, torch._ops.HigherOrderOperator) or node.target in SHAPES:
        raise _MoreThanCastsError
    try:
        with region, _Seen() as seen:
            wanted = shapes.compute(node, body.mode)
    except Exception as error:
        raise _MoreThanCastsError from error
    if not seen.casts or (not _mixed(node) and _computes(body, node, wanted)):
        return
    casts: dict[fx.Node, fx.Node] = {}
    with body.graph.inserting_before(node):
        for operand in list(node.all_input_nodes):
            dtype = seen.casts.get(id(operand.meta.get("val")))
            if dtype is not None:
                casts[operand] = body.call(aten.to.dtype, (operand, dtype), node)
                node.replace_input_with(operand, casts[operand])
    if _computes(body, node, wanted):
        return
    for operand, cast in casts.items():  # these were casts that the op makes itself
        node.replace_input_with(cast, operand)
        body.graph.erase_node(cast)
    if not _computes(body, node, wanted):
        raise _MoreThanCastsError


def _computes(body: _Body, node: fx.Node, wanted: Any) -> bool:
    """Whether an op, outside of autocast, has a result like the one that is wanted."""
    try:
        return shapes.same_value(wanted, shapes.compute(node, body.mode))
    except Exception:  # noqa: BLE001 - ops raise all sorts of errors on mixed dtypes
        return False


def _mixed(node: fx.Node) -> bool:
    """Whether operands differ in dtype: most ops then do not compute without casts."""
    values = (operand.meta.get("val") for operand in node.all_input_nodes)
    return len({v.dtype for v in values if isinstance(v, torch.Tensor)}) > 1


def _marked(start: int) -> Inliner:
    """Ops that only mark a region: the graph first, its operands from `start` on."""

    def inline(body: _Body) -> list[Any]:
        reader, *_ = body.region.args
        return body.copy(reader, body.region.args[start:])

    return inline


# -- loops ---------------------------------------------------------------------------------------


def _loop(
    unroll: Callable[[_Body, int, Any, list[Any], list[Any]], list[Any]], sliced_at: int = 1
) -> Inliner:
    """Ops (graph, ..., operands sliced along dim 0, others), if the steps are few and static."""

    def inline(body: _Body) -> list[Any] | None:
        arguments: Any = body.region.args
        reader, sliced, others = arguments[0], arguments[sliced_at], arguments[sliced_at + 1]
        steps = sliced[0].meta["val"].shape[0]
        length = len(body.inner(reader).graph.nodes)
        if not isinstance(steps, int) or not 0 < steps * length <= MOST_NODES:
            return None
        return unroll(body, steps, reader, list(sliced), list(others))

    return inline


def _scan(body: _Body, steps: int, reader: Any, sliced: list[Any], others: list[Any]) -> list[Any]:
    """scan(graph, carried, sliced, others): carried state, then stacked results."""
    state: list[Any] = list(body.region.args[1])  # type: ignore[arg-type]
    rows = []
    for step in range(steps):
        found = body.copy(reader, [*state, *_items(body, sliced, step), *others])
        state, row = found[: len(state)], found[len(state) :]
        rows.append(row)
    return [*state, *_stacked(body, rows)]


def _map(body: _Body, steps: int, reader: Any, sliced: list[Any], others: list[Any]) -> list[Any]:
    """map_impl(graph, sliced, others): stacked results."""
    items = (_items(body, sliced, step) for step in range(steps))
    return _stacked(body, [body.copy(reader, [*item, *others]) for item in items])


def _associative_scan(
    body: _Body, steps: int, reader: Any, sliced: list[Any], others: list[Any]
) -> list[Any]:
    """associative_scan(graph, sliced, others): stacked running results."""
    rows = [_items(body, sliced, 0)]
    for step in range(1, steps):
        rows.append(body.copy(reader, [*rows[-1], *_items(body, sliced, step), *others]))
    return _stacked(body, rows)


def _items(body: _Body, sliced: list[Any], step: int) -> list[Any]:
    return [body.call(aten.select.int, (operand, 0, step), body.region) for operand in sliced]


def _stacked(body: _Body, rows: list[list[Any]]) -> list[Any]:
    return [
        body.call(aten.stack.default, (list(column), 0), body.region)
        for column in zip(*rows, strict=True)
    ]


_INLINERS: dict[str, Inliner] = {
    "wrap_with_set_grad_enabled": _set_grad,
    "wrap_with_autocast": _autocast,
    "wrap": _marked(1),
    "tag_activation_checkpoint": _marked(1),
    "wrap_activation_checkpoint": _marked(1),
    "invoke_subgraph": _marked(2),
    "scan": _loop(_scan, sliced_at=2),
    "map_impl": _loop(_map),
    "associative_scan": _loop(_associative_scan),
}
