"""Reconstruct: solver, capture, goals, the refit rewrite, and what the pass does to models."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from esper.ir.model import Model
from esper.ir.trace import trace
from esper.manager import PassManager
from esper.passbase import Batch, Context, Remark
from esper.propose import PruneUnits, Refit
from esper.records import Record
from esper_passes.affine import Affine, Unfit, affine
from esper_passes.capture import Runner, capture
from esper_passes.consumers import find
from esper_passes.least_squares import Moments, solve
from esper_passes.reconstruct import Reconstruct
from esper_passes.refit import digest
from tests.models import MODELS
from tests.passes.support import drive, refused, same_state, traced

F64 = torch.float64


def cut(model: Model, axis: str, units: tuple[int, ...]) -> Model:
    """A copy without these units."""
    changed = copy.deepcopy(model)
    record = PassManager(changed, verify="full").apply(PruneUnits(axis=axis, units=units))
    assert record.kind == "passed", record.line()
    return changed


def cut_quarter(model: Model, kinds: tuple[str, ...]) -> Model:
    """A copy in which each exactly cuttable axis of these kinds lost every fourth unit."""
    changed = copy.deepcopy(model)
    manager = PassManager(changed)
    for axis in list(changed.anatomy.axes.values()):
        if axis.kind in kinds and axis.cuttable and axis.lossy_reason is None:
            record = manager.apply(PruneUnits(axis=axis.id, units=axis.unit_ids[1::4]))
            assert record.kind == "passed", record.line()
    return changed


def repair(
    baseline: Model, model: Model, data: list[Batch], **options: Any
) -> tuple[Model, list[Record], list[Remark]]:
    context = Context(data=data, baseline=baseline)
    return drive(Reconstruct(**options), model, context)


def missed(baseline: Model, present: Model, batches: list[Batch]) -> float:
    """Norm of the difference of outputs over that of the baseline's about their mean."""
    error = energy = 0.0
    for args, kwargs in batches:
        with torch.no_grad():
            want, have = baseline(*args, **kwargs), present(*args, **kwargs)
        error += float((want - have).square().sum())
        energy += float((want - want.mean(0)).square().sum())
    return float((error / energy) ** 0.5)


class Mlp(nn.Module):
    """Two layers; `pairs` makes the second half of the neurons combinations of the first."""

    def __init__(self, bias: bool = True, pairs: bool = False) -> None:
        super().__init__()
        self.up = nn.Linear(6, 16)
        self.down = nn.Linear(16, 5, bias=bias)
        if pairs:
            with torch.no_grad():
                mix = torch.randn(8, 8)
                self.up.weight[8:] = mix @ self.up.weight[:8]
                self.up.bias[8:] = mix @ self.up.bias[:8] + 1.0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.up(x))
        return y


def rows(count: int, size: int = 32, width: int = 6) -> list[Batch]:
    return [((torch.randn(size, width, dtype=F64),), {}) for _ in range(count)]


# ---- the solver


def moments(x: Tensor, r: Tensor, parts: int = 3) -> Moments:
    sums = Moments(x[:4].mean(0), r.shape[1])
    for a, b in zip(x.chunk(parts), r.chunk(parts), strict=True):
        sums.add(a, b, b)
    return sums


@pytest.mark.parametrize("bias", [True, False])
def test_solver_agrees_with_numpy(bias: bool) -> None:
    x, r = torch.randn(50, 7, dtype=F64) + 100.0, torch.randn(50, 3, dtype=F64)
    found = solve(moments(x, r), 0.0, bias=bias)
    matrix = np.hstack([x.numpy(), np.ones((50, 1))]) if bias else x.numpy()
    expected, residuals, _, _ = np.linalg.lstsq(matrix, r.numpy(), rcond=None)
    np.testing.assert_allclose(found.weight.numpy(), expected[:7].T, rtol=1e-8, atol=1e-10)
    if bias:
        np.testing.assert_allclose(found.bias.numpy(), expected[7], rtol=1e-7)
    else:
        assert not found.bias.any()
    np.testing.assert_allclose(moments(x, r).error(found).numpy(), residuals, rtol=1e-8)


