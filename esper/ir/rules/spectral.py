"""Complex numbers and Fourier transforms (PyTorch docs, "Complex Numbers", `torch.fft`).

A pair of real numbers becomes one complex one, so the dim of the pair is frozen and the others
pass; transforms mix everything along their dims.
"""

from __future__ import annotations

from typing import Any

import torch

from esper.ir.axes import Dims, Rule, Rules
from esper.ir.rules.elementwise import pointwise, same

aten = torch.ops.aten
PAIR = "real and imaginary part"


def as_complex(r: Rules) -> Dims:
    """(..., 2) -> (...)."""
    dims = r.of(r.arg(0))
    r.freeze(dims[-1], PAIR)
    return dims[:-1]


def as_real(r: Rules) -> Dims:
    """(...) -> (..., 2)."""
    return [*r.of(r.arg(0)), r.fresh(2, PAIR)]


def along_one(r: Rules) -> Dims:
    """fft(x, n, dim) and relatives."""
    return _transformed(r, [r.arg(2, "dim", -1)])


def along_two(r: Rules) -> Dims:
    """fft2(x, s, dim=(-2, -1)) and relatives."""
    return _transformed(r, list(r.arg(2, "dim", (-2, -1))))


def along_many(r: Rules) -> Dims:
    """fftn(x, s, dim): without dims all, or the last ones that `s` names."""
    rank, sizes = len(r.of(r.arg(0))), r.arg(1, "s")
    dims = r.arg(2, "dim")
    if dims is None:
        dims = list(range(rank) if sizes is None else range(rank - len(sizes), rank))
    return _transformed(r, dims)


def shift(r: Rules) -> Dims:
    """fftshift(x, dim): positions move."""
    dims = r.of(r.arg(0))
    chosen = r.arg(1, "dim")
    return _transformed(r, list(range(len(dims))) if chosen is None else chosen)


def _transformed(r: Rules, chosen: list[int]) -> Dims:
    dims, reason = list(r.of(r.arg(0))), f"{r.node.target} mixes it"
    for dim in chosen:
        r.freeze(dims[dim], reason)
        dims[dim] = r.fresh(r.shape()[dim], reason)
    return dims


def stft(r: Rules) -> Dims:
    """x (N, L) -> (N, frequencies, frames), and a dim of 2 if not complex."""
    dims = r.of(r.arg(0))
    r.freeze(dims[-1], f"{r.node.target} mixes it")
    for operand in r.node.all_input_nodes[1:]:
        if r.dims.get(operand) is not None:
            r.freeze(r.of(operand), f"{r.node.target} mixes it")
    made = [r.fresh(s, f"{r.node.target} mixes it") for s in r.shape()[len(dims) - 1 :]]
    return [*dims[:-1], *made]


TABLE: dict[Any, Rule] = {
    aten.view_as_complex.default: as_complex,
    aten.view_as_real.default: as_real,
    aten.polar.default: pointwise,
    aten.complex.default: pointwise,
    aten._conj.default: same,
    aten.conj.default: same,
    aten.real.default: same,
    aten.imag.default: same,
    aten.resolve_conj.default: same,
    aten.resolve_neg.default: same,
    **{
        getattr(aten, f"fft_{name}").default: along_one
        for name in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")
    },
    **{
        getattr(aten, f"fft_{name}2").default: along_two
        for name in ("fft", "ifft", "rfft", "irfft")
    },
    **{
        getattr(aten, f"fft_{name}n").default: along_many
        for name in ("fft", "ifft", "rfft", "irfft")
    },
    aten.fft_fftshift.default: shift,
    aten.fft_ifftshift.default: shift,
    aten.stft.default: stft,
}
