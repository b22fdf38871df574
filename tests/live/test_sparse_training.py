"""Dynamic sparse training: masks regrow by dense gradients, and everything follows."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.ir.model import Model
from esper.ir.sparsity import masks
from esper.live.checkpoint import copied
from esper.propose import FoldMask, PruneUnits, RegrowMask, SetMask, WidenUnits
from esper_passes.regrow_mask import RegrowMaskRewrite, swapped
from tests.live.training import CUT, OPTIMIZERS, batch, step, traced

WEIGHT = "block.2.weight"


@pytest.fixture(scope="module")
def network() -> Model:
    return traced()


def _session(network: Model, name: str = "adamw", **options: Any) -> esper.Session:
    model = copy.deepcopy(network)
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    return esper.Session(model, optimizer, signals_every=1, **options)


def _train(session: esper.Session, generator: torch.Generator, steps: int) -> None:
    for _ in range(steps):
        assert math.isfinite(step(session.model, session.optimizer, batch(generator)))


def _submit(session: esper.Session, *proposals: Any) -> None:
    with session.boundary() as boundary:
        for record in boundary.submit(*proposals):
            assert record.kind == "passed", record.line()


def _break_off(session: esper.Session, *proposals: Any) -> None:
    with session.boundary() as boundary:
        assert {record.kind for record in boundary.submit(*proposals)} == {"passed"}
        raise RuntimeError("by hand")


def test_dense_gradients_are_those_of_the_weight_as_used(network: Model) -> None:
    session = _session(network, "sgd")
    generator = torch.Generator().manual_seed(0)
    _submit(session, SetMask(tensor=WEIGHT, pattern="2:4"))
    session.signals.watch(WEIGHT, "head.weight")
    model = session.model
    used = copy.deepcopy(model)
    manager = esper.PassManager(used)
    assert manager.apply(FoldMask(tensor=WEIGHT)).kind == "passed"  # the same values, unmasked
    inputs = batch(generator)
    nn.functional.cross_entropy(used(inputs[0]), inputs[1]).backward()  # type: ignore[no-untyped-call]
    step(model, session.optimizer, inputs)
    for tensor in (WEIGHT, "head.weight"):
        wanted = used.get_parameter(tensor).grad
        assert wanted is not None
        torch.testing.assert_close(session.signals.scores(tensor, "gradient"), wanted.abs())
    off = ~masks(model)[WEIGHT].value
    assert session.signals.scores(WEIGHT, "gradient")[off].any()
    assert not model.get_parameter(WEIGHT).grad[off].any()  # type: ignore[index]
    weight = model.get_parameter("head.weight").detach()
    head = used.get_parameter("head.weight").grad
    assert head is not None
    torch.testing.assert_close(
        session.signals.scores("head.weight", "fisher"), weight.square() * head.square()
    )
    assert torch.equal(session.signals.scores("head.weight", "magnitude"), weight.abs())


@pytest.mark.parametrize("pattern", ["5:2:4", "2x3", "5:1:2x3"])
def test_gates_of_cells_are_derivatives(network: Model, pattern: str) -> None:
    session = _session(network, "sgd")
    with pytest.raises(esper.EsperError, match="set-mask"):
        session.signals.gates(WEIGHT)
    _submit(session, session.signals.mask(WEIGHT, pattern))
    session.signals.watch(WEIGHT)
    model, inputs = session.model, batch(torch.Generator())
    weight, mask = model.get_parameter(WEIGHT).detach().clone(), masks(model)[WEIGHT]
    on = mask.pattern.on(mask.value)
    gates = torch.ones_like(on, dtype=torch.float64, requires_grad=True)
    numbers = torch.arange(on.numel()).reshape(on.shape)
    owner = torch.zeros(weight.shape, dtype=torch.int64)
    for number in range(on.numel()):
        owner[mask.pattern.spread(numbers == number, tuple(weight.shape))] = number
    scaled = {WEIGHT: weight * gates.flatten()[owner]}
    logits = torch.func.functional_call(copy.deepcopy(model), scaled, (inputs[0],))
    torch.autograd.backward(nn.functional.cross_entropy(logits, inputs[1]))
    step(model, session.optimizer, inputs)
    # The weight has moved by one step since, the gradient has not.
    with torch.no_grad():
        model.get_parameter(WEIGHT).copy_(weight)
    found = session.signals.gates(WEIGHT)
    assert gates.grad is not None
    torch.testing.assert_close(found[on], gates.grad[on])
    assert torch.isnan(found[~on]).all()
    assert not gates.grad[~on].any()


@pytest.mark.parametrize("pattern", ["2:4", "5:2:4", "5:1:2x3", "2x2", "1x1"])
def test_regrowth_keeps_the_number_and_the_pattern(network: Model, pattern: str) -> None:
    session = _session(network)
    generator = torch.Generator().manual_seed(0)
    _submit(session, SetMask(tensor=WEIGHT, pattern=pattern))
    session.signals.watch(WEIGHT)
    model, live = session.model, int(masks(session.model)[WEIGHT].value.sum())
    for _ in range(3):
        _train(session, generator, 2)
        before = masks(model)[WEIGHT].value
        weight = model.get_parameter(WEIGHT)
        old = weight.detach().clone()
        _submit(session, session.signals.regrow(WEIGHT, fraction=0.4))
        mask = masks(model)[WEIGHT]
        assert mask.intact
        assert int(mask.value.sum()) == live
        grown, gone = mask.value & ~before, before & ~mask.value
        assert grown.any()
        assert not weight[grown].any()
        stays = before & mask.value
        assert torch.equal(weight[stays], old[stays])
        state = session.optimizer.state[weight]
        for key in ("exp_avg", "exp_avg_sq"):
            assert not state[key][grown | gone].any()
            assert state[key][stays].any()
        _train(session, generator, 1)
        assert weight[grown].any()  # what grew learns
    assert masks(model)[WEIGHT].life.regrown == 3


def test_what_falls_and_what_grows() -> None:
    on = torch.tensor([[True, True, True, False, False, False]])
    worth = torch.tensor([[3.0, 1.0, 2.0, 0.0, 0.0, 0.0]])
    growth = torch.tensor([[9.0, 0.5, 9.0, 0.1, 0.9, 0.8]])
    assert swapped(on, worth, growth, 1).tolist() == [[True, False, True, False, True, False]]
    assert swapped(on, worth, growth, 2).tolist() == [[True, False, True, False, True, False]]
    groups = torch.tensor([[True, False, True, False], [False, True, True, False]])
    worth = torch.tensor([[3.0, 0.0, 1.0, 0.0], [0.0, 2.0, 4.0, 0.0]])
    growth = torch.tensor([[0.0, 1.0, 9.0, 5.0], [7.0, 9.0, 9.0, 1.0]])
    first = [[True, False, False, True], [False, True, True, False]]
    assert swapped(groups, worth, growth, 1).tolist() == first
    both = [[True, False, False, True], [True, False, True, False]]
    assert swapped(groups, worth, growth, 2).tolist() == both


def test_the_fraction_falls_along_a_cosine() -> None:
    proposal = RegrowMask(tensor=WEIGHT, fraction=0.4, until=100)
    found = [RegrowMaskRewrite.fraction(proposal, tick) for tick in (0, 50, 100)]
    assert found == pytest.approx([0.4, 0.2, 0.0])
    assert RegrowMaskRewrite.fraction(RegrowMask(tensor=WEIGHT, fraction=0.4), 70) == 0.4


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw", "adafactor", "adamax"])
def test_moments_of_what_is_off_are_zero(network: Model, name: str) -> None:
    session = _session(network, name)
    generator = torch.Generator().manual_seed(0)
    _train(session, generator, 2)
    _submit(session, SetMask(tensor=WEIGHT, pattern="2:4"))
    weight, off = session.model.get_parameter(WEIGHT), ~masks(session.model)[WEIGHT].value
    for _ in range(2):
        for value in session.optimizer.state[weight].values():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                assert not (value[off].abs() > 1e-7).any()  # Adamax keeps its epsilon
        _train(session, generator, 1)


def test_everything_follows_together(network: Model) -> None:
    ema = torch.optim.swa_utils.AveragedModel(
        model := copy.deepcopy(network), avg_fn=lambda a, b, _: torch.lerp(a, b, 0.3)
    )
    optimizer = OPTIMIZERS["adamw"](list(model.parameters()))
    session = esper.Session(model, optimizer, ema=ema, signals_every=1)
    session.signals.watch(WEIGHT)
    generator = torch.Generator().manual_seed(0)

    def train() -> None:
        for _ in range(2):
            step(model, optimizer, batch(generator))
            ema.update_parameters(model)

    train()
    _submit(session, session.signals.mask(WEIGHT, "2:4", "taylor"))
    train()
    _submit(session, session.signals.regrow(WEIGHT))
    train()
    _submit(session, CUT, WidenUnits(axis=CUT.axis, count=3))
    train()
    average = ema.module
    assert isinstance(average, Model)
    assert torch.equal(masks(average)[WEIGHT].value, masks(model)[WEIGHT].value)
    assert not masks(model)[WEIGHT].intact
    _submit(session, session.signals.mask(WEIGHT, "2:4", "fisher"))
    assert masks(model)[WEIGHT].intact
    before = {name: tensor.clone() for name, tensor in model.all_tensors()}
    states = copied(dict(optimizer.state[model.get_parameter(WEIGHT)]))
    with pytest.raises(RuntimeError, match="by hand"):
        _break_off(session, session.signals.regrow(WEIGHT), FoldMask(tensor=WEIGHT))
    for name, tensor in model.all_tensors():
        assert torch.equal(tensor, before[name]), name
    for key, value in optimizer.state[model.get_parameter(WEIGHT)].items():
        assert torch.equal(value, states[key])
    _submit(session, FoldMask(tensor=WEIGHT))
    assert masks(average) == masks(model) == {}
    assert (model.get_parameter(WEIGHT) == 0).sum() >= 60
    assert len(model.payloads) <= 1  # scores of before are forgotten


def test_a_sparse_run_resumes_bit_for_bit(network: Model) -> None:
    def go_on(session: esper.Session, generator: torch.Generator, until: int) -> None:
        while session.tick < until:
            _train(session, generator, 1)
            with session.boundary() as boundary:
                if session.tick == 2:
                    boundary.submit(SetMask(tensor=WEIGHT, pattern="1:4"))
                    session.signals.watch(WEIGHT)
                elif session.tick > 2 and session.tick % 2:
                    boundary.submit(session.signals.regrow(WEIGHT, until=10))

    first, generator = _session(network), torch.Generator().manual_seed(0)
    go_on(first, generator, 6)
    state, random = copied(first.state_dict()), generator.get_state()
    go_on(first, generator, 10)
    second = _session(network)
    second.load_state_dict(state)
    go_on(second, generator.set_state(random), 10)
    assert [h["type"] for h in first.model.history].count("regrow-mask") > 2
    assert first.model.history == second.model.history
    for (name, one), (_, two) in zip(
        first.model.all_tensors(), second.model.all_tensors(), strict=True
    ):
        assert torch.equal(one, two), name
    assert masks(first.model)[WEIGHT].life == masks(second.model)[WEIGHT].life


def test_dead_units_are_proposed(network: Model) -> None:
    session = _session(network, "sgd")
    model = session.model
    with torch.no_grad():
        model.get_parameter("block.0.bias")[5] = -100.0  # never fires
    _submit(session, SetMask(tensor=WEIGHT, pattern="10:8:12"))  # four columns go
    generator = torch.Generator().manual_seed(0)
    assert {unit for p in session.signals.dead() for unit in p.units}.isdisjoint({5})
    _train(session, generator, 5)
    (proposal,) = [p for p in session.signals.dead(samples=5) if p.axis == CUT.axis]
    off = (~masks(model)[WEIGHT].value.any(0)).nonzero().flatten().tolist()
    assert set(proposal.units) >= {5, *off}
    inputs = batch(generator)[0]
    model.eval()
    before = model(inputs)
    _submit(session, proposal)
    torch.testing.assert_close(model(inputs), before)
    assert isinstance(proposal, PruneUnits)


def test_compiled_models_regrow_at_random(network: Model) -> None:
    torch._dynamo.reset()
    session = _session(network, "sgd")
    _submit(session, SetMask(tensor=WEIGHT, pattern="2:4"))
    session.signals.watch(WEIGHT)
    session.compile(backend="aot_eager")
    generator = torch.Generator().manual_seed(0)
    _train(session, generator, 1)
    with pytest.raises(esper.EsperError, match="compiled"):
        session.signals.regrow(WEIGHT)
    _submit(session, RegrowMask(tensor=WEIGHT, grow="random", seed=3))
    _train(session, generator, 1)
    assert masks(session.model)[WEIGHT].intact
    session.close()
