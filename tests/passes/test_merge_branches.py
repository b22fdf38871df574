"""Branches of a sum become one: exactly where they are linear or join, else fitted to the pair."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import esper
from esper.ir.model import Model
from esper.passbase import Batch, Context
from esper.propose import MergeBranches as Proposal
from esper.propose import PruneUnits, parse
from esper_passes.fitting import fit
from esper_passes.merge_branches_pass import MergeBranches
from esper_passes.refit import digest
from tests import oracle
from tests.passes.support import drift, drive, ops, refusal, refused, same_state, traced

F64 = torch.float64


class Sum(nn.Module):
    """The sum of what some modules give for one input, and what follows it."""

    def __init__(self, *parts: nn.Module, tail: nn.Module | None = None) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.tail = nn.ReLU() if tail is None else tail

    def forward(self, x: Tensor) -> Tensor:
        """From left to right."""
        total = self.parts[0](x)
        for part in self.parts[1:]:
            total = total + part(x)
        y: Tensor = self.tail(total)
        return y


class Matrix(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """A matmul, without a bias."""
        return x @ self.matrix


def image() -> Tensor:
    return torch.randn(3, 4, 7, 7, dtype=F64)


def vector(width: int = 6) -> Tensor:
    return torch.randn(9, width, dtype=F64)


EXACT: dict[str, Any] = {
    "repvgg": lambda: (
        Sum(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Identity()),
        image(),
    ),
    "bias-only-in-the-small": lambda: (
        Sum(nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 3, padding=1, bias=False)),
        image(),
    ),
    "strided": lambda: (
        Sum(nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(4, 6, 1, 2, bias=False)),
        image(),
    ),
    "cross": lambda: (
        Sum(
            nn.Conv2d(4, 6, 3, padding=1, bias=False),
            nn.Conv2d(4, 6, (1, 3), padding=(0, 1), bias=False),
            nn.Conv2d(4, 6, (3, 1), padding=(1, 0), bias=False),
        ),
        image(),
    ),
    "dilated": lambda: (
        Sum(nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 4, 1), nn.Identity()),
        image(),
    ),
    "grouped": lambda: (
        Sum(
            nn.Conv2d(4, 4, 3, padding=1, groups=2),
            nn.Conv2d(4, 4, 1, groups=2, bias=False),
            nn.BatchNorm2d(4),
            nn.Identity(),
        ),
        image(),
    ),
    "depthwise": lambda: (
        Sum(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 4, 1, groups=4), nn.Identity()),
        image(),
    ),
    "same": lambda: (
        Sum(nn.Conv1d(4, 4, 4, padding="same"), nn.Conv1d(4, 4, 1)),
        torch.randn(3, 4, 9, dtype=F64),
    ),
    "linear": lambda: (Sum(nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.Identity()), vector()),
    "columns": lambda: (Sum(Matrix(6, 6), nn.Linear(6, 6)), vector()),
    "norm-of-rows": lambda: (Sum(nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6)), vector()),
}


def losses(model: Model, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    y = model(leaf)
    torch.autograd.backward(y.square().sum())
    assert leaf.grad is not None
    return y.detach(), leaf.grad


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("name", EXACT)
def test_kernels_add_up(name: str) -> None:
    module, x = EXACT[name]()
    model = traced(module, x)
    merged, records, remarks = drive(MergeBranches(), model)
    assert not remarks
    assert len(records) == len(module.parts) - 1
    for record in records:
        assert (record.kind, record.figures["tolerance"]) == ("passed", "reassociates")
    assert ops(merged)[1:] == ["relu"]
    for mine, theirs in zip(losses(merged, x), losses(model, x), strict=True):
        oracle.close(mine, theirs, name)
    again, records, remarks = drive(MergeBranches(), merged)
    assert (records, [r.code for r in remarks]) == ([], ["no-branches"])
    same_state(again, merged)


def test_the_gradient_of_a_merged_kernel_is_that_of_each() -> None:
    x = image()
    model = traced(Sum(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)), x)
    merged, _, _ = drive(MergeBranches(), model)
    expected, found = oracle.gradients(model, (x,), {}), oracle.gradients(merged, (x,), {})
    for name, gradient in found.items():
        assert gradient is not None
        oracle.close(gradient, expected[name], name)  # type: ignore[arg-type]


def twins(**options: Any) -> nn.Module:
    return Sum(
        *(
            nn.Sequential(nn.Linear(6, 8, **options), nn.GELU(), nn.Linear(8, 6, **options))
            for _ in range(2)
        ),
        tail=nn.Linear(6, 3),
    )


JOINED: dict[str, Any] = {
    "linear": lambda: (twins(), vector()),
    "no-bias": lambda: (twins(bias=False), vector()),
    "columns": lambda: (
        Sum(*(nn.Sequential(Matrix(6, n), nn.ReLU(), Matrix(n, 6)) for n in (8, 5))),
        vector(),
    ),
    "convolutions": lambda: (
        Sum(
            *(
                nn.Sequential(nn.Conv2d(4, n, 3), nn.ReLU(), nn.Hardtanh(0, 1), nn.Conv2d(n, 4, 1))
                for n in (3, 5)
            )
        ),
        image(),
    ),
}


@pytest.mark.parametrize("name", JOINED)
def test_hidden_layers_join(name: str) -> None:
    module, x = JOINED[name]()
    model = traced(module, x)
    merged, (record,), _ = drive(MergeBranches(), model)
    assert record.kind == "passed", record.line()
    assert record.proposal is not None
    assert (record.proposal.how, record.figures["tolerance"]) == (  # type: ignore[attr-defined]
        "concatenate",
        "reassociates",
    )
    for mine, theirs in zip(losses(merged, x), losses(model, x), strict=True):
        oracle.close(mine, theirs, name)
    assert len(ops(merged)) < len(ops(model))


def test_joined_units_have_numbers_of_their_own_and_can_be_cut_again() -> None:
    x = vector()
    model = traced(twins(), x)
    merged, _, _ = drive(MergeBranches(), model)
    axis = merged.anatomy.axes["axis:parts.0.0/neurons"]
    assert axis.unit_ids == tuple(range(16))
    cut, record = merged.apply(PruneUnits(axis=axis.id, units=axis.unit_ids[8:]))
    assert record.kind == "passed"
    with torch.no_grad():
        first = model.get_submodule("parts.0")
        second_bias = model.get_parameter("parts.1.2.bias")
        hidden = functional.gelu(functional.linear(x, *first.get_submodule("0").parameters()))
        weight, bias = first.get_submodule("2").parameters()
        total = functional.linear(hidden, weight, bias + second_bias)
        expected = functional.linear(total, *model.get_submodule("tail").parameters())
        oracle.close(cut(x), expected, "the first branch alone")


# -- twins -----------------------------------------------------------------------------------------


def batches(count: int = 8) -> list[Batch]:
    return [((torch.randn(24, 6, dtype=F64),), {}) for _ in range(count)]


def test_twins_are_averaged_and_fitted() -> None:
    data = batches()
    branches = (nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)) for _ in range(2))
    model = traced(Sum(*branches, tail=nn.Identity()), vector())
    merged, (record,), _ = drive(
        MergeBranches(how="average", steps=60, lr=1e-2), model, Context(data=data)
    )
    assert record.kind == "passed", record.line()
    assert record.proposal is not None
    evidence = record.proposal.evidence
    assert float(evidence["error_fitted"]) < float(evidence["error_averaged"])
    assert record.figures["tolerance"] == "lossy"
    assert record.figures["parameters_removed"] == 8 * 6 + 8 + 6 * 8 + 6
    with torch.no_grad():
        pairs = [(model(x), merged(x)) for (x,), _ in data[-2:]]  # the ones that judged
    error = sum(float((y - z).square().sum()) for y, z in pairs)
    energy = sum(float(y.square().sum()) for y, _ in pairs)
    assert (error / energy) ** 0.5 == pytest.approx(float(evidence["error_fitted"]))


def test_equal_twins_need_no_fitting() -> None:
    module = twins()
    assert isinstance(module, Sum)
    module.parts[1].load_state_dict(module.parts[0].state_dict())
    torch.manual_seed(3)
    model = esper.trace(module.double().eval(), (vector(),))
    merged, (record,), _ = drive(
        MergeBranches(how="average", steps=1), model, Context(data=batches(2))
    )
    assert record.kind == "passed"
    assert drift(merged, model, (vector(),)) < 1e-12


def test_norms_may_lie_between() -> None:
    parts = (nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.GELU()) for _ in range(2))
    model = traced(Sum(*parts), vector())
    merged, (record,), _ = drive(
        MergeBranches(how="average", steps=20), model, Context(data=batches(4))
    )
    assert record.kind == "passed", record.line()
    assert ops(merged) == ["linear", "layer_norm", "gelu", "relu"]


def test_one_batch_is_too_little() -> None:
    _, _, remarks = drive(
        MergeBranches(how="average"), traced(twins(), vector()), Context(data=batches(1))
    )
    assert "too-little-data" in [r.code for r in remarks]


# -- near misses -----------------------------------------------------------------------------------


class Elsewhere(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both values are outputs, too."""
        a, b = self.a(x), self.b(x)
        return torch.relu(a + b), a, b


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        """A sum with a factor, and of values that read different things."""
        return torch.relu(torch.add(self.a(x), self.b(x), alpha=2))


