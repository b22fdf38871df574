"""Growth that preserves the function, and cuts that undo it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import esper
from esper.ir.anatomy import Axis
from esper.ir.model import Model
from esper.ir.verifier import verify
from esper.propose import MergeUnits, PruneUnits, RampUnits, WidenUnits, parse
from esper_passes.growth_init import share
from esper_passes.growth_mask import masked_units, ramp
from esper_passes.widen import Widen
from tests import oracle
from tests.live.training import OPTIMIZERS, batch, step
from tests.live.training import traced as untrained
from tests.passes.growth_models import build
from tests.passes.support import drive, refused

# Kinds that are widened exactly, model by model.
WIDENED = {
    "fused": {"heads", "neurons", "head-size", "embedding"},  # q, k, v in one; tied embedding
    "rotary": {"kv-groups", "query-heads", "neurons", "head-size", "embedding"},
    "written": {"heads", "head-size", "embedding"},
    "convolutional": {"channels"},
}
SEED = 3


@cache
def _traced(name: str) -> tuple[Model, tuple[Any, ...], dict[str, Any]]:
    """One trace for all tests, which leave it as it is."""
    module, args = build(name)
    return esper.trace(module, args).eval(), args, {}


@cache
def _small() -> Model:
    return untrained()


def network() -> Model:
    """A copy of the small model of the tests of live surgery."""
    return copy.deepcopy(_small())


def _different(model: Model) -> list[Axis]:
    """One axis of each sort: layers that repeat show nothing new."""
    seen: dict[Any, Axis] = {}
    for axis in model.anatomy.axes.values():
        leaves = sorted((name.rpartition(".")[2], dim) for name, dim in axis.members)
        uses = sorted(use.kind for use in model.table.uses_of.get(axis.atom, ()))
        seen.setdefault((axis.kind, axis.size, *leaves, *uses), axis)
    return list(seen.values())


def _state(model: Model) -> tuple[str, dict[str, torch.Tensor]]:
    return str(model), {name: t.detach().clone() for name, t in model.all_tensors()}


def _same(model: Model, state: tuple[str, dict[str, torch.Tensor]]) -> None:
    text, tensors = state
    assert str(model) == text
    now = dict(model.all_tensors())
    assert now.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(now[name], tensor), name


def _wide(model: Model, **fields: Any) -> tuple[Model, Any]:
    wide = copy.deepcopy(model)
    return wide, esper.PassManager(wide).apply(WidenUnits(**fields))


@pytest.mark.own_verification
@pytest.mark.parametrize("name", WIDENED)
def test_the_function_stays_and_cuts_undo_it(name: str) -> None:
    model, args, kwargs = _traced(name)
    outputs, gradients = oracle.run(model, args, kwargs), oracle.gradients(model, args, kwargs)
    before = _state(model)
    reached: dict[str, float] = {}  # gradients of new units, by kind
    for axis in _different(model):
        count = min(2, axis.size)
        manager = esper.PassManager(model)
        with manager.transaction() as transaction:
            record = manager.apply(WidenUnits(axis=axis.id, count=count, seed=SEED))
            if record.kind != "passed":
                assert record.kind == "missed", record.line()
                continue
            verify(model)
            grown = model.anatomy.axes[axis.id]
            assert grown.size == axis.size + count
            assert grown.unit_ids[: axis.size] == axis.unit_ids
            _equal(oracle.run(model, args, kwargs), outputs, axis.id)
            cut = PruneUnits(axis=axis.id, units=grown.unit_ids[axis.size :])
            now = oracle.gradients(model, args, kwargs)
            reached[axis.kind] = max(reached.get(axis.kind, 0.0), _of_new(model, cut, now))
            if axis.lossy_reason is None:
                _learns_as_before(model, cut, gradients, now)
                assert manager.apply(cut).kind == "passed"
                _same(model, before)
                assert manager.apply(WidenUnits(axis=axis.id, count=1)).kind == "passed"
                born = model.anatomy.axes[axis.id].unit_ids[-1]
                assert born == max(cut.units) + 1  # never reused
            transaction.roll_back()
        _same(model, before)
    assert reached.keys() == WIDENED[name]
    assert all(reached.values())


def _equal(found: list[torch.Tensor], expected: list[torch.Tensor], what: str) -> None:
    for one, other in zip(found, expected, strict=True):
        oracle.close(one, other, what)


def _learns_as_before(
    model: Model,
    cut: PruneUnits,
    before: dict[str, torch.Tensor | None],
    after: dict[str, torch.Tensor | None],
) -> None:
    """Gradients of what was there are as they were."""
    plan = model.plan(cut)
    assert isinstance(plan, esper.plan.Plan)
    for name, gradient in before.items():
        kept = after[name]
        if gradient is None or kept is None:
            assert gradient is kept, name
            continue
        for op in plan.state.ops.get(name, ()):
            kept = op(kept)  # type: ignore[operator]
        oracle.close(kept, gradient, name)


def _of_new(model: Model, cut: PruneUnits, gradients: dict[str, torch.Tensor | None]) -> float:
    """Sum of the gradients that a cut would take along."""
    plan = model.plan(cut)
    assert isinstance(plan, esper.plan.Plan)
    new = 0.0
    for name, gradient in gradients.items():
        if gradient is not None and name in plan.state.ops:
            left = gradient
            for op in plan.state.ops[name]:
                left = op(left)  # type: ignore[operator]
            new += float(gradient.abs().sum() - left.abs().sum())
    return new


@pytest.mark.own_verification
@pytest.mark.parametrize("name", list(WIDENED))
def test_copies_keep_the_function_and_merging_undoes_them(name: str) -> None:
    model, args, kwargs = _traced(name)
    outputs, before = oracle.run(model, args, kwargs), _state(model)
    for axis in _different(model):
        if axis.lossy_reason is not None or axis.frozen_reason is not None:
            continue
        parents = (axis.unit_ids[-1], axis.unit_ids[0])
        manager = esper.PassManager(model)
        with manager.transaction() as transaction:
            record = manager.apply(
                WidenUnits(axis=axis.id, count=2, init="net2net", sources=parents, seed=SEED)
            )
            assert record.kind == "passed", record.line()
            assert record.figures["parents"] == list(parents)
            verify(model)
            _equal(oracle.run(model, args, kwargs), outputs, axis.id)
            copies = model.anatomy.axes[axis.id].unit_ids[axis.size :]
            merged = manager.apply(MergeUnits(axis=axis.id, units=copies, into=parents))
            assert merged.kind == "passed", merged.line()
            assert merged.figures["tolerance"] == "reassociates"
            _same(model, before)
            transaction.roll_back()
    _same(model, before)


@pytest.mark.own_verification
@pytest.mark.parametrize("name", ["fused", "convolutional"])
def test_masked_units_come_in_by_and_by(name: str) -> None:
    model, args, kwargs = _traced(name)
    outputs, before = oracle.run(model, args, kwargs), _state(model)
    for axis in _different(model):
        if axis.lossy_reason is not None or axis.frozen_reason is not None:
            continue
        manager = esper.PassManager(model)
        with manager.transaction() as transaction:
            grow = WidenUnits(axis=axis.id, count=2, init="masked", seed=SEED)
            assert manager.apply(grow).kind == "passed"
            verify(model)
            _equal(oracle.run(model, args, kwargs), outputs, axis.id)
            new = model.anatomy.axes[axis.id].unit_ids[axis.size :]
            assert masked_units(model, model.anatomy.axes[axis.id]) == list(new)
            half, whole = ramp(axis.id, 2)
            assert manager.apply(half).kind == "passed"
            moved = oracle.run(model, args, kwargs)
            assert not torch.equal(moved[0], outputs[0])
            assert manager.apply(half).code == "no-mask"  # it is there already
            assert manager.apply(whole).kind == "passed"
            assert "growth_mask" not in str(model)
            assert manager.apply(whole).code == "no-mask"
            assert manager.apply(PruneUnits(axis=axis.id, units=new)).kind == "passed"
            _same(model, before)
            transaction.roll_back()
    _same(model, before)


@given(
    st.lists(st.floats(-1e6, 1e6, width=32).filter(lambda x: x == 0 or abs(x) > 1e-30), min_size=1),
    st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    st.integers(0, 99),
)
@settings(deadline=None)
def test_a_share_and_the_rest_are_the_weight(
    values: list[float], dtype: torch.dtype, seed: int
) -> None:
    weights = torch.tensor(values, dtype=torch.float64).to(dtype)
    weights = weights[torch.isfinite(weights) & ((weights == 0) | (weights.abs() > 1e-4))]
    part = share(weights, torch.Generator().manual_seed(seed))
    rest = weights - part
    assert torch.equal(part + rest, weights)
    assert bool(((part.abs() <= weights.abs()) & (part * weights >= 0)).all())


def test_copies_part_ways() -> None:
    model = network()
    wide, record = _wide(model, axis="axis:block.0/neurons", count=12, init="net2net")
    assert record.kind == "passed"
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        step(wide, optimizer, batch(generator))
    rows = wide.get_parameter("block.0.weight").detach()
    assert len(torch.unique(rows, dim=0)) > 20  # a ReLU that never fires learns nothing


@pytest.mark.parametrize(
    ("name", "policy", "init"),
    [
        ("adamw", "keep", "zero"),
        ("adamw", "keep", "net2net"),
        ("adamw", "asymmetric", "net2net"),
        ("adamw", "zero", "random"),
        ("momentum", "asymmetric", "net2net"),
        ("adafactor", "keep", "net2net"),
        ("adafactor", "asymmetric", "zero"),
        ("adagrad", "keep", "zero"),
        ("adagrad", "zero", "net2net"),
    ],
)
def test_growth_in_training(name: str, policy: Any, init: Any) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        step(model, optimizer, batch(generator))
    session = esper.Session(model, optimizer)
    objects, inputs = dict(model.named_parameters()), batch(generator)
    model.eval()
    before = model(inputs[0])
    with session.boundary() as boundary:
        for axis in ("axis:block.0/neurons", "axis:stem/neurons"):
            (record,) = boundary.submit(
                WidenUnits(axis=axis, count=2, init=init), policy=esper.StatePolicy(moments=policy)
            )
            assert record.kind == "passed", record.line()
    if init != "random":
        torch.testing.assert_close(model(inputs[0]), before)
    model.train()
    for parameter_name, parameter in model.named_parameters():
        assert parameter is objects[parameter_name]
    new = model.get_parameter("block.0.weight").detach()[-2:].clone()
    for _ in range(3):
        assert torch.isfinite(torch.tensor(step(model, optimizer, batch(generator))))
    assert not torch.equal(model.get_parameter("block.0.weight").detach()[-2:], new)  # it learns
    session.check()


class Tied(nn.Module):
    """One matrix there and back."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode and decode."""
        hidden = torch.relu(nn.functional.linear(x, self.weight))
        return hidden @ self.weight