def test_solver_takes_least_norm_when_rows_are_few() -> None:
    x, r = torch.randn(5, 9, dtype=F64), torch.randn(5, 2, dtype=F64)
    found = solve(moments(x, r, 1), 0.0, bias=False)
    expected = np.linalg.lstsq(x.numpy(), r.numpy(), rcond=None)[0]
    np.testing.assert_allclose(found.weight.numpy(), expected.T, rtol=1e-7, atol=1e-10)


def test_ridge_is_relative_and_leaves_the_bias_free() -> None:
    x, r = torch.randn(40, 4, dtype=F64) + 3.0, torch.randn(40, 2, dtype=F64) + 5.0
    found = solve(moments(x, r), 0.5, bias=True)
    centred = (x - x.mean(0)).numpy()
    penalty = 0.5 * float(np.square(centred).sum(0).mean())
    gram = centred.T @ centred + penalty * np.eye(4)
    expected = np.linalg.solve(gram, centred.T @ (r - r.mean(0)).numpy())
    np.testing.assert_allclose(found.weight.numpy(), expected.T, rtol=1e-9)
    scaled = solve(moments(10 * x, r), 0.5, bias=True)
    np.testing.assert_allclose(10 * scaled.weight.numpy(), expected.T, rtol=1e-9)
    strong = solve(moments(x, r), 1e12, bias=True)
    np.testing.assert_allclose(strong.bias.numpy(), r.mean(0).numpy(), rtol=1e-6)


def test_shared_inputs_give_the_same_solution() -> None:
    x, r = torch.randn(30, 4, dtype=F64), torch.randn(30, 2, dtype=F64)
    first = moments(x, r)
    second = Moments(first.shift, 2, first)
    second.add(x, 2 * r, r)
    assert second.rows == 30
    torch.testing.assert_close(
        solve(second, 0.1, bias=True).weight, 2 * solve(first, 0.1, bias=True).weight
    )


# ---- running part of a model


@pytest.mark.parametrize("name", ["bert", "gpt2", "resnet_basic", "unet"])
def test_stepping_gives_what_a_call_gives(name: str) -> None:
    module, args, kwargs = MODELS[name](dtype=F64)
    model = trace(module, args, kwargs)
    output = next(n for n in reversed(model.graph.nodes) if n.op == "output")
    last = output.all_input_nodes[0]
    runner = Runner(model)
    frame = runner.start((args, kwargs))
    most = 0
    for node in [n for n in model.graph.nodes if n.op == "call_function"][::3]:
        runner.before(frame, node.name)
        most = max(most, len(frame.values))
        for operand in node.all_input_nodes:
            runner.value(frame, operand)
    with torch.no_grad():
        expected = model(*args, **kwargs)
    torch.testing.assert_close(runner.through(frame, last.name), expected, rtol=0, atol=0)
    assert len(frame.values) <= 1  # everything else was freed at its last use
    assert most < 25


def test_training_mode_and_buffers_are_left_alone() -> None:
    module, args, kwargs = MODELS["resnet_basic"](dtype=F64)
    model = trace(module, args, kwargs)
    with torch.no_grad():
        expected = model(*args, **kwargs)
    model.train()
    before = copy.deepcopy(model.state_dict())
    name = next(n for n in reversed(model.graph.nodes) if n.op == "output").all_input_nodes[0].name
    got = capture(model, [name], (args, kwargs))[name]
    torch.testing.assert_close(got, expected)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_kept_values_outlive_their_last_use() -> None:
    model = traced(Mlp(), torch.randn(4, 6, dtype=F64))
    runner = Runner(model, keep=["linear"])
    frame = runner.start(rows(1)[0])
    runner.through(frame, "linear_1")
    assert "linear" in frame.values
    runner.release(frame, "linear")
    assert "linear" not in frame.values