NEAR: dict[str, Any] = {
    "read elsewhere": (Elsewhere, vector, "unlike-branches"),
    "scaled": (Scaled, vector, "no-sum"),
    "other input": (
        lambda: Sum(nn.Linear(6, 6), nn.Sequential(nn.ReLU(), nn.Linear(6, 6))),
        vector,
        "unlike-branches",
    ),
    "windows cross": (
        lambda: Sum(
            nn.Conv2d(4, 6, (1, 3), padding=(0, 1)), nn.Conv2d(4, 6, (3, 1), padding=(1, 0))
        ),
        image,
        "unlike-branches",
    ),
    "groups": (
        lambda: Sum(nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(4, 4, 1, groups=4)),
        image,
        "unlike-branches",
    ),
    "dilations": (
        lambda: Sum(nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 3, padding=2, dilation=2)),
        image,
        "unlike-branches",
    ),
    "norm alone": (lambda: Sum(nn.BatchNorm1d(6), nn.Identity()), vector, "unlike-branches"),
    "no tap in the middle": (
        lambda: Sum(nn.Conv2d(4, 4, 3, padding=(1, 1), stride=1, dilation=1), nn.MaxPool2d(1)),
        image,
        "unlike-branches",
    ),
}


@pytest.mark.parametrize("name", NEAR)
def test_near_misses(name: str) -> None:
    build, make, code = NEAR[name]
    model = traced(build(), make())
    total = next(n for n in model.graph.nodes if n.target is torch.ops.aten.add.Tensor)
    wish = Proposal(a=total.args[0].name, b=total.args[1].name)
    assert refused(model, wish).code == code
    assert parse(wish.model_dump_json()) == wish
    _, records, remarks = drive(MergeBranches(), model)
    assert (records, [r.code for r in remarks]) == ([], ["no-branches"])


