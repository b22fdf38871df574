"""Shape and dtype propagation with fake tensors, whole or from the nodes that changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from esper.ir.recurrent_shapes import SHAPES

if TYPE_CHECKING:
    from esper.ir.model import Model


def fake_mode(graph: fx.Graph) -> FakeTensorMode:
    """The mode in which the graph's input values live, so that symbols stay comparable."""
    for node in graph.nodes:
        if isinstance(node.meta.get("val"), FakeTensor):
            mode: FakeTensorMode = node.meta["val"].fake_mode
            return mode
    return FakeTensorMode(allow_non_fake_inputs=True)


def same_value(a: Any, b: Any) -> bool:
    """Whether two fake values agree in structure, shape and dtype."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same_value, a, b))
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and sizes(a) == sizes(b) and a.device == b.device
    return type(a) is type(b)


def same_strides(a: Any, b: Any) -> bool:
    """The same of their strides, for values that agree in all else."""
    if isinstance(a, (list, tuple)):
        return all(map(same_strides, a, b))
    return not isinstance(a, torch.Tensor) or all(map(same_size, a.stride(), b.stride()))


def same_size(a: Any, b: Any) -> bool:
    """Whether two sizes are equal for all values of the symbols, without a guard."""
    x, y = (s if isinstance(s, int) else s.node.expr for s in (a, b))
    return bool(x == y)


def sizes(value: torch.Tensor) -> list[Any]:
    """Sizes of a value: ints, and text for symbolic ones."""
    shape: list[Any] = list(value.shape)
    return [s if isinstance(s, int) else _text(s.node.expr) for s in shape]


def _text(expression: Any) -> int | str:
    return int(expression) if expression.is_Integer else str(expression)


def describe(value: Any) -> str:
    """`float32[s0, 64, 384]`, nested in parentheses for several results."""
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(map(describe, value)) + ")"
    if isinstance(value, torch.Tensor):
        return str(value.dtype).removeprefix("torch.") + str(sizes(value)).replace("'", "")
    return type(value).__name__ if value is not None else "none"


def evaluate(model: Model, node: fx.Node, mode: FakeTensorMode) -> Any:
    """The fake value that a node computes from the values of its operands.

    Raises whatever the op raises on inconsistent shapes or dtypes.
    """
    if node.op == "get_attr":
        tensor = model.tensor(str(node.target))
        if tensor is None:
            return node.meta.get("val")
        # Not `from_tensor`: it remembers tensor objects, and cuts change shapes in place.
        with mode:
            return torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
            )
    return compute(node, mode) if node.op == "call_function" else node.meta.get("val")


def compute(node: fx.Node, mode: FakeTensorMode) -> Any:
    """The fake value of a call from those that its operands record; raises what the op raises."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), _operand)
    return call(node.target, args, kwargs, mode)


def call(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], mode: FakeTensorMode) -> Any:
    """The fake value of an op on fake operands; raises what the op raises."""
    # Values are kept for their shapes only: no autograd history, and no guards, which would
    # narrow the ranges of symbols by what some kernel's heuristics asked about the example.
    # As in export, Python kernels come first: some C++ ones would fix a symbolic size.
    with mode, torch.no_grad(), enable_python_dispatcher(), _no_guards(mode):
        return SHAPES.get(target, target)(*args, **kwargs)


def add_call(
    graph: fx.Graph,
    target: Callable[..., Any],
    args: tuple[Any, ...],
    like: fx.Node,
    mode: FakeTensorMode,
) -> fx.Node:
    """Add a call at the graph's insertion point, with its value and the provenance of `like`."""
    node = graph.call_function(target, args)
    node.meta = {key: value for key, value in like.meta.items() if key != "val"}
    node.meta["val"] = compute(node, mode)
    return node


def _operand(node: fx.Node) -> Any:
    """The recorded value, or the graph that a region's op calls."""
    value, module = node.meta.get("val"), node.graph.owning_module
    if value is None and node.op == "get_attr" and module is not None:
        return module.get_submodule(str(node.target))
    return value


def _no_guards(mode: FakeTensorMode) -> AbstractContextManager[None]:
    return nullcontext() if mode.shape_env is None else mode.shape_env.suppress_guards()


def propagate(
    model: Model, dirty: Iterable[fx.Node] | None = None, before: dict[str, Any] | None = None
) -> list[fx.Node]:
    """Recompute `meta["val"]`, everywhere or from `dirty` on while values keep changing.

    Strides count as well, since a `view` may be illegal with others.

    Returns the nodes whose value changed in shape or dtype, in graph order. `before`, if given,
    receives the previous value of every node that was recomputed.
    """
    mode = fake_mode(model.graph)
    pending = None if dirty is None else set(dirty)
    changed: list[fx.Node] = []
    for node in model.graph.nodes if pending is None else _forward(model.graph, pending):
        if pending is not None and node not in pending:
            continue
        if before is not None:
            before[node.name] = node.meta.get("val")
        value = evaluate(model, node, mode)
        same = same_value(value, node.meta.get("val"))
        if not same:
            changed.append(node)
        if pending is not None and not (same and same_strides(value, node.meta["val"])):
            pending.update(node.users)
        node.meta["val"] = value
    return changed


def move_inputs(
    model: Model, dtypes: dict[torch.dtype, torch.dtype], device: torch.device | None
) -> None:
    """Retype the recorded inputs after `model.double()`, `.to(...)`, and propagate from there."""
    mode = fake_mode(model.graph)
    for node in model.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            with mode:
                node.meta["val"] = value.to(
                    dtype=dtypes.get(value.dtype, value.dtype), device=device or value.device
                )
    propagate(model)


def _forward(graph: fx.Graph, pending: set[fx.Node]) -> Iterable[fx.Node]:
    """Graph order from the first pending node; stops when nothing is pending any more."""
    if not pending:
        return
    node = min(pending)  # fx nodes compare by position in the graph
    done = 0
    while node.op != "root" and done < len(pending):
        if node in pending:
            yield node  # the caller may add users, which all come later
            done += 1
        node = node.next