# ---- layers as matrices


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (3, 5), dilation=(2, 1), padding="same"),
        nn.Conv2d(4, 6, 1, stride=2, bias=False),
        nn.Conv1d(4, 6, 3, padding=2, dilation=2),
        nn.Conv1d(4, 6, 4, padding="valid"),
    ],
)
def test_patches_times_matrix_is_the_convolution(layer: nn.Module) -> None:
    shape = (2, 4, 9) if isinstance(layer, nn.Conv1d) else (2, 4, 9, 8)
    x = torch.randn(*shape, dtype=F64)
    model = traced(layer, x)
    node = next(n for n in model.graph.nodes if n.op == "call_function")
    seen = affine(model, node)
    assert isinstance(seen, Affine)
    weight = model.tensor(seen.weight)
    assert weight is not None
    y = seen.rows(x, tuple(weight.shape[2:])) @ seen.matrix(weight).T
    if seen.bias is not None:
        bias = model.tensor(seen.bias)
        assert bias is not None
        y = y + bias
    torch.testing.assert_close(y, seen.outputs(model(x)))
    assert torch.equal(seen.tensor(seen.matrix(weight), weight), weight)


# ---- the pass


def test_redundant_units_are_recovered_exactly() -> None:
    model = traced(Mlp(pairs=True), torch.randn(4, 6, dtype=F64))
    # Only six inputs: six independent neurons span everything, the constant goes to the bias.
    present = cut(model, "axis:up/neurons", (1, 3, 9, 12, 15))
    data = rows(8)
    repaired, records, remarks = repair(model, present, data, ridge=0.0)
    assert [r.kind for r in records] == ["passed"]
    assert not remarks
    assert missed(model, present, rows(2)) > 0.1
    assert missed(model, repaired, rows(2)) < 1e-10


def test_convolution_is_recovered_exactly() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)
            self.second = nn.Conv2d(8, 4, 3, stride=2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(self.first(x))
            return y

    model = traced(Net(), torch.randn(2, 3, 9, 9, dtype=F64))
    present = cut(model, "axis:first/channels", (0, 2, 5, 6))
    data: list[Batch] = [((torch.randn(4, 3, 9, 9, dtype=F64),), {}) for _ in range(4)]
    repaired, records, _ = repair(model, present, data, ridge=0.0)
    assert [r.kind for r in records] == ["passed"]
    assert missed(model, repaired, data[-1:]) < 1e-10
    assert repaired.tensor("second.bias") is not None  # the constant part has nowhere else to go


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("bert", ("neurons", "heads")),
        ("vit", ("neurons",)),
        ("resnet_basic", ("channels",)),
        ("gpt2", ("neurons",)),
    ],
)
def test_held_out_error_never_grows(name: str, kinds: tuple[str, ...]) -> None:
    module, args, kwargs = MODELS[name](dtype=F64)
    model = trace(module, args, kwargs)
    generator = torch.Generator().manual_seed(3)

    def fresh(key: str, value: Tensor) -> Tensor:
        if key == "attention_mask":
            return value
        if value.dtype.is_floating_point:
            return torch.randn(value.shape, generator=generator, dtype=F64)
        return torch.randint(1, 37, value.shape, generator=generator)

    def batch() -> Batch:
        named = {key: fresh(key, value) for key, value in kwargs.items()}
        return tuple(fresh("", value) for value in args), named

    data, unseen = [batch() for _ in range(16)], [batch() for _ in range(4)]
    present = cut_quarter(model, kinds)
    repaired, records, remarks = repair(model, present, data)
    assert records
    for record in records:
        assert record.kind == "passed", record.line()
        assert record.figures["error_after"] < record.figures["error_before"]
    assert {r.code for r in remarks} <= {"no-gain"}
    assert missed(model, repaired, unseen) < missed(model, present, unseen)
    # A second run finds nothing worth proposing.
    again, more, remarks = repair(model, repaired, data)
    assert more == []
    assert {r.code for r in remarks} <= {"no-gain", "already-exact"}
    same_state(again, repaired)


