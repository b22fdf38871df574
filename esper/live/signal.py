"""What one boundary signal says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

SignalKind = Literal["axis", "phage", "slot"]


@dataclass(frozen=True)
class Signal:
    """Running means over sampled steps for one part; None where nothing is known.

    `m` is a mask on the part: 1 with it, 0 without. The loss changes by `-dmask` without the part,
    to first order.

    Attributes:
        id: of the part.
        kind: axis, phage or slot.
        samples: sampled steps behind `dmask` (or `gradient`, where there is no `dmask`).
        dmask: dL/dm. For an axis the sum over its units. For a phage that may be bypassed m mixes
            what leaves (1) with what enters (0), for all others and for slots it scales the value.
        saliency: root of the mean of (dL/dm)^2, for an axis summed over units (first-order Taylor
            saliency, Molchanov et al., arXiv:1906.10771).
        exact: whether `dmask` is the derivative, or an estimate of it (see `unit_places`).
        dalpha: dL/d(alpha) of the seed in a slot.
        gradient: norm of the loss's gradient at the part: at the value for phages and slots, at the
            weights that consume the units for axes.
        mean, deviation: moments of the value.
        alignment: cosine between gradients of consecutive samples, averaged over batch and
            positions; for an axis between the vectors of its units' dL/dm.
        sign_variance: variance of the sign of `dalpha` (of `dmask` where there is no alpha): 0
            where it always points one way, 1 where it is undecided.
    """

    id: str
    kind: SignalKind
    samples: int = 0
    dmask: float | None = None
    saliency: float | None = None
    exact: bool = False
    dalpha: float | None = None
    gradient: float | None = None
    mean: float | None = None
    deviation: float | None = None
    alignment: float | None = None
    sign_variance: float | None = None


@dataclass(frozen=True)
class UnitSignals:
    """Signals of an axis's units, each a float64 tensor of shape (units,) on the CPU.

    Attributes:
        unit_ids: birth numbers, in the order of the tensors.
        dmask: mean of dL/dm of each unit; NaN before its first sample.
        saliency: root of the mean of (dL/dm)^2.
        gradient: root mean square of the gradient's norm at the weights that consume the unit.
        quiet: consecutive samples, up to now, in which that gradient was exactly zero: nothing came
            out of the unit, or nothing listened.
        exact: whether `dmask` is the derivative.
    """

    unit_ids: tuple[int, ...]
    dmask: torch.Tensor
    saliency: torch.Tensor
    gradient: torch.Tensor
    quiet: torch.Tensor
    exact: bool
