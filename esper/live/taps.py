"""Taps: a second function of the same graph that shows values and their gradients as it runs.

The model's own code never holds a hook. In a sampled step its forward call runs the tapped
function, which computes the same and tells a `Collector` of the values that are listened to; their
gradients come through tensor hooks in the backward pass. Under `torch.compile` nothing is tapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

if TYPE_CHECKING:
    from esper.ir.model import Model


@dataclass(frozen=True)
class Tap:
    """One value to listen to.

    Attributes:
        node: whose value.
        entry: node whose value is taken from it in dL/dm, if any.
        dims: dims over which gradients are averaged before they are compared.
        leaf: the value is a buffer that no gradient reaches by itself (alpha).
        whole: the gradient itself is wanted (of a masked weight).
    """

    node: str
    entry: str | None = None
    dims: tuple[int, ...] = ()
    leaf: bool = False
    whole: bool = False


class Heard:
    """Sums over the calls of one step, for one tap."""

    def __init__(self) -> None:
        self.moments: torch.Tensor | None = None  # count, sum, sum of squares
        self.products: torch.Tensor | None = None  # sum of value * gradient, of gradient^2
        self.vector: torch.Tensor | None = None  # gradient averaged over `dims`
        self.whole: torch.Tensor | None = None


class Collector:
    """What the taps heard since the last `clear`."""

    def __init__(self, taps: Sequence[Tap]) -> None:
        self.taps = tuple(taps)
        self.heard = [Heard() for _ in self.taps]

    def clear(self) -> None:
        """Begin a new step."""
        self.heard = [Heard() for _ in self.taps]

    def see(self, index: int, value: torch.Tensor, entry: torch.Tensor | None) -> torch.Tensor:
        """Note a value, and wait for its gradient; returns what the graph goes on with."""
        tap, heard = self.taps[index], self.heard[index]
        if tap.leaf:
            value = value.detach().requires_grad_()
        if not value.requires_grad:
            return value
        known = value.detach()
        away = known if entry is None else known - entry.detach()
        wide = torch.promote_types(known.dtype, torch.float32)

        def came(gradient: torch.Tensor) -> None:
            gradient = gradient.detach()
            if tap.whole:
                heard.whole = _plus(heard.whole, gradient)
                return
            if tap.leaf:
                product = square = gradient.sum(dtype=wide)
            else:
                product = (away * gradient).sum(dtype=wide)
                square = gradient.square().sum(dtype=wide)
                vector = gradient.mean(tap.dims, dtype=wide) if tap.dims else gradient.to(wide)
                heard.vector = _plus(heard.vector, vector.reshape(-1))
                sums = [known.sum(dtype=wide), known.square().sum(dtype=wide)]
                count = sums[0].new_full((), float(known.numel()))
                heard.moments = _plus(heard.moments, torch.stack([count, *sums]))
            heard.products = _plus(heard.products, torch.stack([product, square]))

        value.register_hook(came)  # type: ignore[no-untyped-call]
        return value


def _plus(total: torch.Tensor | None, more: torch.Tensor) -> torch.Tensor:
    return more if total is None else total + more


_listening: list[Collector] = []


def tap(index: int, value: Any, entry: Any) -> Any:
    """A node of tapped graphs."""
    if not _listening or not torch.is_grad_enabled():
        return value
    return _listening[-1].see(index, value, entry)


@contextmanager
def listening(collector: Collector) -> Iterator[None]:
    """Taps tell this collector inside."""
    _listening.append(collector)
    try:
        yield
    finally:
        _listening.remove(collector)


def tapped(model: Model, taps: Sequence[Tap]) -> Callable[..., Any]:
    """A function (model, *args, **kwargs) that computes what the model does, with taps.

    Holds for the present graph and mode.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(model.graph, copies)
    graph.output(result)
    graph.set_codegen(model.graph._codegen)
    named = {node.name: copied for node, copied in copies.items()}
    originals: Mapping[str, fx.Node] = dict(named)
    for index, wanted in enumerate(taps):
        node = named[wanted.node]
        entry = None if wanted.entry is None else originals[wanted.entry]
        users = list(node.users)
        with graph.inserting_after(node):
            made = graph.call_function(tap, (index, originals[wanted.node], entry))
        for user in users:
            user.replace_input_with(node, made)
    return type(fx.GraphModule(model, graph)).forward
