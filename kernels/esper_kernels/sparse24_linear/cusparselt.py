"""Prefill with 2:4 weights: NVIDIA's cuSPARSELt, as PyTorch carries it.

With many tokens the product is bound by arithmetic, and the library's kernels are what there is for
Hopper's sparse wgmma. It keeps weights in a form of its own, which is made at the first such
product of a weight and kept beside the packed one: another 9/16 of the dense weight's memory. Which
of its algorithms is fastest is searched once for each shape, as `alg_id` moves times a good deal
(pytorch#115178).
"""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from esper_kernels.sparse24 import unpack

WEIGHT_MULTIPLE = 16  # of outputs and of inputs, for 16 bits
TOKEN_MULTIPLE = 8

_compressed: MutableMapping[Tensor, tuple[tuple[int, ...], Tensor]] = WeakTensorKeyDictionary()
_algorithms: dict[tuple[int, int, int, torch.dtype, torch.device], int] = {}


def fits(x: Tensor, inputs: int, outputs: int) -> bool:
    """Whether the library is there and takes weights of these sizes."""
    return (
        x.is_cuda
        and torch.backends.cusparselt.is_available()
        and inputs % WEIGHT_MULTIPLE == 0
        and outputs % WEIGHT_MULTIPLE == 0
    )


def forward(
    x: Tensor, values: Tensor, metadata: Tensor, bias: Tensor | None, inputs: int, outputs: int
) -> Tensor:
    """(M, inputs) to (M, outputs), see `reference.forward`.

    Only the left factor may be sparse, so this is (W x^T)^T, and the library transposes as it
    stores.
    """
    tokens = len(x)
    x = functional.pad(x, (0, 0, 0, -tokens % TOKEN_MULTIPLE))
    weight = _library_form(values, metadata, inputs, outputs)
    key = (len(x), outputs, inputs, x.dtype, x.device)
    if key not in _algorithms:
        _algorithms[key] = torch._cslt_sparse_mm_search(
            weight, x.t(), bias=bias, transpose_result=True
        )
    out = torch._cslt_sparse_mm(
        weight, x.t(), bias=bias, transpose_result=True, alg_id=_algorithms[key]
    )
    return out[:tokens]


def _library_form(values: Tensor, metadata: Tensor, inputs: int, outputs: int) -> Tensor:
    """The weight as the library wants it; made anew where `values` or `metadata` changed since."""
    if values.is_inference() or metadata.is_inference():  # of which nobody counts the changes
        return torch._cslt_compress(unpack(values, metadata, outputs, inputs))
    key = (values._version, values.data_ptr(), metadata._version, metadata.data_ptr())
    known = _compressed.get(values)
    if known is None or known[0] != key:
        known = (key, torch._cslt_compress(unpack(values, metadata, outputs, inputs)))
        _compressed[values] = known
    return known[1]
