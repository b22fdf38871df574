"""The op on a CPU: products of integers, for all groups at once where oneDNN has that.

What is left there goes group by group. The weight is the first operand, so that it is read as it
lies; with many samples, the second. Processors without such products multiply the integers as
floating numbers that are wide enough for their sums to be exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from esper_kernels import at_once, grouped_int8
from esper_kernels.gathering import (
    gather_columns,
    gather_rows,
    gather_runs,
    samples_at_once,
    whole_runs,
)
from esper_kernels.int8 import quantize
from esper_kernels.pages import new_output
from esper_kernels.vnm_linear import cpu as floating

_MANY = 128  # samples from which turning inputs and outputs costs more
_EXACT = (1 << 24) // (127 * 127)  # products of which float32 holds every sum


def forward(
    x: Tensor,
    values: Tensor,
    scale: Tensor,
    index: Tensor,
    bias: Tensor | None,
    rows: int,
    run: int,
) -> Tensor:
    """(M, K) to (M, N), see `reference.forward`."""
    x, outputs = whole_runs(x, run), len(values)
    wide = torch.promote_types(x.dtype, torch.float32)
    packed = wide == torch.float32 and grouped_int8.packs(values)
    full = outputs // rows if packed else 0
    whole = full * rows
    out = new_output(x, len(x), outputs)
    size = max(x.shape[1], outputs) * wide.itemsize + full * values.shape[1]
    for part in samples_at_once(len(x), size, at_once.rounded()):
        integers, own = quantize(x[part])
        own = own.to(wide).unsqueeze(1)
        product = out[part] if out.dtype == wide else out.new_empty(out[part].shape, dtype=wide)
        if whole < outputs:
            # `torch._int_mm` takes a matrix of one column for its transpose, and is wrong.
            exact = grouped_int8.multiplies() and values.shape[1] > 1
            multiply = _one_by_one if exact else _floating
            rest = multiply(integers, values[whole:], index[full:], rows, run)
            torch.mul(rest, own * scale[whole:], out=product[:, whole:])
        if full:  # last, since it writes over the integers
            gathered = gather_runs(grouped_int8.unsigned(integers), index[:full], run)
            inner = grouped_int8.multiply(gathered, values, scale, full, rows)
            torch.mul(inner, own, out=product[:, :whole])
        if bias is not None:
            product.add_(bias)
        if out.dtype != wide:
            out[part] = product
    return out


def _floating(integers: Tensor, values: Tensor, index: Tensor, rows: int, run: int) -> Tensor:
    """The products in float32 or float64, exact."""
    dtype = torch.float32 if values.shape[1] <= _EXACT else torch.float64
    return floating.forward(integers.to(dtype), values, index, None, rows, run)


def _one_by_one(integers: Tensor, values: Tensor, index: Tensor, rows: int, run: int) -> Tensor:
    """The products in int32, group by group."""
    samples = len(integers)
    by_samples = samples >= _MANY
    xt = integers if by_samples else integers.t().contiguous()
    out = integers.new_empty(samples, len(values), dtype=torch.int32)
    groups = zip(
        torch.split(values, rows), torch.split(out, rows, 1), torch.split(index, 1), strict=True
    )
    for weight, onto, kept in groups:
        if by_samples:
            onto.copy_(torch._int_mm(gather_rows(integers, kept, run)[0], weight.t()))
        else:
            onto.copy_(torch._int_mm(weight, gather_columns(xt, kept, run)[0]).t())
    return out
