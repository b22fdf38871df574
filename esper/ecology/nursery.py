"""The built-in blueprints. None draws random numbers when it runs, and none depends on the mode."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.ecology.blueprints import Blueprint, Build, Layout, UnfitError, Value
from esper.ir.marker import Slot


def _zero(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """A last layer: it gives zeros until it has learned."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _norm(value: Value) -> nn.Module:
    """Over the channels of each item, so that batch and mode play no part."""
    return nn.GroupNorm(1, value.width) if value.layout == "image" else nn.LayerNorm(value.width)


def _mix(value: Value, inside: int, outside: int, bias: bool = True) -> nn.Linear | nn.Conv2d:
    """Mixes channels in one place: a linear layer, or a 1x1 convolution."""
    if value.layout == "image":
        return nn.Conv2d(inside, outside, 1, bias=bias)
    return nn.Linear(inside, outside, bias=bias)


def _hidden(value: Value, ratio: float) -> int:
    if ratio <= 0:
        raise UnfitError(f"its ratio must be positive, not {ratio}")
    return max(1, round(value.width * ratio))


# -- any layout ----------------------------------------------------------------------------------


class NoOp(nn.Module):
    """Contributes nothing, ever: what planting itself costs and does."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(x)


def no_op(value: Value) -> nn.Module:
    """Nothing: the control of every experiment with seeds."""
    return NoOp()


class Norm(nn.Module):
    """Normalised values, times a scale that starts at zero."""

    def __init__(self, value: Value) -> None:
        super().__init__()
        self.norm = _norm(value)
        nn.init.zeros_(self.norm.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """The contribution."""
        normalised: Tensor = self.norm(x)
        return normalised


def norm(value: Value) -> nn.Module:
    """Normalisation over channels whose scale starts at zero."""
    return Norm(value)


def low_rank(value: Value, *, rank: int = 4) -> nn.Module:
    """Low-rank adapter: down to `rank` and up again, without bias (LoRA, arXiv:2106.09685)."""
    if not 1 <= rank <= value.width:
        raise UnfitError(f"its rank must lie between 1 and {value.width}, not {rank}")
    down = _mix(value, value.width, rank, bias=False)
    up = _zero(_mix(value, rank, value.width, bias=False))
    return _named(down=down, up=up)


def _named(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _mlp(value: Value, ratio: float) -> nn.Module:
    hidden = _hidden(value, ratio)
    return _named(
        norm=_norm(value),
        up=_mix(value, value.width, hidden),
        act=nn.GELU(),
        down=_zero(_mix(value, hidden, value.width)),
    )


def mlp_small(value: Value, *, ratio: float = 0.5) -> nn.Module:
    """Residual perceptron with half as many hidden units as channels."""
    return _mlp(value, ratio)


def mlp_4x(value: Value, *, ratio: float = 4.0) -> nn.Module:
    """Residual perceptron with four times as many hidden units as channels, as in transformers."""
    return _mlp(value, ratio)


class Gated(nn.Module):
    """`down(up(x) * sigmoid(gate(x)))` of a normalised value."""

    def __init__(self, value: Value, ratio: float) -> None:
        super().__init__()
        hidden = _hidden(value, ratio)
        self.norm = _norm(value)
        self.up = _mix(value, value.width, hidden)
        self.gate = _mix(value, value.width, hidden)
        self.down = _zero(_mix(value, hidden, value.width))

    def forward(self, x: Tensor) -> Tensor:
        """The contribution."""
        x = self.norm(x)
        out: Tensor = self.down(self.up(x) * torch.sigmoid(self.gate(x)))
        return out


def gated_branch(value: Value, *, ratio: float = 1.0) -> nn.Module:
    """Branch whose hidden units are gated by the value itself (GLU, arXiv:1612.08083)."""
    return Gated(value, ratio)


def container(value: Value, *, ratio: float = 1.0) -> nn.Module:
    """Frame with a slot inside, `slot:<seed>.inside`, where more can be planted."""
    hidden = _hidden(value, ratio)
    return _named(
        norm=_norm(value),
        up=_mix(value, value.width, hidden),
        act=nn.GELU(),
        inside=Slot(),
        down=_zero(_mix(value, hidden, value.width)),
    )


# -- images --------------------------------------------------------------------------------------


class SqueezeExcite(nn.Module):
    """`x * tanh(z)` with z from the mean over positions: each channel is scaled by 0 to 2.

    Squeeze-and-excitation (arXiv:1709.01507) whose scale starts at one.
    """

    def __init__(self, value: Value, ratio: float) -> None:
        super().__init__()
        hidden = _hidden(value, ratio)
        self.squeeze = nn.Conv2d(value.width, hidden, 1)
        self.excite = _zero(nn.Conv2d(hidden, value.width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The contribution."""
        z = functional.adaptive_avg_pool2d(x, 1)
        return x * torch.tanh(self.excite(functional.relu(self.squeeze(z))))


def squeeze_excite(value: Value, *, ratio: float = 0.25) -> nn.Module:
    """Scales each channel by what all positions say (arXiv:1709.01507)."""
    return SqueezeExcite(value, ratio)


