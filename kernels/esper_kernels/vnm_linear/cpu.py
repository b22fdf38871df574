"""The op on a CPU: inputs are gathered for many groups of rows at once and multiplied together.

Three forms of the same product, chosen by measurement (README.md):
- *packed*: one call of oneDNN for all groups, on a weight laid out for it. What does not train.
- *by samples*: gathered (M, kept) times W_g^T. float32 and float64, and many samples.
- *by outputs*: W_g times gathered^T. The weight is the first operand, which the tiles of two-byte
  types read as it lies, without a copy.
Sums are in the dtype that MKL and oneDNN use for x: float32 for two-byte types. Where a processor
has no products of such a type, x and weight become float32 first. A weight of integers becomes
floating piece by piece.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from esper_kernels import at_once, grouped
from esper_kernels.gathering import (
    gather_columns,
    gather_rows,
    gather_runs,
    pieces,
    samples_at_once,
    whole_runs,
)
from esper_kernels.pages import MAPPED, new_output
from esper_kernels.precision import product_type

_MANY = 128  # samples from which two-byte types are multiplied by samples
_WRITTEN = 4  # a product that is written twice should lie in a cache: a quarter of what is gathered
_SECTOR = 16  # bytes in a run below which gathering from rows copies single numbers


def _groups_of(values: Tensor, rows: int) -> Tensor:
    """Whole groups of W as (groups, rows, kept), a view."""
    return values[: len(values) // rows * rows].view(-1, rows, values.shape[1])


def forward(
    x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, rows: int, run: int
) -> Tensor:
    """(M, K) to (M, N), see `reference.forward`."""
    dtype = x.dtype
    packed = len(values) >= rows and grouped.packs(values, dtype)
    if packed or len(x) > 1:  # with one sample, reading a wider copy of the weight takes longer
        x = x.to(product_type(dtype))
    x, size = whole_runs(x, run), x.element_size()
    bias = None if bias is None else bias.to(x.dtype)
    if packed:
        return _packed(x, values, index, bias, rows, run).to(dtype)
    by_outputs = size == 2 and (len(x) < _MANY or run * size < _SECTOR)
    out = (_by_outputs if by_outputs else _by_samples)(x, values, index, rows, run)
    return (out if bias is None else out.add_(bias)).to(dtype)


def _packed(
    x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, rows: int, run: int
) -> Tensor:
    outputs, kept = values.shape
    full = outputs // rows
    whole = full * rows
    most, size = at_once.gathered(), x.element_size()
    gathered = full * kept * size
    if whole == outputs and len(x) * gathered <= most and len(x) * outputs * size < MAPPED:
        return grouped.multiply(gather_runs(x, index, run), values, full, rows, bias)
    out = new_output(x, len(x), outputs)
    many = samples_at_once(len(x), max(gathered, _WRITTEN * whole * size), most)
    inner = None if bias is None else bias[:whole]
    for part in many:
        inputs = gather_runs(x[part], index[:full], run)
        out[part, :whole] = grouped.multiply(inputs, values, full, rows, inner)
    if whole < outputs:  # a last group with fewer rows
        last = gather_runs(x, index[full:], run)
        tail = None if bias is None else bias[whole:]
        out[:, whole:] = functional.linear(last, values[whole:].to(x.dtype), tail)
    return out


def _by_samples(x: Tensor, values: Tensor, index: Tensor, rows: int, run: int) -> Tensor:
    samples, (outputs, kept), dtype = len(x), values.shape, x.dtype
    weight = _groups_of(values, rows).transpose(1, 2)
    full = len(weight)
    parts = list(pieces(full, samples * kept * x.element_size()))
    if len(parts) == 1 and full * rows == outputs:
        product = torch.bmm(gather_rows(x, index, run), weight.to(dtype))
        return product.transpose(0, 1).contiguous().view(samples, outputs)
    out = new_output(x, samples, outputs)
    for part in parts:
        product = torch.bmm(gather_rows(x, index[part], run), weight[part].to(dtype))
        onto = out[:, part.start * rows : part.stop * rows].view(samples, -1, rows)
        onto.copy_(product.transpose(0, 1))
    if full * rows < outputs:  # a last group with fewer rows
        last = values[full * rows :].to(dtype).t()
        torch.mm(gather_rows(x, index[full:], run)[0], last, out=out[:, full * rows :])
    return out


def _by_outputs(x: Tensor, values: Tensor, index: Tensor, rows: int, run: int) -> Tensor:
    samples, (outputs, kept), dtype = len(x), values.shape, x.dtype
    weight, xt = _groups_of(values, rows), x.t().contiguous()
    full = len(weight)
    parts = list(pieces(full, samples * kept * x.element_size()))
    if len(parts) == 1 and full * rows == outputs:
        product = torch.bmm(weight.to(dtype), gather_columns(xt, index, run))
        return product.view(outputs, samples).t().contiguous()
    turned = x.new_empty(outputs, samples)
    onto = turned[: full * rows].view(full, rows, samples)
    for part in parts:
        gathered = gather_columns(xt, index[part], run)
        torch.bmm(weight[part].to(dtype), gathered, out=onto[part])
    if full * rows < outputs:
        last = values[full * rows :].to(dtype)
        torch.mm(last, gather_columns(xt, index[full:], run)[0], out=turned[full * rows :])
    return turned.t().contiguous()


def backward_x(
    grad: Tensor, values: Tensor, index: Tensor, rows: int, run: int, inputs: int
) -> Tensor:
    """(M, N) to (M, inputs), see `reference.backward_x`.

    Groups add to what they read one after another, so the order of sums is fixed; they are added in
    at least float32.
    """
    dtype, grad = grad.dtype, grad.to(product_type(grad.dtype))
    runs, wide = -(-inputs // run), torch.promote_types(dtype, torch.float32)
    total = grad.new_zeros(runs, run * len(grad), dtype=wide)
    groups = zip(torch.split(grad, rows, 1), torch.split(values, rows), index, strict=True)
    for part, own, kept in groups:
        product = torch.mm(own.to(grad.dtype).t(), part.t())
        total.index_add_(0, kept, product.view(len(kept), -1).to(wide))
    return total.view(runs * run, -1)[:inputs].t().to(dtype).contiguous()


def backward_values(grad: Tensor, x: Tensor, index: Tensor, rows: int, run: int) -> Tensor:
    """(M, N), (M, K) to (N, kept * run), see `reference.backward_values`."""
    dtype, wide = grad.dtype, product_type(grad.dtype)
    grad, x = grad.to(wide), whole_runs(x.to(wide), run)
    out = grad.new_empty(grad.shape[1], index.shape[1] * run)
    groups = zip(torch.split(grad, rows, 1), torch.split(out, rows), index, strict=True)
    for part, own, kept in groups:
        torch.mm(part.t(), gather_rows(x, kept[None], run)[0], out=own)
    return out.to(dtype)
