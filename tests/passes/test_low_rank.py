"""Layers as two of low rank, and back: exact at full rank, best for given inputs below."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import esper
from esper.ir.graphs_equal import graphs_equal
from esper.ir.model import Model
from esper.passbase import Batch, Context
from esper.propose import LowRankSwap, MergeFactors, parse
from esper_passes.low_rank import moment_digest, most, pairs, spectrum
from esper_passes.low_rank_pass import LowRank
from tests import oracle
from tests.passes.support import drift, drive, refusal, refused, traced

F64 = torch.float64


def net(width: int = 24, rank: int | None = None) -> nn.Module:
    """Linear layers whose first weight may be of low rank to begin with."""
    first = nn.Linear(16, width).double()
    if rank is not None:
        factors = torch.randn(width, rank, dtype=F64), torch.randn(rank, 16, dtype=F64)
        first.weight.data = factors[0] @ factors[1]
    return nn.Sequential(first, nn.ReLU(), nn.Linear(width, 5, bias=False))


def rows(count: int = 3) -> list[Batch]:
    """Inputs that lie close to a subspace."""
    basis = torch.randn(4, 16, dtype=F64)
    return [
        ((torch.randn(32, 4, dtype=F64) @ basis + 0.01 * torch.randn(32, 16, dtype=F64),), {})
        for _ in range(count)
    ]


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("shape", [(7, 5), (5, 7)])
def test_all_terms_are_the_matrix(shape: tuple[int, int], whitened: bool) -> None:
    matrix = torch.randn(shape, dtype=F64)
    x = torch.randn(40, shape[1], dtype=F64)
    found = spectrum(matrix, x.T @ x / 40 if whitened else None)
    down, up = found.factors(min(shape))
    torch.testing.assert_close(up @ down, matrix, rtol=1e-10, atol=1e-12)
    assert found.lost(min(shape)) == 0


def test_a_moment_makes_outputs_closer_than_any_other_pair() -> None:
    matrix, x = torch.randn(12, 10, dtype=F64), rows(1)[0][0][0][:, :10]
    moment = x.T @ x / len(x)
    errors = []
    for found in (spectrum(matrix), spectrum(matrix, moment)):
        down, up = found.factors(4)
        errors.append(float((x @ (matrix - up @ down).T).norm() / (x @ matrix.T).norm()))
    assert errors[1] < errors[0] / 3
    # Eckart and Young: no matrix of that rank comes closer to the outputs.
    best = torch.linalg.svdvals(x @ matrix.T)
    assert errors[1] == pytest.approx(float(best[4:].norm() / best.norm()), rel=1e-3)


def test_ranks_that_hold_an_energy() -> None:
    found = spectrum(torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=F64)))
    assert [found.rank(e) for e in (0.6, 0.65, 0.93, 1.0)] == [1, 2, 3, 3]
    assert most(24, 16) * (24 + 16) < 24 * 16 <= (most(24, 16) + 1) * (24 + 16)
    assert spectrum(torch.zeros(3, 3)).lost(1) == 0


# -- rewrites --------------------------------------------------------------------------------------


class Forms(nn.Module):
    """Every form a layer may have: convolutions, linear, matmul with a parameter, addmm."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(3, 24, 3, stride=2, padding=1)
        self.same = nn.Conv2d(24, 24, (3, 1), padding="same", dilation=2, bias=False)
        self.line = nn.Conv1d(24, 20, 3)
        self.matrix = nn.Parameter(torch.randn(20, 18))
        self.shift = nn.Parameter(torch.randn(18))
        self.head = nn.Linear(18, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Ends in (batch, 16)."""
        x = torch.relu(self.same(torch.relu(self.image(x))))
        x = torch.relu(self.line(x.flatten(2))).mean(2)
        x = torch.relu(torch.addmm(self.shift, torch.relu(x), self.matrix))
        y: Tensor = self.head(x @ self.matrix.T @ self.matrix)
        return y


FORMS = {"conv2d": 9, "conv2d_1": 8, "conv1d": 12, "linear": 8}


@pytest.fixture(scope="module")
def forms() -> tuple[Model, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8, dtype=F64)
    return traced(Forms(), x), x


@pytest.mark.parametrize("node", FORMS)
def test_outputs_and_gradients_are_those_of_the_low_rank_weight(
    node: str, forms: tuple[Model, Tensor]
) -> None:
    model, x = forms
    rank = FORMS[node] // 2
    swapped, record = model.apply(LowRankSwap(node=node, rank=rank))
    assert record.kind == "passed", record.line()
    assert record.figures["tolerance"] == "lossy"
    (down, up) = (n for n, _ in swapped.named_parameters() if ".down." in n or ".up." in n)
    path = down.partition(".down.")[0]
    reference = copy.deepcopy(model)
    weight = reference.get_parameter(f"{path}.weight")
    product = swapped.get_parameter(up).flatten(1) @ swapped.get_parameter(down).flatten(1)
    weight.data = product.detach().reshape(weight.shape)
    assert int(torch.linalg.matrix_rank(product)) == rank
    for mine, theirs in zip(
        oracle.run(swapped, (x,), {}), oracle.run(reference, (x,), {}), strict=True
    ):
        oracle.close(mine, theirs, node)
    own, other = (oracle.gradients(m, (x,), {}) for m in (swapped, reference))
    for name, gradient in own.items():
        if name not in (down, up):
            assert gradient is not None
            oracle.close(gradient, other[name], name)  # type: ignore[arg-type]
    whole = other[f"{path}.weight"]
    assert whole is not None
    factor = swapped.get_parameter(up).detach().flatten(1)
    given = own[down]
    assert given is not None
    oracle.close(given.flatten(1), factor.T @ whole.flatten(1), "gradient of the first factor")

    back, record = swapped.apply(MergeFactors(first=f"{node}_low", second=node))
    assert record.kind == "passed", record.line()
    assert set(back.state_dict()) == set(model.state_dict())
    assert drift(back, swapped, (x,)) < 1e-12
    assert graphs_equal(back, model) is None


class Columns(nn.Module):
    """Weights stored as (inputs, outputs), as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = (nn.Parameter(torch.randn(s)) for s in ((16, 24), (24, 16)))
        self.shift = nn.Parameter(torch.randn(24))

    def forward(self, x: Tensor) -> Tensor:
        """An addmm and a matmul."""
        return torch.relu(torch.addmm(self.shift, x, self.up)) @ self.down


def test_matrices_stored_by_columns() -> None:
    x = torch.randn(6, 16, dtype=F64)
    model = traced(Columns(), x)
    split, records, _ = drive(LowRank(ratio=0.3, align=1), model)
    assert [r.kind for r in records] == ["passed", "passed"]
    assert set(split.state_dict()) == {"shift", "up_down", "up_up", "down_down", "down_up"}
    joined = copy.deepcopy(split)
    manager = esper.PassManager(joined)
    for first, second in pairs(split).items():
        assert manager.apply(MergeFactors(first=first, second=second)).kind == "passed"
    assert set(joined.state_dict()) == set(model.state_dict())
    assert drift(joined, split, (x,)) < 1e-12


def test_a_weight_of_low_rank_loses_nothing() -> None:
    x = torch.randn(6, 16, dtype=F64)
    model = traced(net(rank=3), x)
    for wish in (LowRankSwap(node="linear", rank=3), LowRankSwap(node="linear", energy=1 - 1e-12)):
        swapped, record = model.apply(wish)
        assert (record.kind, record.figures["rank"]) == ("passed", 3)
        assert record.figures["tolerance"] == "reassociates"
        assert record.figures["parameters_removed"] == 24 * 16 - 3 * (24 + 16)
        assert drift(swapped, model, (x,)) < 1e-12


def test_what_was_split_saves_and_loads(tmp_path: Any) -> None:
    x = torch.randn(6, 16, dtype=F64)
    swapped, _ = traced(net(), x).apply(LowRankSwap(node="linear", rank=4))
    esper.save(swapped, tmp_path / "m.esper")
    loaded = esper.load(tmp_path / "m.esper")
    assert drift(loaded, swapped, (x,)) == 0
    assert loaded.history == swapped.history
    again = esper.trace(swapped, (x,))
    assert drift(again, swapped, (x,)) == 0


@pytest.fixture(scope="module")
def plain() -> Model:
    torch.manual_seed(0)
    return traced(net(), torch.randn(6, 16, dtype=F64))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        """The same layer twice."""
        y: Tensor = self.layer(torch.relu(self.layer(x)))
        return y


@pytest.mark.parametrize(
    ("proposal", "code"),
    [
        (LowRankSwap(node="linear", rank=10), "no-shrink"),
        (LowRankSwap(node="linear", energy=1.0), "no-shrink"),
        (LowRankSwap(node="relu", rank=1), "no-weight"),
        (LowRankSwap(node="nothing", rank=1), "unknown-target"),
        (LowRankSwap(node="linear", rank=2, moment="gone"), "missing-payload"),
        (MergeFactors(first="linear", second="linear_1"), "not-a-pair"),
    ],
)
def test_refusals(proposal: Any, code: str, plain: Model) -> None:
    model = plain
    assert refused(model, proposal).code == code
    assert parse(proposal.model_dump_json()) == proposal


def test_more_refusals() -> None:
    x = torch.randn(6, 16, dtype=F64)
    assert refusal(traced(Tied(), x), LowRankSwap(node="linear", rank=2)).code == "shared-tensor"
    row = traced(nn.Sequential(nn.Linear(16, 4), nn.Linear(4, 9)), x)
    assert refusal(row, MergeFactors(first="linear", second="linear_1")).code == "biased-factor"
    model = traced(net(), x)
    for moment, code in ((torch.eye(3), "stale-payload"), (torch.eye(16), "changed-payload")):
        name, payload = moment_digest(moment)
        model.payloads[name] = dict(payload)
        if code == "changed-payload":
            model.payloads[name] = {"moment": moment + 1}
        assert refusal(model, LowRankSwap(node="linear", rank=2, moment=name)).code == code
    wide = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.Conv2d(8, 8, 3))
    image = torch.randn(2, 4, 5, 5, dtype=F64)
    wish = MergeFactors(first="conv2d", second="conv2d_1")
    assert refusal(traced(wide, image), wish).code == "not-a-pair"


