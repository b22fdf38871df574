"""Sizes that the hardware likes, found by measuring instead of assuming a divisor.

For an axis of neurons or channels, the linear or convolution nodes that hold it are timed at a
few sizes from the wanted one up to the next multiple of 64. The smallest size is kept unless a
larger one is measurably faster: more units for less time.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

if TYPE_CHECKING:
    from esper.ir.anatomy import Axis
    from esper.ir.model import Model

aten = torch.ops.aten
_KINDS = ("neurons", "channels", "embedding")
_MULTIPLES = (4, 8, 16, 32, 64)
_ROUNDS = 24
_GAIN = 0.98  # a larger size must be at least 2% faster than the wanted one


@dataclass(frozen=True)
class Size:
    """How many units to keep, and the times that say so (milliseconds by size)."""

    units: int
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


_CACHE: dict[Any, dict[int, float]] = {}


def best_size(model: Model, axis: Axis, wanted: int) -> Size:
    """The size at or above `wanted` with the best measured time.

    Axes other than neurons, channels and embedding keep the wanted size: heads have no cliffs
    between whole heads.
    """
    if axis.kind not in _KINDS or wanted >= axis.size:
        return Size(wanted)
    nodes = [node for node in _nodes(model, axis) if node is not None]
    if not nodes:
        return Size(wanted)
    sizes = {wanted, *(min(axis.size, -(-wanted // m) * m) for m in _MULTIPLES)}
    shapes = tuple(_key(node, axis, model) for node in nodes)
    key = (shapes, axis.size, wanted, _device(model), torch.get_num_threads())
    if key not in _CACHE:
        _CACHE[key] = _measure(model, axis, nodes, sorted(sizes))
    times = _CACHE[key]
    fastest = min(times, key=lambda size: (times[size], size))
    units = fastest if times[fastest] < _GAIN * times[wanted] else wanted
    text = ", ".join(f"{size}: {times[size]:.3f} ms" for size in sorted(times))
    return Size(
        units,
        f"{axis.id} keeps {units} units where {wanted} were wanted ({text})",
        {"wanted": wanted, "units": units, "milliseconds": {str(s): t for s, t in times.items()}},
    )


def _nodes(model: Model, axis: Axis) -> list[fx.Node | None]:
    """Linear and convolution nodes whose weight holds the axis as one whole dimension."""
    found: list[fx.Node | None] = []
    for node in model.graph.nodes:
        if node.target not in (aten.linear.default, aten.conv1d.default, aten.conv2d.default):
            continue
        if _dims(model, node, axis):
            found.append(node)
    return found[:4]


def _dims(model: Model, node: fx.Node, axis: Axis) -> list[int]:
    from esper.ir.terms import Atom

    name = model.canonical_names().get(str(node.args[1].target))  # type: ignore[union-attr]
    terms = model.table.tensors.get(name or "", ())
    groups = node.args[6] if len(node.args) > 6 else 1
    if groups != 1:
        return []
    return [dim for dim, term in enumerate(terms[:2]) if term == Atom(axis.atom)]


def _key(node: fx.Node, axis: Axis, model: Model) -> Any:
    weight = model.tensor(str(node.args[1].target))  # type: ignore[union-attr]
    assert weight is not None
    shape = tuple(_concrete(node.args[0].meta["val"].shape))  # type: ignore[union-attr]
    return (
        str(node.target),
        shape,
        tuple(weight.shape),
        str(weight.dtype),
        node.args[3:],
        tuple(_dims(model, node, axis)),
    )


def _device(model: Model) -> str:
    return str(next((p.device for p in model.parameters()), "cpu"))


def _concrete(shape: Any) -> list[int]:
    return [s if isinstance(s, int) else int(s.node.hint or 1) for s in shape]


def _measure(model: Model, axis: Axis, nodes: list[fx.Node], sizes: list[int]) -> dict[int, float]:
    """Median milliseconds of the nodes together at each size, sizes in random order per round."""
    calls = {size: [_call(model, node, axis, size) for node in nodes] for size in sizes}
    shuffle = random.Random(0)
    samples: dict[int, list[float]] = {size: [] for size in sizes}
    with torch.inference_mode():
        for round_number in range(_ROUNDS + 3):
            order = list(sizes)
            shuffle.shuffle(order)
            for size in order:
                start = time.perf_counter_ns()
                for call in calls[size]:
                    call()
                elapsed = (time.perf_counter_ns() - start) / 1e6
                if round_number >= 3:  # the first rounds warm caches and allocator up
                    samples[size].append(elapsed)
    return {size: statistics.median(values) for size, values in samples.items()}


def _call(model: Model, node: fx.Node, axis: Axis, size: int) -> Callable[[], torch.Tensor]:
    weight = model.tensor(str(node.args[1].target))  # type: ignore[union-attr]
    assert weight is not None
    shape, x_shape = list(weight.shape), _concrete(node.args[0].meta["val"].shape)  # type: ignore[union-attr]
    for dim in _dims(model, node, axis):
        shape[dim] = size
        if dim == 1:
            x_shape[-1 if node.target is aten.linear.default else 1] = size
    w = torch.randn(shape, dtype=weight.dtype, device=weight.device)
    x = torch.randn(x_shape, dtype=weight.dtype, device=weight.device)
    target: Any = node.target
    rest = node.args[3:]

    def call() -> torch.Tensor:
        result: torch.Tensor = target(x, w, None, *rest)
        if result.is_cuda:
            torch.cuda.synchronize(result.device)
        return result

    return call
