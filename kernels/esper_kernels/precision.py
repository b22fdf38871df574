"""The type in which a CPU multiplies fastest, and what it multiplies with."""

from __future__ import annotations

from functools import cache

import torch

FLOATING = (torch.float32, torch.float16, torch.bfloat16)
_CHECKS = {
    torch.bfloat16: "_is_mkldnn_bf16_supported",
    torch.float16: "_is_mkldnn_fp16_supported",
}


@cache
def has_products(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies a floating type here; others take many times as long as float32."""
    return dtype not in _CHECKS or bool(getattr(torch.ops.mkldnn, _CHECKS[dtype], bool)())


@cache
def has_tiles() -> bool:
    """Whether the processor multiplies tiles (AMX): two-byte types and int8 many times faster."""
    return torch.cpu._is_amx_tile_supported()


def product_type(dtype: torch.dtype) -> torch.dtype:
    """A floating type, or float32 in place of one that this processor has no products of."""
    return dtype if has_products(dtype) else torch.float32


def unscaled_type(dtype: torch.dtype) -> torch.dtype:
    """The same for products that are scaled later: before that, float16 could overflow."""
    return torch.float32 if dtype == torch.float16 else product_type(dtype)
