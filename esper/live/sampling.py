"""Figures of one sampled step, as matrices (figures, parts) with NaN for what was not seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from esper.live.signal import Signal

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.live.parts import Parts
    from esper.live.taps import Collector
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
    both = torch.where(again, dmask, 0.0)
    columns = [dmask, dmask.square(), square, both * last, both.square(), last.square()]
    totals = dmask.new_zeros(len(columns), len(reader.segments))
    totals.index_add_(1, reader.owner, torch.stack(columns))
    figures = _unseen(len(reader.segments), dmask.device)
    figures[[_DMASK, _SQUARE, _GRADIENT]] = totals[:3]
    figures[_ALIGNMENT] = totals[3] / (totals[4] * totals[5]).sqrt()
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
    """Phages and slots from what the taps heard; `vectors` holds the last gradients by node.

    `unscale` undoes the scale of the loss.
    """
    unseen = torch.full((5,), torch.nan, dtype=torch.float64, device=device)
    sums: list[torch.Tensor] = []
    cosines = torch.full((len(collector.taps) + 1,), torch.nan, dtype=torch.float64)
    for index, (tap, heard) in enumerate(zip(collector.taps, collector.heard, strict=True)):
        if heard.products is None:
            sums.append(unseen)
        elif heard.moments is None:
            sums.append(torch.cat([heard.products.to(unseen), unseen[2:]]))
        else:
            sums.append(torch.cat([heard.products.to(unseen), heard.moments.to(unseen)]))
        if heard.vector is not None:
            before, vectors[tap.node] = vectors.get(tap.node), heard.vector
            if before is not None and before.shape == heard.vector.shape:
                cosines[index] = torch.cosine_similarity(before, heard.vector, 0, eps=0.0)
    table = torch.stack([*sums, unseen], 1)  # (sums, taps), the last tap is none
    last = len(collector.taps)
    value = torch.tensor([found.value.get(name, last) for name in names], device=device)
    alpha = torch.tensor([found.alpha.get(name, last) for name in names], device=device)
    figures = _unseen(len(names), device)
    if names:
        product, square, count, total, squares = table[:, value]
        figures[_DMASK] = product * unscale
        figures[_SQUARE] = figures[_DMASK].square()
        figures[_GRADIENT] = square * unscale**2
        figures[_MEAN], figures[_SECOND] = total / count, squares / count
        figures[_ALIGNMENT] = cosines.to(device)[value]
        figures[_DALPHA] = table[0, alpha] * unscale
        has_alpha = alpha < last
        figures[_SIGN] = torch.where(has_alpha, figures[_DALPHA], figures[_DMASK]).sign()
    return figures


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
        products = [
            (w.detach() * w.grad).sum(dtype=torch.float64).to(device) * factors.get(id(w), 1.0)
            for w in weights
            if w.grad is not None
        ]
        if weights and len(products) == len(weights):
            figures[_DMASK, index] = torch.stack(products).sum()
    figures[_SQUARE] = figures[_DMASK].square()
    figures[_SIGN] = figures[_DMASK].sign()
    return figures


def signal(name: str, means: list[float], counts: list[float], exact: bool) -> Signal:
    """A signal from a column of running means."""
    known = [value if value == value else None for value in means]
    dmask, square, gradient, mean, second, alignment, dalpha, sign = known
    deviation = None
    if mean is not None and second is not None:
        deviation = max(second - mean**2, 0.0) ** 0.5
    kind = name.partition(":")[0]
    return Signal(
        id=name,
        kind="axis" if kind == "axis" else "slot" if kind == "slot" else "phage",
        samples=int(max(counts[_DMASK], counts[_GRADIENT])),
        dmask=dmask,
        saliency=_root(square),
        exact=exact and dmask is not None,
        dalpha=dalpha,
        gradient=_root(gradient),
        mean=mean,
        deviation=deviation,
        alignment=alignment,
        sign_variance=None if sign is None else 1 - sign**2,
    )


def _root(square: float | None) -> float | None:
    return None if square is None else math.sqrt(square)


def _unseen(count: int, device: torch.device) -> torch.Tensor:
    return torch.full((len(FIGURES), count), torch.nan, dtype=torch.float64, device=device)
