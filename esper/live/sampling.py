"""Figures of one sampled step, as matrices (figures, parts) with NaN for what was not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from esper.live.signal import Signal

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.live.parts import Parts
    from esper.live.taps import Collector, Heard
    from esper.live.unit_places import UnitReader

FIGURES = ("dmask", "square", "gradient", "mean", "second", "alignment", "dalpha", "sign")
_DMASK, _SQUARE, _GRADIENT, _MEAN, _SECOND, _ALIGNMENT, _DALPHA, _SIGN = range(len(FIGURES))


def axes(
    reader: UnitReader,
    dmask: torch.Tensor,
    square: torch.Tensor,
    last: torch.Tensor,
    again: torch.Tensor,
) -> torch.Tensor:
    """Axes from their units.

    Args:
        reader: says which units are whose.
        dmask: dL/dm of all units.
        square: squared norms of their gradients.
        last: dL/dm at the sample before.
        again: which units had a sample before.
    """
    sizes = torch.tensor([len(units) for units in reader.segments.values()], dtype=torch.int64)
    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(dmask.device)

    def total(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(len(sizes)).index_add_(0, owner, values)

    both = torch.where(again, dmask, 0.0)
    figures = _unseen(len(sizes), dmask.device)
    figures[_DMASK] = total(dmask)
    figures[_SQUARE] = total(dmask.square())
    figures[_GRADIENT] = total(square)
    figures[_ALIGNMENT] = total(both * last) / (total(both.square()) * total(last.square())).sqrt()
    figures[_SIGN] = figures[_DMASK].sign()
    return figures


def tapped_parts(
    names: Sequence[str],
    found: Parts,
    collector: Collector,
    unscale: float,
    vectors: dict[str, torch.Tensor],
    device: torch.device,
) -> torch.Tensor:
    """Phages and slots from what the taps heard; `vectors` holds the last gradients, and gets new.

    `unscale` undoes the scale of the loss.
    """
    columns: list[torch.Tensor] = []
    for name in names:
        figures = _unseen(1, device)[:, 0]
        columns.append(figures)
        heard = _heard(collector, found.value.get(name))
        if heard is not None and heard.products is not None and heard.moments is not None:
            products, moments = heard.products.to(figures), heard.moments.to(figures)
            figures[_DMASK] = products[0] * unscale
            figures[_SQUARE] = figures[_DMASK].square()
            figures[_GRADIENT] = products[1] * unscale**2
            figures[[_MEAN, _SECOND]] = moments[1:] / moments[0]
            if heard.vector is not None:
                before, vectors[name] = vectors.get(name), heard.vector
                if before is not None and before.shape == heard.vector.shape:
                    norms = before.norm() * heard.vector.norm()
                    figures[_ALIGNMENT] = torch.dot(before, heard.vector) / norms
        alpha = _heard(collector, found.alpha.get(name))
        if alpha is not None and alpha.products is not None:
            figures[_DALPHA] = alpha.products[0].to(figures) * unscale
        towards = figures[_DMASK if name not in found.alpha else _DALPHA]
        figures[_SIGN] = towards.sign()
    return torch.stack(columns, 1) if columns else _unseen(0, device)


def weighed_parts(
    names: Sequence[str],
    found: Parts,
    model: Model,
    factors: Mapping[int, float],
    device: torch.device,
) -> torch.Tensor:
    """Phages from the weights of the layer that makes their value: all that compiled code shows."""
    figures = _unseen(len(names), device)
    for index, name in enumerate(names):
        weights = [model.get_parameter(n) for n in found.weights.get(name, ())]
        if weights and all(weight.grad is not None for weight in weights):
            products = [
                (w.detach() * w.grad).sum(dtype=torch.float64).to(device) * factors.get(id(w), 1.0)
                for w in weights
            ]
            figures[_DMASK, index] = torch.stack(products).sum()
    figures[_SQUARE] = figures[_DMASK].square()
    figures[_SIGN] = figures[_DMASK].sign()
    return figures


def signal(name: str, means: list[float], counts: list[float], exact: bool) -> Signal:
    """A signal from a column of running means."""
    known = [value if value == value else None for value in means]
    deviation = None
    if known[_MEAN] is not None and known[_SECOND] is not None:
        deviation = max(known[_SECOND] - known[_MEAN] ** 2, 0.0) ** 0.5
    kind = name.partition(":")[0]
    return Signal(
        id=name,
        kind="axis" if kind == "axis" else "slot" if kind == "slot" else "phage",
        samples=int(max(counts[_DMASK], counts[_GRADIENT])),
        dmask=known[_DMASK],
        saliency=_root(known[_SQUARE]),
        exact=exact and known[_DMASK] is not None,
        dalpha=known[_DALPHA],
        gradient=_root(known[_GRADIENT]),
        mean=known[_MEAN],
        deviation=deviation,
        alignment=known[_ALIGNMENT],
        sign_variance=None if known[_SIGN] is None else 1 - known[_SIGN] ** 2,
    )


def _root(square: float | None) -> float | None:
    return None if square is None else square**0.5


def _unseen(count: int, device: torch.device) -> torch.Tensor:
    return torch.full((len(FIGURES), count), torch.nan, dtype=torch.float64, device=device)


def _heard(collector: Collector, tap: int | None) -> Heard | None:
    return None if tap is None else collector.heard[tap]
