"""Boundary signals against autograd of explicit masks, and that training never notices them."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.ir.ecology import SlotLife
from esper.ir.gates import gated
from esper.ir.model import Model
from esper.live.checkpoint import copied
from esper.propose import PruneUnits, WidenUnits
from tests.live.training import CUT, DROP, NARROW, OPTIMIZERS, batch, step, traced

AXIS, PHAGE, SLOT = "axis:block.0/neurons", "phage:block", "slot:block.out"


@cache
def _traced() -> Model:
    return traced()


def _network() -> Model:
    return copy.deepcopy(_traced())


class Attention(nn.Module):
    """Heads, a product with scores, and a grouped convolution over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 24)
        self.out = nn.Linear(8, 6)
        self.mix = nn.Conv1d(6, 12, 3, padding=1)
        self.groups = nn.Conv1d(12, 6, 1, groups=3)
        self.last = nn.Linear(6, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Values [batch, 5, 6]."""
        parts = self.qkv(x).view(-1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        scores = torch.softmax(parts[0] @ parts[1].transpose(-1, -2), -1)
        y = (scores @ parts[2]).transpose(1, 2).reshape(-1, 5, 8)
        z = torch.tanh(self.mix((x + self.out(y)).transpose(1, 2)))
        result: torch.Tensor = self.norm(self.last(self.groups(z).transpose(1, 2)))
        return result


def _session(model: Model, **options: Any) -> tuple[esper.Session, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return esper.Session(model, optimizer, **{"signals_every": 1, **options}), optimizer


def _attention() -> tuple[Model, torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(3, 5, 6, dtype=torch.float64)
    return esper.trace(Attention().double(), (x,)), x


def _loss(model: Callable[..., Any], x: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = model(x)
    return (y.sin() * y).sum()


# -- against explicit masks ------------------------------------------------------------------------


def test_units_are_derivatives_of_masks() -> None:
    for model, x in ((_network(), batch(torch.Generator())[0]), _attention()):
        axes = list(model.anatomy.axes)
        masked, masks = gated(model, axes)
        torch.autograd.backward(_loss(masked, x))
        session, optimizer = _session(model)
        torch.autograd.backward(_loss(model, x))
        optimizer.step()
        exact = {name for name in session.signals if session.signals[name].exact} & set(axes)
        for name in exact:
            units = session.signals.units(name)
            torch.testing.assert_close(units.dmask, masks[name].grad, atol=1e-12, rtol=1e-9)
            assert session.signals[name].dmask == pytest.approx(float(units.dmask.sum()))
        kinds = {model.anatomy.axes[name].kind for name in exact}
        assert kinds >= ({"neurons"} if x.ndim == 2 else {"heads", "groups", "channels"})
        # Scores have no weight that consumes the units; a norm shares statistics.
        others = [session.signals[name] for name in axes if name not in exact]
        assert all(not signal.exact for signal in others)


def test_a_unit_against_finite_differences() -> None:
    model, (x, labels) = _network(), batch(torch.Generator())
    weight = model.get_parameter("block.2.weight")

    def loss(scale: float) -> float:
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.get_parameter("block.2.weight")[:, 3] *= scale
        return float(nn.functional.cross_entropy(other(x), labels).detach())

    wanted = (loss(1 + 1e-6) - loss(1 - 1e-6)) / 2e-6
    assert weight.shape == (10, 12)
    session, optimizer = _session(model)
    step(model, optimizer, (x, labels))
    assert float(session.signals.units(AXIS).dmask[3]) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


class Gated(nn.Module):
    """A branch and a chain with masks written out, and a seed with its alpha."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.branch = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.chain = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Sigmoid())
        self.seed = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.register_buffer("alpha", torch.tensor(0.0))

    def forward(self, x: torch.Tensor, masks: torch.Tensor | None = None) -> torch.Tensor:
        """Values [batch, 8]."""
        a, b, alpha = (1.0, 1.0, self.alpha) if masks is None else masks
        x = torch.relu(self.stem(x))
        x = x + a * self.branch(x)
        y = self.chain(x)
        y = y if masks is None else x + b * (y - x)
        result: torch.Tensor = y + alpha * self.seed(y)
        return result


def test_phages_slots_and_seeds_are_derivatives_of_masks() -> None:
    torch.manual_seed(0)
    module, x = Gated().double(), torch.randn(5, 6, dtype=torch.float64)
    model = esper.trace(module, (x,))
    masks = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    torch.autograd.backward(_loss(lambda x: module(x, masks), x))
    assert masks.grad is not None
    nodes = [node.name for node in model.graph.nodes]
    life = SlotLife(stage="blending", alpha="alpha", output=nodes[-2])
    model.ecology.set("slot:chain.out", life)
    session, optimizer = _session(model)
    before = model.get_buffer("alpha")
    torch.autograd.backward(_loss(model, x))
    optimizer.step()
    signals = session.signals
    assert signals["phage:branch"].dmask == pytest.approx(float(masks.grad[0]), rel=1e-9)
    assert signals["phage:chain"].dmask == pytest.approx(float(masks.grad[1]), rel=1e-9)
    assert signals["slot:chain.out"].dalpha == pytest.approx(float(masks.grad[2]), rel=1e-9)
    assert signals["slot:chain.out"].sign_variance == 0
    assert model.get_buffer("alpha") is before
    assert not before.requires_grad
    assert before.grad is None


def test_moments_gradients_and_alignment() -> None:
    model = _network().eval()  # behind batch statistics gradients sum to zero
    reference = copy.deepcopy(model)
    session, optimizer = _session(model)
    other = torch.optim.SGD(reference.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(3)
    values, gradients = [], []
    (exit_node,) = [p.exit for p in model.anatomy.phages.values()]
    for _ in range(3):
        inputs = batch(generator)
        step(model, optimizer, inputs)
        other.zero_grad()
        watch = torch.fx.Interpreter(reference)
        seen: list[torch.Tensor] = []
        original = watch.run_node

        def run_node(n: torch.fx.Node, run: Any = original, seen: list[torch.Tensor] = seen) -> Any:
            result = run(n)
            if n.name == exit_node:
                result.retain_grad()
                seen.append(result)
            return result

        watch.run_node = run_node  # type: ignore[method-assign]
        logits = watch.run(*inputs[:1])
        torch.autograd.backward(nn.functional.cross_entropy(logits, inputs[1]))
        other.step()
        values.append(seen[0].detach())
        gradients.append(seen[0].grad)
    signal = session.signals[SLOT]
    wide = torch.stack(values)
    assert signal.mean == pytest.approx(float(wide.mean()))
    assert signal.deviation == pytest.approx(float(wide.std(correction=0)))
    norms = torch.stack([g.square().sum() for g in gradients if g is not None])
    assert signal.gradient == pytest.approx(float(norms.mean().sqrt()))
    means = [g.mean(0) for g in gradients if g is not None]
    cosines = [nn.functional.cosine_similarity(a, b, 0) for a, b in zip(means, means[1:])]  # noqa: B905, RUF007
    assert signal.alignment == pytest.approx(float(sum(cosines) / 2))
    assert signal.samples == 3


# -- steps as they are made ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd", "adamw fused"])
def test_accumulated_and_scaled_gradients_are_told_in_units_of_the_loss(name: str) -> None:
    found = []
    for scale, pieces in ((None, 1), (1024.0, 1), (1024.0, 2)):
        model = _network()
        model.eval()  # batch norm would see other batches
        optimizer = OPTIMIZERS[name](list(model.parameters()))
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        session = esper.Session(model, optimizer, scaler=scaler, signals_every=1)
        inputs, labels = batch(torch.Generator())
        for x, y in zip(inputs.chunk(pieces), labels.chunk(pieces), strict=True):
            loss = nn.functional.cross_entropy(model(x), y) / pieces
            torch.autograd.backward(loss if scaler is None else scaler.scale(loss))
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        slot = session.signals[SLOT]
        found.append((session.signals.units(AXIS).dmask, slot.dmask, slot.gradient, slot.mean))
    for other in found[1:]:
        torch.testing.assert_close(other[0], found[0][0])
        assert other[1:] == pytest.approx(found[0][1:])


def test_a_step_that_overflows_is_no_sample() -> None:
    model = _network()
    optimizer = OPTIMIZERS["adamw fused"](list(model.parameters()))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    session = esper.Session(model, optimizer, scaler=scaler, signals_every=1)
    x, y = batch(torch.Generator())
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(x), y) * 1e300
        torch.autograd.backward(scaler.scale(loss))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert session.signals[AXIS].samples == 0
    assert torch.isnan(session.signals.units(AXIS).dmask).all()


def test_training_is_the_same_in_every_bit() -> None:
    models = []
    for every in (0, 1, 3):
        model = _network()
        session, optimizer = _session(model, signals_every=every)
        generator = torch.Generator().manual_seed(1)
        for proposal in (None, CUT, None, DROP, None):
            step(model, optimizer, batch(generator))
            model.eval()
            model(batch(generator)[0])
            model.train()
            with session.boundary() as boundary:
                if proposal is not None:
                    boundary.submit(proposal)
        models.append(model)
        samples = {signal.samples for signal in session.signals.values()}
        assert samples == {{0: 0, 1: 5, 3: 2}[every]}
    for other in models[1:]:
        for (name, one), (_, two) in zip(models[0].all_tensors(), other.all_tensors(), strict=True):
            assert torch.equal(one, two), name


def test_compiled_models_tell_what_weights_tell() -> None:
    torch._dynamo.reset()
    seen = []
    for compiled in (False, True):
        model = _network()
        session, optimizer = _session(model)
        if compiled:
            session.compile(backend="aot_eager")
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            step(model, optimizer, batch(generator))
            with session.boundary():
                pass
        seen.append(dict(session.signals))
        if compiled:
            assert {c.tick for c in session.compilations} == {0}
            assert "forward" not in vars(model)
        session.close()
    for name in (AXIS, PHAGE):
        assert seen[1][name].dmask == pytest.approx(seen[0][name].dmask)
        assert seen[1][name].saliency == pytest.approx(seen[0][name].saliency)
    assert seen[1][SLOT].gradient is None
    assert seen[1][AXIS] == seen[0][AXIS]


# -- following -------------------------------------------------------------------------------------


def test_units_keep_their_signals_by_birth_number() -> None:
    model = _network()
    session, optimizer = _session(model)
    generator = torch.Generator().manual_seed(0)
    step(model, optimizer, batch(generator))
    before = session.signals.units(AXIS)
    with session.boundary() as boundary:
        boundary.submit(CUT, WidenUnits(axis=AXIS, count=2))
    after = session.signals.units(AXIS)
    assert after.unit_ids == (0, 2, 3, 5, 6, 8, 9, 10, 11, 12, 13)
    kept = [before.unit_ids.index(unit) for unit in after.unit_ids[:-2]]
    assert torch.equal(after.dmask[:-2], before.dmask[kept])
    assert torch.isnan(after.dmask[-2:]).all()
    step(model, optimizer, batch(generator))
    assert torch.isfinite(session.signals.units(AXIS).dmask).all()
    with session.boundary() as boundary:
        boundary.submit(DROP)
    assert AXIS not in session.signals
    with pytest.raises(KeyError):
        session.signals.units(AXIS)
    step(model, optimizer, batch(generator))
    assert set(session.signals) == set(model.anatomy.axes)


def test_units_that_never_fire_are_quiet() -> None:
    model = _network()
    with torch.no_grad():
        model.get_parameter("block.0.bias")[5] = -100.0
    session, optimizer = _session(model)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        step(model, optimizer, batch(generator))
    units = session.signals.units(AXIS)
    assert units.quiet[5] == 4
    assert units.dmask[5] == 0
    assert (units.quiet == 4).sum() < 6


def test_signals_resume_bit_for_bit() -> None:
    def run(session: esper.Session, generator: torch.Generator, steps: int) -> None:
        for _ in range(steps):
            step(session.model, session.optimizer, batch(generator))
            with session.boundary() as boundary:
                if session.tick == 4:
                    boundary.submit(NARROW)

    first, _ = _session(_network(), signals_every=2)
    first.signals.watch("block.0.weight")
    generator = torch.Generator().manual_seed(0)
    run(first, generator, 3)
    state, random = copied(first.state_dict()), generator.get_state()
    run(first, generator, 5)
    second, _ = _session(_network(), signals_every=2)
    second.load_state_dict(state)
    run(second, generator.set_state(random), 5)
    assert dict(first.signals) == dict(second.signals)
    one, two = (s.signals.scores("block.0.weight", "fisher") for s in (first, second))
    assert torch.equal(one, two)


def test_signals_end_with_their_session() -> None:
    model = _network()
    session, optimizer = _session(model)
    assert "forward" in vars(model)
    assert "forward" not in vars(copy.deepcopy(model))
    again = esper.trace(model, (batch(torch.Generator())[0],))
    session.close()
    assert str(again) == str(esper.trace(model, (batch(torch.Generator())[0],)))
    step(model, optimizer, batch(torch.Generator()))
    assert session.signals.step == 0
    other, _ = _session(model)
    del other, session
    gc.collect()
    assert "forward" not in vars(model)
    assert not any("Signals" in str(h) or "_weakly" in str(h)
                   for h in optimizer._optimizer_step_pre_hooks.values())  # fmt: skip


def test_what_is_no_rhythm_and_no_weight() -> None:
    with pytest.raises(esper.EsperError, match="every k-th"):
        _session(_network(), signals_every=-1)
    session, _ = _session(_network())
    with pytest.raises(esper.EsperError, match="no parameter"):
        session.signals.watch("block.9.weight")
    with pytest.raises(esper.EsperError, match="watch"):
        session.signals.scores("block.0.weight", "taylor")
    assert PruneUnits(axis=AXIS, units=(0,)).axis in session.signals