@pytest.mark.parametrize("given", [{}, {"rank": 2, "energy": 0.5}])
def test_a_swap_has_a_rank_or_an_energy(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="rank or energy"):
        LowRankSwap(node="linear", **given)


# -- the pass --------------------------------------------------------------------------------------


def test_the_pass_uses_what_layers_read() -> None:
    batches = rows()
    x = batches[0][0][0]
    model = traced(net(48), x)
    errors = []
    for context in (Context(), Context(data=batches)):
        swapped, records, remarks = drive(LowRank(ratio=0.6, align=1, only="0.*"), model, context)
        assert [r.kind for r in records] == ["passed"]
        assert not remarks
        errors.append(drift(swapped, model, (x,)))
    assert errors[1] < errors[0] / 5


def test_parts_of_a_refused_group_are_tried_with_their_moments() -> None:
    data = rows(4)
    model = traced(net(48), data[0][0][0])
    result = esper.optimize(model, "low-rank{ratio=0.6 align=1}", data=data, max_loss=0.03)
    kinds = {str(r.proposal.targets[0]): (r.kind, r.code) for r in result.records if r.proposal}
    assert kinds == {"linear": ("passed", "not-measured"), "linear_1": ("missed", "quality")}
    assert not result.model.payloads


def test_moments_are_means_over_all_rows_of_the_convolution() -> None:
    x = torch.randn(2, 3, 8, 8, dtype=F64)
    model = traced(Forms(), x)
    chosen = LowRank()
    (layer, *_) = chosen._layers(model)
    (first, moment), *_ = chosen._moments(model, [layer], [((x,), {}), ((2 * x,), {})])
    assert first is layer
    assert moment is not None
    patches = functional.unfold(x, 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1)
    expected = 2.5 * patches.T @ patches / len(patches)
    torch.testing.assert_close(moment, expected)


