"""Statistics over the elements that stay, for norms whose units are masked.

A norm that counted masked elements as zeros would divide by too many. Graphs that hold these
functions (references of cuts, models in which something sleeps) name them by `FUNCTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

aten = torch.ops.aten


def layer_norm(
    mask: torch.Tensor,
    x: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    _cudnn: bool = False,
) -> torch.Tensor:
    """Layer norm over the elements where `mask` holds."""
    dims = list(range(-len(shape), 0))
    count = mask.expand(x.shape).sum(dims, keepdim=True)
    mean = torch.where(mask, x, 0.0).sum(dims, keepdim=True) / count
    centred = torch.where(mask, x - mean, 0.0)
    y = centred * torch.rsqrt(centred.square().sum(dims, keepdim=True) / count + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def rms_norm(
    mask: torch.Tensor,
    x: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> torch.Tensor:
    """RMS norm over the elements where `mask` holds."""
    dims = list(range(-len(shape), 0))
    kept = torch.where(mask, x, 0.0)
    count = mask.expand(x.shape).sum(dims, keepdim=True)
    floor = torch.finfo(x.dtype).eps if eps is None else eps
    y = kept * torch.rsqrt(kept.square().sum(dims, keepdim=True) / count + floor)
    return y if weight is None else y * weight


def group_norm(
    mask: torch.Tensor,
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    _cudnn: bool = False,
) -> torch.Tensor:
    """Group norm over the channels where `mask` holds."""
    grouped = x.reshape(x.shape[0], groups, -1)
    kept = mask.expand(x.shape).reshape(grouped.shape)
    count = kept.sum(-1, keepdim=True).clamp_min(1)  # whole groups may be masked
    mean = torch.where(kept, grouped, 0.0).sum(-1, keepdim=True) / count
    centred = torch.where(kept, grouped - mean, 0.0)
    scale = torch.rsqrt(centred.square().sum(-1, keepdim=True) / count + eps)
    y = (centred * scale).reshape(x.shape)
    channels = [1, -1] + [1] * (x.ndim - 2)
    y = y if weight is None else y * weight.reshape(channels)
    return y if bias is None else y + bias.reshape(channels)


def var_mean(
    mask: torch.Tensor,
    x: torch.Tensor,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Variance and mean over the elements where `mask` holds, as in `torch.var_mean`."""
    dims = list(range(x.ndim)) if dim is None else list(dim)
    count = mask.expand(x.shape).sum(dims, keepdim=True)
    mean = torch.where(mask, x, 0.0).sum(dims, keepdim=True) / count
    squares = torch.where(mask, x - mean, 0.0).square().sum(dims, keepdim=True)
    variance = squares / (count - (1 if correction is None else correction))
    if not keepdim:
        variance, mean = variance.squeeze(dims), mean.squeeze(dims)
    return variance, mean


def var(mask: torch.Tensor, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """The first of `var_mean`."""
    return var_mean(mask, x, *args, **kwargs)[0]


def std_mean(
    mask: torch.Tensor, x: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `var_mean`, with the root of the variance."""
    variance, mean = var_mean(mask, x, *args, **kwargs)
    return variance.sqrt(), mean


def std(mask: torch.Tensor, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """The first of `std_mean`."""
    return std_mean(mask, x, *args, **kwargs)[0]


#: By what they stand for: kind of use for norms, op for moments.
NORMS: dict[str, Callable[..., Any]] = {
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
}
MOMENTS: dict[Any, Callable[..., Any]] = {
    aten.var.correction: var,
    aten.std.correction: std,
    aten.var_mean.correction: var_mean,
    aten.std_mean.correction: std_mean,
}
#: The names that they bear in files and checkpoints.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"kept.{function.__name__}": function for function in (*NORMS.values(), *MOMENTS.values())
}