def _odd(kernel: int) -> int:
    if kernel < 1 or kernel % 2 == 0:
        raise UnfitError(f"its kernel must be odd, not {kernel}")
    return kernel


class CausalDepthwise(nn.Module):
    """Depthwise convolution over tokens that sees the present and earlier ones only."""

    def __init__(self, value: Value, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.norm = _norm(value)
        self.depthwise = nn.Conv1d(value.width, value.width, kernel, groups=value.width)
        self.pointwise = _zero(nn.Linear(value.width, value.width))

    def forward(self, x: Tensor) -> Tensor:
        """The contribution."""
        x = functional.pad(self.norm(x).transpose(1, 2), (self.kernel - 1, 0))
        out: Tensor = self.pointwise(functional.gelu(self.depthwise(x)).transpose(1, 2))
        return out


def depthwise(value: Value, *, kernel: int = 3) -> nn.Module:
    """Depthwise convolution, then a mix of channels; causal over tokens."""
    if value.layout == "tokens":
        return CausalDepthwise(value, _odd(kernel))
    width = value.width
    return _named(
        norm=_norm(value),
        depthwise=nn.Conv2d(width, width, _odd(kernel), padding=kernel // 2, groups=width),
        act=nn.GELU(),
        pointwise=_zero(nn.Conv2d(width, width, 1)),
    )


def conv_light(value: Value, *, kernel: int = 3) -> nn.Module:
    """One convolution."""
    width = value.width
    return _named(conv=_zero(nn.Conv2d(width, width, _odd(kernel), padding=kernel // 2)))


def conv_medium(value: Value, *, kernel: int = 3) -> nn.Module:
    """Norm, convolution, ReLU, convolution: a pre-activation residual block."""
    width, around = value.width, _odd(kernel) // 2
    return _named(
        norm=_norm(value),
        conv1=nn.Conv2d(width, width, kernel, padding=around),
        act=nn.ReLU(),
        conv2=_zero(nn.Conv2d(width, width, kernel, padding=around)),
    )


def conv_heavy(value: Value, *, kernel: int = 3, ratio: float = 2.0) -> nn.Module:
    """Three convolutions with `ratio` times as many channels between them."""
    width, around = value.width, _odd(kernel) // 2
    hidden = _hidden(value, ratio)
    return _named(
        norm=_norm(value),
        conv1=nn.Conv2d(width, hidden, kernel, padding=around),
        act1=nn.ReLU(),
        conv2=nn.Conv2d(hidden, hidden, kernel, padding=around),
        act2=nn.ReLU(),
        conv3=_zero(nn.Conv2d(hidden, width, kernel, padding=around)),
    )


def bottleneck(value: Value, *, kernel: int = 3, ratio: float = 0.25) -> nn.Module:
    """Narrow, convolve, widen (ResNet, arXiv:1512.03385)."""
    width, hidden = value.width, _hidden(value, ratio)
    return _named(
        norm=_norm(value),
        narrow=nn.Conv2d(width, hidden, 1),
        act1=nn.ReLU(),
        conv=nn.Conv2d(hidden, hidden, _odd(kernel), padding=kernel // 2),
        act2=nn.ReLU(),
        widen=_zero(nn.Conv2d(hidden, width, 1)),
    )


# -- tokens --------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Self-attention over a normalised value."""

    def __init__(self, value: Value, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm = _norm(value)
        self.query = nn.Linear(value.width, value.width)
        self.key = nn.Linear(value.width, value.width)
        self.value = nn.Linear(value.width, value.width)
        self.out = _zero(nn.Linear(value.width, value.width))

    def forward(self, x: Tensor) -> Tensor:
        """The contribution."""
        x = self.norm(x)
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


def attention(value: Value, *, heads: int = 2, causal: bool = True) -> nn.Module:
    """Self-attention with a few heads; causal unless told otherwise."""
    if heads < 1 or value.width % heads:
        raise UnfitError(f"{heads} heads do not divide {value.width} channels")
    return Attention(value, heads, causal)


_EVERY: tuple[Layout, ...] = ("vectors", "tokens", "image")
_TABLE: tuple[tuple[str, Build, tuple[Layout, ...]], ...] = (
    ("no-op", no_op, _EVERY),
    ("norm", norm, _EVERY),
    ("low-rank", low_rank, _EVERY),
    ("mlp-small", mlp_small, _EVERY),
    ("mlp-4x", mlp_4x, _EVERY),
    ("gated-branch", gated_branch, _EVERY),
    ("container", container, _EVERY),
    ("depthwise", depthwise, ("tokens", "image")),
    ("squeeze-excite", squeeze_excite, ("image",)),
    ("conv-light", conv_light, ("image",)),
    ("conv-medium", conv_medium, ("image",)),
    ("conv-heavy", conv_heavy, ("image",)),
    ("bottleneck", bottleneck, ("image",)),
    ("attention", attention, ("tokens",)),
)
BUILT_IN: tuple[Blueprint, ...] = tuple(
    Blueprint(name, build, layouts, (build.__doc__ or "").splitlines()[0])
    for name, build, layouts in _TABLE
)