def test_runs_are_repeatable() -> None:
    model = traced(Mlp(), torch.randn(4, 6, dtype=F64))
    present = cut(model, "axis:up/neurons", (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11))
    data = rows(6)
    first, one, _ = repair(model, present, data, max_rows=60)
    second, two, _ = repair(model, present, data, max_rows=60)
    assert [r.proposal for r in one] == [r.proposal for r in two] != []
    assert one[0].figures["rows"] + one[0].figures["rows_held_out"] == 60
    same_state(first, second)
    assert not first.payloads


def test_padding_does_not_count() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 10), nn.Linear(10, 3)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            y: Tensor = self.down(torch.tanh(self.up(x)))
            return y * attention_mask[..., None]

    mask = torch.ones(2, 5, dtype=torch.int64)
    mask[1, 2:] = 0
    x = torch.randn(2, 5, 4, dtype=F64)
    model = traced(Tokens(), x, mask)
    present = cut(model, "axis:up/neurons", (0, 3, 4))

    def batches(padding: float) -> list[Batch]:
        generator = torch.Generator().manual_seed(0)
        items: list[Batch] = []
        for _ in range(12):
            x = torch.randn(2, 5, 4, generator=generator, dtype=F64)
            x[mask == 0] = padding
            items.append(((x, mask), {}))
        return items

    clean, _, _ = repair(model, present, batches(0.0))
    dirty, records, _ = repair(model, present, batches(50.0))
    assert records[0].figures["rows"] == 9 * int(mask.sum())
    same_state(clean, dirty)


