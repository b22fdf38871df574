"""The op on a CPU: inputs are gathered for some groups of rows at once, then multiplied as a batch.

Two forms of the same product, chosen by measurement (README.md):
- *by samples*: out = gathered (M, kept) times W_g^T. float32 and float64, and many samples.
- *by outputs*: out^T = W_g times gathered^T. The weight is the first operand, which the tiles of
  two-byte types read as it lies, without a copy.
Sums are in the dtype that MKL and oneDNN use for x: float32 for two-byte types. A weight of
integers becomes floating piece by piece.
"""

from __future__ import annotations

import torch
from torch import Tensor

from esper_kernels.gathering import PIECE, gather_columns, gather_rows, pieces, whole_runs
from esper_kernels.prepacked import Prepacked, keeps

_FEW = 8  # samples below which the transposed weight is read where it lies
_MANY = 128  # samples from which two-byte types are multiplied by samples
_TWO_BYTE_PIECE = 8 << 20  # bytes gathered at once where calls cost more than caches save
_SECTOR = 16  # bytes in a run below which gathering from rows copies single numbers


def _turn(values: Tensor, rows: int) -> Tensor:
    """Whole groups of W as (groups, kept, rows), contiguous."""
    return values.view(-1, rows, values.shape[1]).transpose(1, 2).contiguous()


_turned = Prepacked(lambda values, full, rows: _turn(values[: full * rows].detach(), rows))


def _by_outputs(x: Tensor, run: int) -> bool:
    return x.element_size() == 2 and (len(x) < _MANY or run * x.element_size() < _SECTOR)


def forward(
    x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, rows: int, run: int
) -> Tensor:
    """(M, K) to (M, N), see `reference.forward`."""
    x = whole_runs(x, run)
    multiply = _outputs if _by_outputs(x, run) else _samples
    out = multiply(x, values, index, rows, run)
    return out if bias is None else out.add_(bias)


def _samples(x: Tensor, values: Tensor, index: Tensor, rows: int, run: int) -> Tensor:
    samples, outputs, full = len(x), len(values), len(values) // rows
    out = x.new_empty(samples, outputs)
    if len(x) >= _FEW and full and values.dtype == x.dtype and keeps(values):
        weight = _turned(values, full, rows)
    else:
        weight = values[: full * rows].view(full, rows, values.shape[1]).transpose(1, 2)
    size = samples * values.shape[1] * x.element_size()
    for piece in pieces(full, size, PIECE if x.element_size() > 2 else _TWO_BYTE_PIECE):
        gathered = gather_rows(x, index[piece], run)
        onto = out[:, piece.start * rows : piece.stop * rows]
        if len(gathered) == 1:
            torch.mm(gathered[0], weight[piece.start].to(x.dtype), out=onto)
        else:
            product = torch.bmm(gathered, weight[piece].to(x.dtype))
            onto.view(samples, -1, rows).copy_(product.transpose(0, 1))
    if full * rows < outputs:  # a last group with fewer rows
        gathered = gather_rows(x, index[full:], run)[0]
        torch.mm(gathered, values[full * rows :].to(x.dtype).t(), out=out[:, full * rows :])
    return out


def _outputs(x: Tensor, values: Tensor, index: Tensor, rows: int, run: int) -> Tensor:
    samples, outputs, full = len(x), len(values), len(values) // rows
    turned, xt = x.new_empty(outputs, samples), x.t().contiguous()
    weight = values[: full * rows].view(full, rows, values.shape[1])
    onto = turned[: full * rows].view(full, rows, samples)
    for piece in pieces(full, samples * values.shape[1] * x.element_size()):
        gathered = gather_columns(xt, index[piece], run)
        torch.bmm(weight[piece].to(x.dtype), gathered, out=onto[piece])
    if full * rows < outputs:
        gathered = gather_columns(xt, index[full:], run)[0]
        torch.mm(values[full * rows :].to(x.dtype), gathered, out=turned[full * rows :])
    return turned.t().contiguous()


def backward_x(
    grad: Tensor, values: Tensor, index: Tensor, rows: int, run: int, inputs: int
) -> Tensor:
    """(M, N) to (M, inputs), see `reference.backward_x`.

    Groups add to what they read one after another, so the order of sums is fixed; they are added in
    at least float32.
    """
    runs, wide = -(-inputs // run), torch.promote_types(grad.dtype, torch.float32)
    total = grad.new_zeros(runs, run * len(grad), dtype=wide)
    groups = zip(torch.split(grad, rows, 1), torch.split(values, rows), index, strict=True)
    for part, own, kept in groups:
        product = torch.mm(own.to(grad.dtype).t(), part.t())
        total.index_add_(0, kept, product.view(len(kept), -1).to(wide))
    return total.view(runs * run, -1)[:inputs].t().to(grad.dtype).contiguous()


def backward_values(grad: Tensor, x: Tensor, index: Tensor, rows: int, run: int) -> Tensor:
    """(M, N), (M, K) to (N, kept * run), see `reference.backward_values`."""
    x = whole_runs(x, run)
    out = grad.new_empty(grad.shape[1], index.shape[1] * run)
    groups = zip(torch.split(grad, rows, 1), torch.split(out, rows), index, strict=True)
    for part, own, kept in groups:
        torch.mm(part.t(), gather_rows(x, kept[None], run)[0], out=own)
    return out
