"""Values of new units."""

from __future__ import annotations

import torch

_MANTISSA = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def drawn(
    value: torch.Tensor, like: torch.Tensor, dim: int, generator: torch.Generator
) -> torch.Tensor:
    """Normal values with the mean and deviation that the tensor has along the other dims.

    A tensor that is constant along `dim` (the scale of a fresh norm) goes on being constant.
    """
    wide = value.float()
    if value.shape[dim] > 1 and wide.ndim == 1:
        mean, deviation = wide.mean(), wide.std()
    else:
        mean, deviation = wide.new_zeros(()), wide.square().mean().sqrt()
    noise = torch.randn(like.shape, generator=generator).to(wide)
    return (mean + deviation * noise).to(like)


def share(weights: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random share, a quarter to three quarters, of each weight, one draw for each position.

    Shares are whole multiples of the weight's last place, so that `weights - share` is exact and
    share and rest add up to the weight again, bit for bit.
    """
    bits = _MANTISSA.get(weights.dtype, 24)
    wide = weights.double()
    fraction = 0.25 + 0.5 * torch.rand(weights.shape, generator=generator, dtype=torch.float64)
    mantissa, exponent = torch.frexp(wide)
    scaled = torch.ldexp(mantissa * fraction.to(wide), torch.tensor(bits))
    return torch.ldexp(scaled.round(), exponent - bits).to(weights.dtype)