def test_shortcut_error_is_made_up_for() -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 6)
            self.c, self.d = nn.Linear(6, 12), nn.Linear(12, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.b(torch.relu(self.a(x)))
            y: Tensor = x + self.d(torch.relu(self.c(x)))
            return y

    model = traced(Blocks(), torch.randn(4, 6, dtype=F64))
    present = cut_quarter(model, ("neurons",))
    data, unseen = rows(16), rows(4)
    goals = find(model, present, "cut", residual=True).goals
    assert [(g.layer.node, g.source, g.shortcut) for g in goals] == [
        ("linear_1", "add", "x"),
        ("linear_3", "add_1", "add"),
    ]
    residual, _, _ = repair(model, present, data)
    layer, _, _ = repair(model, present, data, goal="layer")
    errors = [missed(model, m, unseen) for m in (residual, layer, present)]
    assert errors == sorted(errors)
    assert errors[0] < errors[1]


def test_scope_all_refits_layers_behind_the_cut() -> None:
    module, args, kwargs = MODELS["bert"](dtype=F64)
    model = trace(module, args, kwargs)
    present = cut(model, model.find("axis:*layer.0.*/neurons")[0], (0, 1, 2, 3, 4, 5))
    few = find(model, present, "cut", residual=True).goals
    many = find(model, present, "all", residual=True).goals
    assert len(few) == 1
    assert {g.layer.node for g in few} < {g.layer.node for g in many}
    assert find(model, model, "all", residual=True).goals == []


def test_a_bias_is_made_only_where_it_pays() -> None:
    model = traced(Mlp(bias=False), torch.randn(4, 6, dtype=F64))
    with torch.no_grad():
        bias = model.tensor("up.bias")
        assert bias is not None
        bias += 5.0
    units = tuple(range(12))
    present = cut(model, "axis:up/neurons", units)
    grown, records, _ = repair(model, present, rows(8))
    assert records[0].kind == "passed"
    created = grown.tensor("down.bias")
    assert isinstance(created, nn.Parameter)
    kept, _, _ = repair(model, present, rows(8), bias="keep")
    assert "down.bias" not in kept.state_dict()
    assert missed(model, grown, rows(2)) < missed(model, kept, rows(2))
    with torch.no_grad():
        bias.zero_()  # now nothing is constant: a bias has nothing to hold
    centred = cut(model, "axis:up/neurons", units)
    plain, records, _ = repair(model, centred, rows(64))
    assert records[0].kind == "passed"
    assert "down.bias" not in plain.state_dict()


def test_memory_limits_are_said_and_kept() -> None:
    model = traced(Mlp(), torch.randn(4, 6, dtype=F64))
    wide = nn.Sequential(nn.Linear(6, 900), nn.ReLU(), nn.Linear(900, 5))
    big = traced(wide, torch.randn(4, 6, dtype=F64))
    present = cut(big, "axis:0/neurons", (0, 1))
    same, records, remarks = repair(big, present, rows(4), gram_mib=1)
    assert records == []
    assert [(r.kind, r.code, r.node) for r in remarks] == [("missed", "memory-limit", "linear_1")]
    assert "linear_1" in remarks[0].reason
    same_state(same, present)

    small = cut(model, "axis:up/neurons", tuple(range(12)))
    data = rows(6, size=4000)
    _, records, remarks = repair(model, small, data, cache_mib=1)
    assert [r.code for r in remarks] == ["fewer-batches"]
    used = remarks[0].figures["batches"]
    assert 2 <= used < 6
    assert records[0].figures["rows"] + records[0].figures["rows_held_out"] == used * 4000
    _, records, remarks = repair(model, small, rows(6, size=40000), cache_mib=1)
    assert records == []
    assert [r.code for r in remarks] == ["memory-limit"]


def test_nothing_to_do_is_said() -> None:
    model = traced(Mlp(), torch.randn(4, 6, dtype=F64))
    _, records, remarks = repair(model, model, rows(4))
    assert records == []
    assert [r.code for r in remarks] == ["nothing-cut"]
    present = cut(model, "axis:up/neurons", (0, 1))
    assert [r.code for r in repair(model, present, rows(1))[2]] == ["too-little-data"]
    _, _, remarks = drive(Reconstruct(), present, Context(data=rows(4)))
    assert [r.code for r in remarks] == ["no-baseline"]
    broken: list[Batch] = [((x.fill_(float("nan")),), {}) for (x,), _ in rows(4)]
    assert [r.code for r in repair(model, present, broken)[2]] == ["not-finite"]


def test_layers_that_cannot_be_refit_are_named() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.down(self.down(self.up(x)))
            return y.sum(-1)

    model = traced(Tied(), torch.randn(4, 6, dtype=F64))
    node = next(n for n in model.graph.nodes if n.name == "linear_1")
    seen = affine(model, node)
    assert isinstance(seen, Unfit)
    assert seen.code == "shared-tensor"


# ---- the rewrite


def test_a_missing_or_changed_payload_is_refused() -> None:
    model = traced(Mlp(), torch.randn(4, 6, dtype=F64))
    weight = torch.zeros(5, 16, dtype=F64)
    payload = {"weight": weight, "bias": torch.ones(5, dtype=F64)}
    proposal = Refit(node="linear_1", digest=digest(payload))
    record = refused(model, proposal)
    assert record.code == "missing-payload"
    assert "reconstruct" in record.remedy
    assert refused(model, Refit(node="linear_9", digest="")).code == "unknown-target"

    manager = PassManager(copy.deepcopy(model), verify="full")
    manager.model.payloads[proposal.digest] = payload
    weight.fill_(1.0)
    assert manager.apply(proposal).code == "changed-payload"
    weight.zero_()
    with manager.transaction() as transaction:
        assert manager.apply(proposal).kind == "passed"
        x = torch.randn(3, 6, dtype=F64)
        assert torch.equal(manager.model(x), torch.ones(3, 5, dtype=F64))
        transaction.roll_back()
    same_state(manager.model, model)
    narrow = {"weight": torch.zeros(5, 4, dtype=F64)}
    stale = Refit(node="linear_1", digest=digest(narrow))
    manager.model.payloads[stale.digest] = narrow
    assert manager.apply(stale).code == "stale-payload"


@pytest.mark.parametrize(
    "options",
    [{"ridge": -1.0}, {"held_out": 0.0}, {"min_gain": 1.0}, {"max_rows": 0}, {"batches": -1}],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)).replace("_", "-")):
        Reconstruct(**options)