def test_a_norm_in_training_is_no_kernel() -> None:
    model = traced(Sum(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), image())
    wish = Proposal(a="conv2d", b="batch_norm")
    assert "statistics of the batch" in refused(model.train(), wish).reason
    assert not isinstance(model.eval().plan(wish), esper.plan.Refusal)


@pytest.mark.parametrize(
    ("parts", "how"),
    [
        ((nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(6, 8)), "concatenate"),
        (
            tuple(
                nn.Sequential(nn.Linear(6, 8), f, nn.Linear(8, 6)) for f in (nn.ReLU(), nn.GELU())
            ),
            "concatenate",
        ),
        ((nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 6)), "average"),
    ],
)
def test_unlike_chains(parts: tuple[nn.Module, ...], how: Any) -> None:
    model = traced(Sum(*copy.deepcopy(parts)), vector())
    total = next(n for n in model.graph.nodes if n.target is torch.ops.aten.add.Tensor)
    wish = Proposal(a=total.args[0].name, b=total.args[1].name, how=how)
    assert refusal(model, wish).code == "unlike-branches"


def test_payloads_are_those_that_were_fitted() -> None:
    model = traced(twins(), vector())

    def wish(name: str) -> Proposal:
        return Proposal(a="linear_1", b="linear_3", how="average", digest=name)

    assert refused(model, wish("gone")).code == "missing-payload"
    for payload, code in (
        ({"parts.0.0.weight": torch.zeros(3)}, "stale-payload"),
        ({"tail.weight": torch.zeros(3, 6)}, None),
    ):
        name = digest(payload)
        model.payloads[name] = payload
        plan = model.plan(wish(name))
        assert getattr(plan, "code", None) == code
    model.payloads[name]["tail.weight"] += 1
    assert refusal(model, wish(name)).code == "changed-payload"


@pytest.mark.parametrize("options", [{"steps": 0}, {"lr": 0.0}, {"held_out": 1.0}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)).replace("_", "-")):
        MergeBranches(**options)


# -- fitting ---------------------------------------------------------------------------------------


def test_the_best_state_is_kept_and_the_start_where_none_is_better() -> None:
    x = [torch.randn(20, 3, dtype=F64) for _ in range(4)]
    weight = torch.randn(2, 3, dtype=F64)
    targets = [[r @ weight.T] for r in x]

    def forward(index: int, tensors: Any) -> list[Tensor]:
        return [x[index] @ tensors["w"].T]

    start = {"w": torch.zeros_like(weight)}
    found = fit(forward, targets, start, judged=1, held=1, steps=300, lr=0.1)
    assert found.before == pytest.approx(1.0)
    assert found.after < 1e-2
    assert not start["w"].any()
    same = fit(forward, targets, {"w": weight}, judged=1, held=1, steps=5, lr=0.1)
    assert (same.before, same.after, same.step) == (0.0, 0.0, 0)
    assert torch.equal(same.tensors["w"], weight)
    wild = fit(forward, targets, start, judged=1, held=1, steps=3, lr=float("1e300"))
    assert wild.after <= wild.before