class PostNorm(nn.Module):
    """Normalises its residual stream in place, so nothing keeps the mean of new units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.block = nn.Linear(8, 8)
        self.last = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.norm(self.stem(x))
        logits: torch.Tensor = self.head(self.last(x + self.block(x)))
        return logits


class Grouped(nn.Module):
    """Grouped convolution and group norm: whole groups come, and channels within each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.grouped = nn.Conv2d(6, 9, 3, padding=1, groups=3)
        self.norm = nn.GroupNorm(3, 9)
        self.head = nn.Conv2d(9, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps of two channels."""
        out: torch.Tensor = self.head(torch.relu(self.norm(self.grouped(self.stem(x)))))
        return out


@pytest.mark.own_verification
@pytest.mark.parametrize("init", ["zero", "net2net", "masked"])
def test_groups_of_channels(init: Any) -> None:
    inputs = (torch.randn(2, 3, 4, 4, dtype=torch.float64),)
    model = esper.trace(Grouped().double(), inputs)
    (groups,) = model.find("axis:*/groups")
    kinds = {axis.kind for axis in model.anatomy.axes.values() if axis.frozen_reason is None}
    assert {"groups", "channels", "embedding"} >= kinds  # those in a group share statistics
    for axis in (groups, *model.find("axis:stem/channels")):
        wide, record = _wide(model, axis=axis, count=2, init=init)
        assert record.kind == "passed", record.line()
        verify(wide)
        _equal(oracle.run(wide, inputs, {}), oracle.run(model, inputs, {}), axis)
    grouped = wide.get_parameter("grouped.weight")
    assert grouped.shape[1] == 4  # two channels more in each group


@pytest.mark.parametrize(
    ("axis", "fields", "code"),
    [
        ("axis:head/neurons", {}, "frozen-axis"),
        ("axis:none/neurons", {}, "unknown-target"),
        ("axis:block.0/neurons", {"count": 2, "sources": (1,)}, "too-few-sources"),
        ("axis:block.0/neurons", {"count": 1, "sources": (12,)}, "unknown-unit"),
        ("axis:block.0/neurons", {"init": "gradmax"}, "missing-payload"),
        ("axis:block.0/neurons", {"count": 10**9}, "too-many-units"),
    ],
)
def test_refusals(axis: str, fields: dict[str, Any], code: str) -> None:
    _, record = _wide(network(), **{"axis": axis, "count": 1, **fields})
    assert (record.kind, record.code) == ("missed", code)


def test_more_refusals() -> None:
    tied = esper.trace(Tied(), (torch.randn(3, 4, dtype=torch.float64),))
    (hidden,) = [axis for axis in tied.anatomy.axes.values() if axis.cuttable]
    assert _wide(tied, axis=hidden.id, count=1)[1].code == "shared-tensor"
    inputs = (torch.randn(3, 6, dtype=torch.float64),)
    model = esper.trace(PostNorm().double(), inputs)
    (stream,) = model.find("axis:*/embedding")
    assert _wide(model, axis=stream, count=1)[1].code == "coupled-axis"
    assert _wide(model, axis=stream, count=1, init="net2net")[1].code == "coupled-axis"
    wide, record = _wide(model, axis=stream, count=1, lossy=True)
    assert (record.kind, record.figures["tolerance"]) == ("passed", "lossy")
    moved = oracle.run(wide, inputs, {})[0] - oracle.run(model, inputs, {})[0]
    assert 0 < float(moved.detach().abs().max()) < 0.5
    cut, _ = network().apply(PruneUnits(axis="axis:block.0/neurons", units=tuple(range(11))))
    assert _wide(cut, axis="axis:block.0/neurons", count=1)[1].code == "single-unit"


@pytest.mark.own_verification
class Reading(nn.Module):
    """Six neurons, and what makes one number of them without a weight of its own."""

    def __init__(self, read: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.up = nn.Linear(4, 6)
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.up, x)


def _reading(read: Callable[[nn.Module, Tensor], Tensor]) -> Model:
    return esper.trace(Reading(read).double(), (torch.randn(3, 4, dtype=torch.float64),))


@pytest.mark.parametrize(
    "read",
    [
        lambda up, x: up(x).exp().sum(-1),
        lambda up, x: up(x) @ up(x).transpose(0, 1),
        lambda up, x: torch.cdist(up(x), up(x) + 1),
    ],
    ids=["of what is not zero at zero", "with itself", "distances"],
)
def test_units_that_nothing_can_keep_out_do_not_grow(read: Any) -> None:
    record = refused(_reading(read), WidenUnits(axis="axis:up/neurons", count=2))
    assert record.code == "no-outgoing-weight"


@pytest.mark.parametrize(
    ("read", "shares"),
    [
        (lambda up, x: up(x).sum(-1), True),
        (lambda up, x: (2 * up(x) * x.mean()).cumsum(-1)[:, -1], True),
        (lambda up, x: up(x).relu().sum(-1), False),
        (lambda up, x: up(x).norm(dim=-1), False),
        (lambda up, x: (up(x) * up(x)).sum(-1), False),
        (lambda up, x: (up(x) * up(x + 1).sigmoid()).sum(-1), False),
    ],
    ids=["sum", "scaled", "relu", "norm", "square", "gate of the same"],
)
def test_copies_share_where_their_effect_is_linear(read: Any, shares: bool) -> None:
    model = _reading(read)
    wish = WidenUnits(axis="axis:up/neurons", count=2, init="net2net")
    if not shares:
        assert refused(model, wish).code == "no-share"
        return
    wide, record = model.apply(wish)
    assert record.kind == "passed", record.line()
    x = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(wide(x), model(x), rtol=1e-12, atol=1e-12)


def test_several_copies_of_one_unit_share_with_each_other() -> None:
    model, args, kwargs = _traced("fused")
    axis = model.anatomy.axes["axis:block.up/neurons"]
    outputs, before = oracle.run(model, args, kwargs), _state(model)
    manager = esper.PassManager(model)
    with manager.transaction() as transaction:
        for fields in ({"count": 25}, {"count": 4, "sources": (2, 2, 0, 2)}):
            grow = WidenUnits(axis=axis.id, init="net2net", seed=SEED, **fields)
            record = manager.apply(grow)
            assert record.kind == "passed", record.line()
            _equal(oracle.run(model, args, kwargs), outputs, axis.id)
            shares = model.get_parameter("block.down.weight").detach()
            assert len(torch.unique(shares, dim=1).T) == axis.size + grow.count  # all differ
            copies = model.anatomy.axes[axis.id].unit_ids[axis.size :]
            parents = tuple(record.figures["parents"])
            merge = MergeUnits(axis=axis.id, units=copies, into=parents)
            assert manager.apply(merge).kind == "passed"
            _same(model, before)
        transaction.roll_back()


def test_merges_are_refused_where_they_mean_nothing() -> None:
    axis = "axis:block.0/neurons"
    for units, into, code in (
        ((1, 2), (3,), "unpaired-unit"),
        ((1,), (1,), "repeated-unit"),
        ((1,), (99,), "unknown-unit"),
    ):
        _, record = network().apply(MergeUnits(axis=axis, units=units, into=into))
        assert (record.kind, record.code) == ("missed", code)
    model, _, _ = _traced("fused")
    (stream,) = model.find("axis:*/embedding")
    _, record = model.apply(MergeUnits(axis=stream, units=(1,), into=(0,)))
    assert record.code == "coupled-axis"


def test_proposals_survive_json_and_plans_a_file(tmp_path: Path) -> None:
    model, args, _ = _traced("fused")
    esper.save(model, tmp_path / "fused.esper")
    loaded = esper.load(tmp_path / "fused.esper")
    for axis in _different(model):
        proposal = WidenUnits(axis=axis.id, count=2, init="zero", seed=1)
        assert parse(proposal.model_dump_json()) == proposal
        mine, theirs = model.plan(proposal), loaded.plan(proposal)
        if isinstance(mine, esper.plan.Plan):
            assert isinstance(theirs, esper.plan.Plan)
            assert mine.digest == theirs.digest
    masked, _ = model.apply(WidenUnits(axis="axis:block.up/neurons", count=2, init="masked"))
    esper.save(masked, tmp_path / "masked.esper")
    again = esper.load(tmp_path / "masked.esper")
    _equal([again(*args)], [model(*args)], "masked")
    whole = RampUnits(axis="axis:block.up/neurons", alpha=1)
    opened, record = again.apply(whole)
    assert record.kind == "passed"
    assert torch.equal(opened(*args), masked.apply(whole)[0](*args))
    exported = torch.export.export(opened, args).module()
    torch.testing.assert_close(exported(*args), opened(*args))


@pytest.mark.own_verification
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3)), min_size=2, max_size=4),
    st.randoms(use_true_random=False),
    st.sampled_from(["fused", "convolutional"]),
)
@settings(deadline=None, max_examples=4)
def test_any_order_of_growths_and_cuts_comes_back(
    growths: list[tuple[int, int]], order: Any, name: str
) -> None:
    model, args, kwargs = _traced(name)
    outputs, before = oracle.run(model, args, kwargs), _state(model)
    exact = [a for a in _different(model) if not (a.frozen_reason or a.lossy_reason)]
    manager = esper.PassManager(model)
    with manager.transaction() as transaction:
        cuts: list[PruneUnits] = []
        for seed, (index, count) in enumerate(growths):
            axis = model.anatomy.axes[exact[index % len(exact)].id]
            grow = WidenUnits(axis=axis.id, count=count, seed=seed)
            assert manager.apply(grow).kind == "passed"
            units = model.anatomy.axes[axis.id].unit_ids[axis.size :]
            cuts.append(PruneUnits(axis=axis.id, units=units))
        _equal(oracle.run(model, args, kwargs), outputs, name)
        verify(model)
        order.shuffle(cuts)
        for cut in cuts:
            assert manager.apply(cut).kind == "passed"
        _same(model, before)
        transaction.roll_back()


def test_the_pass_widens_and_aligns() -> None:
    model = network()
    wide, records, _ = drive(Widen(ratio=1.3, align=8), model)
    sizes = {n: a.size for n, a in wide.anatomy.axes.items()}
    assert (sizes["axis:stem/neurons"], sizes["axis:block.0/neurons"]) == (16, 16)
    assert {r.kind for r in records} == {"passed"}
    again, records, _ = drive(Widen(ratio=1.01, align=8), wide)
    assert str(again) == str(wide)
    _, records, remarks = drive(Widen(axes="nothing"), model)
    assert (records, [r.code for r in remarks]) == ([], ["no-axis"])
    _, records, remarks = drive(Widen(ratio=1.01), model)
    assert (records, {r.code for r in remarks}) == ([], {"nothing-to-add"})


@pytest.mark.parametrize("options", [{"ratio": 1.0}, {"align": 0}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Widen(**options)
