"""2:4 weights of 16 bits in the order of the instruction: there and back, on a CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import esper
from esper.errors import VerificationError
from esper.ir.graphs_equal import graphs_equal
from esper.ir.model import Model
from esper.ir.verifier import verify
from esper.propose import FoldMask, LowerLinear, PruneUnits, RaiseKernel, SetMask
from tests.passes.support import refused, same_state

X = torch.linspace(-1, 1, 3 * 40).reshape(3, 40).sin().to(torch.bfloat16)
WISH, BACK = LowerLinear(node="linear", kernel="sparse24_linear"), RaiseKernel(node="linear")


class Layers(nn.Module):
    """40 inputs, 24 and 8 outputs; the first as a linear layer or by columns."""

    def __init__(self, columns: bool) -> None:
        super().__init__()
        self.columns = columns
        if columns:
            self.matrix = nn.Parameter(torch.randn(40, 24))
        else:
            self.first = nn.Linear(40, 24)
        self.last = nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 40) -> (batch, 8)."""
        x = x @ self.matrix if self.columns else self.first(x)
        y: Tensor = self.last(torch.relu(x))
        return y


def layers(columns: bool = False, dtype: torch.dtype = torch.bfloat16) -> Model:
    torch.manual_seed(0)
    return esper.trace(Layers(columns).to(dtype).eval(), (X.to(dtype),))


def apply(model: Model, *wishes: esper.propose.ProposalBase) -> Model:
    for wish in wishes:
        model, record = model.apply(wish)
        assert record.kind == "passed", record.line()
    return model


@pytest.mark.parametrize("columns", [False, True])
def test_there_and_back(columns: bool, tmp_path: object) -> None:
    node, weight = ("matmul", "matrix") if columns else ("linear", "first.weight")
    wish = WISH.model_copy(update={"node": node})
    masked = apply(layers(columns), SetMask(tensor=weight, pattern="2:4"))
    folded = apply(masked, FoldMask(tensor=weight))
    lowered = apply(masked, wish)
    assert lowered.get_parameter(weight).ndim == 4
    torch.testing.assert_close(lowered(X), folded(X))
    verify(lowered, "lowered")
    back = apply(lowered, RaiseKernel(node=node))
    assert str(back) == str(folded)
    assert graphs_equal(back, folded) is None
    same_state(back, folded)
    same_state(apply(folded, wish), lowered)


def test_outputs_are_frozen_and_the_rest_can_be_cut() -> None:
    model = layers()
    names = list(model.anatomy.axes)
    lowered = apply(model, SetMask(tensor="first.weight", pattern="2:4"), WISH)
    assert sorted(lowered.anatomy.axes) == sorted(names)
    assert refused(lowered, PruneUnits(axis="axis:first/neurons", units=(1,))).code == "frozen-axis"


def test_refusals() -> None:
    assert refused(layers(), WISH).code == "not-two-of-four"
    single = apply(layers(dtype=torch.float32), SetMask(tensor="first.weight", pattern="2:4"))
    assert refused(single, WISH).code == "not-two-of-four"


def test_damaged_metadata_are_noticed() -> None:
    lowered = apply(layers(), SetMask(tensor="first.weight", pattern="2:4"), WISH)
    broken = copy.deepcopy(lowered)
    broken.tensor("first.weight_metadata").zero_()  # type: ignore[union-attr]
    with pytest.raises(VerificationError, match="do not ascend within their four"):
        verify(broken, "lowered")


def test_moments_follow() -> None:
    model = esper.trace(Layers(False).to(torch.bfloat16), (X,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with esper.Session(model, optimizer) as session:
        for wishes in ((SetMask(tensor="first.weight", pattern="2:4"), WISH), (BACK,)):
            optimizer.zero_grad()
            model(X).float().square().mean().backward()
            optimizer.step()
            with session.boundary() as boundary:
                for record in boundary.submit(*wishes):
                    assert record.kind == "passed", record.line()
            weight = model.get_parameter("first.weight")
            assert optimizer.state[weight]["exp_avg"].shape == weight.shape
    assert model.get_parameter("first.weight").shape == (24, 40)
