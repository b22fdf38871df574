"""Least squares from streamed second moments, in float64.

For rows x (I) and residuals r (O) of a linear layer, the change D (O, I) of its weight and b (O)
of its bias that minimise

    sum over rows |r - D x - b|^2 + ridge * g * |D|^2,    g = mean diagonal of the Gram matrix

follow from n, sum x, sum r, X^T X and X^T R alone, and so does the error that any D and b leave.
Rows are shifted by a constant close to their mean before they are accumulated: centring
afterwards then cancels few digits. Memory does not depend on the number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Solution:
    """Change of a layer: weight (O, I) and bias (O), float64."""

    weight: Tensor
    bias: Tensor


class Moments:
    """Sums over rows of inputs and residuals.

    Args:
        shift: (I), subtracted from every input row.
        outputs: O.
        inputs: complete moments of the very same input rows, whose sums over inputs are taken
            over instead of being computed again (query, key and value read one input).
    """

    def __init__(self, shift: Tensor, outputs: int, inputs: Moments | None = None) -> None:
        size = shift.numel()
        zeros = shift.new_zeros
        self._own = inputs is None
        self.shift = shift
        self.rows: int = 0 if inputs is None else inputs.rows
        self.x: Tensor = zeros(size) if inputs is None else inputs.x
        self.gram: Tensor = zeros(size, size) if inputs is None else inputs.gram
        self.r = zeros(outputs)
        self.cross = zeros(size, outputs)
        self.squares = zeros(outputs)
        self._target = zeros(outputs)
        self._target_squares = zeros(outputs)

    def add(self, x: Tensor, r: Tensor, target: Tensor) -> None:
        """Accumulate float64 rows: inputs (n, I), residuals (n, O), and the goal (n, O)."""
        x = x - self.shift
        if self._own:
            self.rows += x.shape[0]
            self.x += x.sum(0)
            self.gram.addmm_(x.T, x)
        self.r += r.sum(0)
        self.cross.addmm_(x.T, r)
        self.squares += r.square().sum(0)
        self._target += target.sum(0)
        self._target_squares += target.square().sum(0)

    def energy(self) -> Tensor:
        """Sum of squares of the target about its mean, per output (O)."""
        centred = self._target_squares - self._target.square() / max(self.rows, 1)
        return centred.clamp_min(0)

    def finite(self) -> bool:
        """Whether every sum is a finite number."""
        return all(bool(s.isfinite().all()) for s in (self.gram, self.cross, self._target_squares))

    def error(self, solution: Solution | None) -> Tensor:
        """Sum of squares that a solution leaves (None: no change), per output (O)."""
        if solution is None:
            return self.squares
        weight = solution.weight
        bias = solution.bias + weight @ self.shift
        left = (
            self.squares
            - 2 * (weight.T * self.cross).sum(0)
            + ((weight @ self.gram) * weight).sum(1)
            - 2 * bias * (self.r - weight @ self.x)
            + self.rows * bias.square()
        )
        return left.clamp_min(0)


def solve(moments: Moments, ridge: float, *, bias: bool, start: Tensor | None = None) -> Solution:
    """The minimiser; without `bias`, b is held at zero.

    With ridge 0 the solution of least norm is taken, as `numpy.linalg.lstsq` does. With `start`
    (O, I) the penalty is on |D - start| instead of |D|: iterated Tikhonov regularisation.
    """
    n = moments.rows
    if bias:
        mean_x, mean_r = moments.x / n, moments.r / n
        gram = moments.gram - n * torch.outer(mean_x, mean_x)
        cross = moments.cross - n * torch.outer(mean_x, mean_r)
    else:
        shift, total = moments.shift, moments.x
        gram = moments.gram + torch.outer(shift, total) + torch.outer(total, shift)
        gram += n * torch.outer(shift, shift)
        cross = moments.cross + torch.outer(shift, moments.r)
    if start is not None:
        cross = cross - gram @ start.T
    weight = _solve(gram, cross, ridge * float(gram.diagonal().mean())).T.contiguous()
    weight = weight if start is None else weight + start
    if bias:
        return Solution(weight, mean_r - weight @ (mean_x + moments.shift))
    return Solution(weight, torch.zeros_like(moments.r))


def _solve(gram: Tensor, cross: Tensor, penalty: float) -> Tensor:
    if penalty > 0:
        damped = gram.clone()
        damped.diagonal().add_(penalty)
        factor, info = torch.linalg.cholesky_ex(damped)
        if int(info) == 0:
            return torch.cholesky_solve(cross, factor)
    values, vectors = torch.linalg.eigh(gram)
    # Eigenvalues below rounding error of the largest are directions the data never took.
    floor = float(values[-1]) * len(values) * torch.finfo(values.dtype).eps
    inverse = torch.where(values > floor, 1 / (values + penalty), 0.0)
    result: Tensor = vectors @ (inverse[:, None] * (vectors.T @ cross))
    return result


def workspace(inputs: int, outputs: int) -> int:
    """Bytes that two sets of moments and one solution of a layer take at the peak."""
    return 8 * (5 * inputs * inputs + 6 * inputs * outputs)
