"""The op on a CPU: rows of the weight become floating a cache full at a time.

PyTorch's own kernel, which reads integers only, is taken where it is faster: bfloat16 and few
samples (README.md). Integers up to 127 are exact in bfloat16; float16 could overflow before it is
scaled, so it is computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from esper_kernels.gathering import pieces
from esper_kernels.int8 import rescaled
from esper_kernels.pages import new_output
from esper_kernels.precision import unscaled_type

_FEW = 8  # samples below which the product is memory's: by samples, or PyTorch's kernel
_MANY = 128  # samples from which the product is by samples again
_CACHE = 2 << 20  # bytes of a piece of the weight that became floating
_VECTOR = 32  # PyTorch's kernel reads inputs in vectors, and past the end of others


def forward(x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """(M, K) to (M, N), see `reference.forward`."""
    wide = x.to(unscaled_type(x.dtype))
    few = len(x) < _FEW
    if few and x.dtype == torch.bfloat16 and x.shape[1] % _VECTOR == 0:
        product = torch._weight_int8pack_mm(x, values, x.new_ones(len(values)))
    elif few or len(x) >= _MANY:
        product = _by_samples(wide, values)
    else:
        product = _by_outputs(wide, values)
    return rescaled(product, scale, bias, x.dtype)


def _by_samples(x: Tensor, values: Tensor) -> Tensor:
    out = new_output(x, len(x), len(values))
    for piece in pieces(len(values), x.shape[1] * x.element_size(), _CACHE):
        torch.mm(x, values[piece].to(x.dtype).t(), out=out[:, piece])
    return out


def _by_outputs(x: Tensor, values: Tensor) -> Tensor:
    turned, xt = x.new_empty(len(values), len(x)), x.t().contiguous()
    for piece in pieces(len(values), x.shape[1] * x.element_size(), _CACHE):
        torch.mm(values[piece].to(x.dtype), xt, out=turned[piece])
    return turned.t().contiguous()


def backward_x(grad: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """(M, N) to (M, K), see `reference.backward_x`."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    scaled = grad.to(wide) * scale
    out = scaled.new_zeros(len(grad), values.shape[1])
    for piece in pieces(len(values), values.shape[1] * out.element_size(), _CACHE):
        out.addmm_(scaled[:, piece], values[piece].to(wide))
    return out.to(grad.dtype)
