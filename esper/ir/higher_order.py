"""Regions that `torch.export` keeps as graphs of their own, inlined.

What surrounds a region and what it holds are then one graph, which every rule and pass sees
whole: `no_grad` stands behind `detach`, autocast is spelled out as casts, and loops over a static
number of steps are unrolled. Regions that depend on data (`cond`, `while_loop`) stay as they are.

Semantics: docs.pytorch.org/docs/stable/higher_order_ops.html, and for autocast
docs.pytorch.org/docs/stable/amp.html.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode

from esper.ir import shapes

aten = torch.ops.aten

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
        node = self.graph.call_function(target, args)
        node.meta = {key: value for key, value in like.meta.items() if key != "val"}
        node.meta["val"] = shapes.compute(node, self.mode)
        return node

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
    try:
        return body.copy(reader, operands, lambda node: _cast_operands(body, node, region))
    except _MoreThanCastsError:
        body.withdraw()
        return None


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
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        raise _MoreThanCastsError
    with region, _Seen() as seen:
        under = shapes.compute(node, body.mode)
    plain = shapes.compute(node, body.mode)
    if shapes.same_value(under, plain) and not _mixed(node):
        return
    with body.graph.inserting_before(node):
        for operand in list(node.all_input_nodes):
            dtype = seen.casts.get(id(operand.meta.get("val")))
            if dtype is not None:
                cast = body.call(aten.to.dtype, (operand, dtype), node)
                node.replace_input_with(operand, cast)
    if not shapes.same_value(under, shapes.compute(node, body.mode)):
        raise _MoreThanCastsError


def _mixed(node: fx.Node) -> bool:
    """Whether floating operands differ in dtype: autocast may then widen one of them."""
    values = (operand.meta.get("val") for operand in node.all_input_nodes)
    return len({v.dtype for v in values if isinstance(v, torch.Tensor)}) > 1


def _wrapped(at: int, graph_at: int = 0) -> Inliner:
    """Ops that only mark a region: the graph at one argument, operands from `at` on."""

    def inline(body: _Body) -> list[Any]:
        return body.copy(body.region.args[graph_at], body.region.args[at:])

    return inline


# -- loops ---------------------------------------------------------------------------------------


def _scan(body: _Body) -> list[Any] | None:
    """scan(graph, carried, sliced along dim 0, others): carried state, then stacked results."""
    reader, carried, sliced, others = body.region.args
    steps = _steps(body, reader, sliced)
    if steps is None:
        return None
    state, rows = list(carried), []  # type: ignore[arg-type]
    for step in range(steps):
        found = body.copy(reader, [*state, *_items(body, sliced, step), *others])  # type: ignore[misc]
        state, row = found[: len(state)], found[len(state) :]
        rows.append(row)
    return [*state, *_stacked(body, rows)]


def _map(body: _Body) -> list[Any] | None:
    """map_impl(graph, sliced along dim 0, others): stacked results."""
    reader, sliced, others = body.region.args
    steps = _steps(body, reader, sliced)
    if steps is None:
        return None
    return _stacked(
        body,
        [
            body.copy(reader, [*_items(body, sliced, step), *others])  # type: ignore[misc]
            for step in range(steps)
        ],
    )


def _associative_scan(body: _Body) -> list[Any] | None:
    """associative_scan(graph, sliced along dim 0, others): stacked running results."""
    reader, sliced, others = body.region.args
    steps = _steps(body, reader, sliced)
    if steps is None:
        return None
    rows = [_items(body, sliced, 0)]
    for step in range(1, steps):
        rows.append(body.copy(reader, [*rows[-1], *_items(body, sliced, step), *others]))  # type: ignore[misc]
    return _stacked(body, rows)


def _steps(body: _Body, reader: Any, sliced: Any) -> int | None:
    """How often a loop runs, if that is static and the unrolled graph is not too long."""
    size = sliced[0].meta["val"].shape[0]
    if not isinstance(size, int) or size == 0:
        return None
    return size if size * len(body.inner(reader).graph.nodes) <= MOST_NODES else None


def _items(body: _Body, sliced: Any, step: int) -> list[Any]:
    return [body.call(aten.select.int, (operand, 0, step), body.region) for operand in sliced]


def _stacked(body: _Body, rows: list[list[Any]]) -> list[Any]:
    return [
        body.call(aten.stack.default, (list(column), 0), body.region)
        for column in zip(*rows, strict=True)
    ]


_INLINERS: dict[str, Inliner] = {
    "wrap_with_set_grad_enabled": _set_grad,
    "wrap_with_autocast": _autocast,
    "wrap": _wrapped(1),
    "tag_activation_checkpoint": _wrapped(1),
    "wrap_activation_checkpoint": _wrapped(1),
    "invoke_subgraph": _wrapped(2),
    "scan": _scan,
    "map_impl": _map,
    "associative_scan": _associative_scan,
}
