"""Swaps in a session: optimizers and averages follow, exceptions undo, passes run at a boundary."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.ir.model import Model
from esper.live.checkpoint import capture_optimizer
from esper.passbase import Batch, Context, Pass, Remark
from esper.propose import (
    DequantizeLayers,
    LowRankSwap,
    MergeBranches,
    MergeFactors,
    ProposalBase,
    QuantizePhage,
)
from esper_passes.distil import Distil
from esper_passes.low_rank_pass import LowRank
from esper_passes.merge_branches_pass import MergeBranches as MergePass
from tests.live.training import batch, step


class Twins(nn.Module):
    """Two parallel branches and a shortcut kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 10)
        self.a = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 10))
        self.b = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 10))
        self.c, self.d = nn.Linear(10, 10), nn.Linear(10, 10, bias=False)
        self.head = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of three classes."""
        x = torch.relu(self.stem(x))
        x = torch.relu(self.a(x) + self.b(x))
        x = torch.relu(self.c(x) + self.d(x))
        logits: torch.Tensor = self.head(x)
        return logits


@cache
def traced() -> Model:
    """Copied by each test."""
    torch.manual_seed(0)
    return esper.trace(Twins().double(), (torch.randn(4, 6, dtype=torch.float64),))


Live = tuple[esper.Session, Model, torch.optim.Optimizer, torch.Generator]


def live(name: str = "adamw", ema: bool = False) -> Live:
    model = copy.deepcopy(traced())
    make: dict[str, Any] = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
        "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    }
    optimizer = make[name](list(model.parameters()))
    average = torch.optim.swa_utils.AveragedModel(model) if ema else None
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        step(model, optimizer, batch(generator))
        if average is not None:
            average.update_parameters(model)
    optimizer.zero_grad()
    return esper.Session(model, optimizer, ema=average), model, optimizer, generator


def submit(session: esper.Session, *proposals: ProposalBase) -> None:
    with session.boundary() as boundary:
        for record in boundary.submit(*proposals):
            assert record.kind == "passed", record.line()


def wishes(pass_: Pass, model: Model, **context: Any) -> Iterator[ProposalBase]:
    return (w for w in pass_.propose(model, Context(**context)) if not isinstance(w, Remark))


SWAPS: dict[str, tuple[ProposalBase, ...]] = {
    "low rank": (LowRankSwap(node="linear_5", rank=3), LowRankSwap(node="linear_1", rank=4)),
    "and back": (
        LowRankSwap(node="linear_5", rank=3),
        MergeFactors(first="linear_5_low", second="linear_5"),
    ),
    "kernels": (MergeBranches(a="linear_5", b="linear_6"),),
    "hidden layers": (MergeBranches(a="linear_2", b="linear_4", how="concatenate"),),
    "quantised": (QuantizePhage(region="phage:a"),),
    "dequantised": (
        QuantizePhage(region="phage:a"),
        DequantizeLayers(nodes=("linear_1", "linear_2")),
    ),
}


@pytest.mark.parametrize("name", ["adamw", "momentum", "adafactor"])
@pytest.mark.parametrize("swap", SWAPS)
def test_training_goes_on(swap: str, name: str) -> None:
    session, model, optimizer, generator = live(name, ema=name == "adamw")
    submit(session, *SWAPS[swap])
    session.check()
    assert {id(p) for p in optimizer.state} <= {id(p) for p in model.parameters()}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(3):
        loss = step(model, optimizer, batch(generator))
        assert torch.isfinite(torch.tensor(loss))
        for average in session.averages:
            average.update_parameters(model)
    assert not any(torch.equal(p, before[n]) for n, p in model.named_parameters())
    session.close()


@pytest.mark.parametrize("swap", SWAPS)
def test_an_exception_at_a_boundary_undoes_everything(swap: str) -> None:
    session, model, optimizer, _ = live()
    text, tensors = str(model), {n: t.detach().clone() for n, t in model.all_tensors()}
    units = {n: a.unit_ids for n, a in model.anatomy.axes.items()}
    state = copy.deepcopy(capture_optimizer(model, optimizer))

    def fail() -> None:
        with session.boundary() as boundary:
            for record in boundary.submit(*SWAPS[swap]):
                assert record.kind == "passed", record.line()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert str(model) == text
    assert {n: a.unit_ids for n, a in model.anatomy.axes.items()} == units
    assert list(dict(model.all_tensors())) == list(tensors)
    assert all(torch.equal(t, tensors[n]) for n, t in model.all_tensors())
    after = capture_optimizer(model, optimizer)
    assert after["groups"] == state["groups"]
    for name, values in state["state"].items():
        for key, value in values.items():
            assert torch.equal(after["state"][name][key], value)
    session.close()


def test_moments_of_a_merged_kernel_are_those_of_the_one_that_stays() -> None:
    session, model, optimizer, generator = live()
    held = model.get_parameter("c.weight")
    moments = {k: v.clone() for k, v in optimizer.state[held].items()}
    total = held.detach() + model.get_parameter("d.weight").detach()
    submit(session, *SWAPS["kernels"])
    assert torch.equal(model.get_parameter("c.weight"), total)
    assert all(torch.equal(optimizer.state[held][k], v) for k, v in moments.items())
    assert "d.weight" not in dict(model.named_parameters())
    # Its gradient is that of the kernel that stays, as before.
    x, y = batch(generator)
    torch.autograd.backward(nn.functional.cross_entropy(model(x), y))
    assert held.grad is not None
    session.close()


def test_factors_start_anew_and_what_was_not_touched_goes_on() -> None:
    session, model, optimizer, _ = live()
    submit(session, *SWAPS["low rank"])
    stepped = {n for n, p in model.named_parameters() if p in optimizer.state}
    factors = {n for n, _ in model.named_parameters() if ".down." in n or ".up." in n}
    assert len(factors) == 4
    assert stepped == {n for n, _ in model.named_parameters()} - factors
    session.close()


def test_a_gradient_that_waits_is_not_lost() -> None:
    session, model, optimizer, generator = live()
    step(model, optimizer, batch(generator))
    with session.boundary() as boundary:
        (record,) = boundary.submit(*SWAPS["quantised"])
    assert (record.kind, record.code) == ("missed", "pending-gradient")
    session.close()


def test_passes_run_at_a_boundary() -> None:
    session, model, optimizer, generator = live()
    teacher = copy.deepcopy(model)
    data: list[Batch] = [((batch(generator)[0],), {}) for _ in range(12)]
    passes: tuple[Pass, ...] = (
        LowRank(ratio=0.5, align=1, only="c.*"),
        MergePass(how="average", steps=20, lr=1e-2),
        Distil(steps=120, lr=3e-3),
    )
    with session.boundary() as boundary:
        for pass_ in passes:
            for wish in wishes(pass_, model, data=data, baseline=teacher):
                boundary.submit(wish)
    assert {r.kind for r in boundary.records} == {"passed"}, [r.line() for r in boundary.records]
    types = [r.proposal.type for r in boundary.records if r.proposal is not None]
    assert types == ["low-rank-swap", "merge-branches", "distil"]
    assert not model.payloads
    assert torch.isfinite(torch.tensor(step(model, optimizer, batch(generator))))
    session.close()


def test_a_checkpoint_of_a_quantised_phage_resumes() -> None:
    session, model, optimizer, generator = live()
    submit(session, *SWAPS["quantised"], *SWAPS["low rank"][:1])
    state = copy.deepcopy(session.state_dict())
    other, twin, second, _ = live()
    other.load_state_dict(state)
    inputs = batch(generator)
    assert step(model, optimizer, inputs) == step(twin, second, inputs)
    assert str(twin) == str(model)
    session.close()
    other.close()