def test_a_second_run_leaves_halves_alone() -> None:
    x = torch.randn(6, 16, dtype=F64)
    model = traced(net(), x)
    swapped, records, _ = drive(LowRank(ratio=0.5, align=1, only="0.*"), model)
    assert len(records) == 1
    again, records, remarks = drive(LowRank(ratio=0.5, align=1, only="0.*"), swapped)
    assert (records, [r.code for r in remarks]) == ([], ["already-low-rank"])
    assert str(again) == str(swapped)
    _, records, remarks = drive(LowRank(only="nothing"), model)
    assert (records, [r.code for r in remarks]) == ([], ["no-layer"])


def test_ranks_are_aligned_where_that_still_saves() -> None:
    model = traced(
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)), torch.ones(2, 64).double()
    )
    _, records, _ = drive(LowRank(ratio=0.4), model)
    ranks = [r.figures.get("rank") for r in records]
    assert ranks == [24, 7]  # 19.2 rounded up to a multiple of 8; no multiple saves on 64 x 8


def test_memory_is_bounded() -> None:
    batches = rows()
    model = traced(nn.Linear(400, 400), torch.randn(2, 400, dtype=F64))
    batches = [((torch.randn(2, 400, dtype=F64),), {})]
    _, records, remarks = drive(LowRank(moment_mib=1), model, Context(data=batches))
    assert (records, [r.code for r in remarks]) == ([], ["memory-limit"])


@pytest.mark.parametrize(
    "options",
    [{"ratio": 1.0}, {"energy": 0.0}, {"rank": 0}, {"align": 0}, {"ratio": 0.5, "rank": 3}],
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="|".join(options)):
        LowRank(**options)
