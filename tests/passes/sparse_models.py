"""Models whose weights are sparse in runs, in every form in which a linear layer is written."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esper.ir.model import Model
from tests.passes.support import traced

ROWS, RUN = 8, 4


def plant(weight: Tensor, rows: int = ROWS, run: int = RUN, keep: int = 2, of: int = 4) -> None:
    """Zeros in (outputs, inputs): `keep` of each `of` runs in a row stay, alike in `rows` rows."""
    outputs, inputs = weight.shape
    groups, runs = -(-outputs // rows), inputs // run
    order = torch.rand(groups, runs // of, of).argsort(2) < keep
    kept = order.reshape(groups, runs).repeat_interleave(rows, 0)[:outputs]
    weight.mul_(kept.repeat_interleave(run, 1))


class Forms(nn.Module):
    """`linear` with and without a bias, `addmm`, `mm` and `matmul`, all sparse but the last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.plain = nn.Linear(32, 48), nn.Linear(48, 32, bias=False)
        self.shift = nn.Parameter(torch.randn(24))
        self.columns = nn.Parameter(torch.randn(32, 24))
        self.product, self.last = nn.Parameter(torch.randn(24, 16)), nn.Linear(16, 16)
        with torch.no_grad():
            for matrix in (self.first.weight, self.plain.weight, self.columns.T):
                plant(matrix)
            plant(self.product.T, run=2)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 32) -> (batch, 1, 16)."""
        x = self.plain(torch.relu(self.first(x)))
        x = torch.relu(torch.addmm(self.shift, x, self.columns))
        y: Tensor = self.last(torch.relu(x[:, None] @ self.product))
        return y


# Node -> its weight, and the runs in it.
FORMS = {
    "linear": ("first.weight", ROWS, RUN),
    "linear_1": ("plain.weight", ROWS, RUN),
    "addmm": ("columns", ROWS, RUN),
    "matmul": ("product", ROWS, 2),
}


def forms() -> tuple[Model, Tensor]:
    """The model in float64, and an input."""
    torch.manual_seed(0)
    x = torch.randn(5, 32, dtype=torch.float64)
    return traced(Forms(), x), x
