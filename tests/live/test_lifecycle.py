"""A session moves seeds through their stages by written criteria, and resumes in the middle."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import esper
from esper.ecology import curves
from esper.ecology.criteria import BLENDED, Criterion, StageGate
from esper.ir.ecology import SlotLife
from esper.ir.model import Model
from esper.live.lifecycle import Lifecycle
from esper.propose import AdvanceSeed, Blend, CullSeed, DropRegion, PlantSeed
from esper.recorder.happenings import Metric, Transition
from esper.recorder.log import Log
from tests.live.training import batch, step, traced

SLOT = "slot:block.out"
QUICK = (
    StageGate(
        "quick",
        "incubating",
        "blending",
        (
            Criterion("ticks", ">=", 3, "ticks"),
            Criterion("gradient-finite", ">=", 1, "finite", fatal=True),
        ),
    ),
    BLENDED,
    StageGate(
        "trial",
        "holding",
        "committed",
        (Criterion("loss-worse", "<=", 0.5, "lower bound", fatal=True),),
    ),
)
PLANT = PlantSeed(
    slot=SLOT, blueprint="mlp-small", blend=Blend(curve="cosine", ticks=4, algorithm="gated")
)


@cache
def _network() -> Model:
    model = traced()
    _ = model.anatomy.axes, model.anatomy.phages
    return model


class Run:
    """A training run that plants at its third boundary."""

    def __init__(
        self, gates: Any = QUICK, *, plant: PlantSeed | None = PLANT, **options: Any
    ) -> None:
        self.model = copy.deepcopy(_network())
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        lifecycle = None if gates is None else Lifecycle(gates, window=5, quarantine=4)
        self.session = esper.Session(self.model, optimizer, lifecycle=lifecycle, **options)
        self.generator = torch.Generator().manual_seed(3)
        self.plant = plant
        self.losses: list[float] = []
        self.alphas: list[float | None] = []

    def life(self) -> SlotLife:
        return self.model.ecology.slot(SLOT)

    def go(self, ticks: int, loss: Callable[[float, SlotLife], float] | None = None) -> list[str]:
        """Codes of what the lifecycle proposed, with the tick."""
        said = []
        for _ in range(ticks):
            self.losses.append(step(self.model, self.session.optimizer, batch(self.generator)))
            shown = self.losses[-1] if loss is None else loss(self.losses[-1], self.life())
            tick = self.session.tick
            with self.session.boundary(shown) as boundary:
                if tick == 2 and self.plant is not None:
                    assert boundary.submit(self.plant)[0].kind == "passed"
            for record in boundary.records:
                if record.proposal is not None and record.proposal.proposer == "lifecycle":
                    to = getattr(record.proposal, "to", "culled")
                    said.append(f"{tick} {record.kind} {to}")
            alpha = self.model.tensor(self.life().alpha) if self.life().alpha else None
            self.alphas.append(None if alpha is None else float(alpha))
        return said


def test_a_seed_goes_all_the_way(tmp_path: Path) -> None:
    run = Run(recorder=tmp_path / "run.esperlog")
    said = run.go(18, lambda loss, life: 1.0)
    assert said == ["5 passed blending", "9 passed holding", "14 passed committed"]
    blend = PLANT.blend
    assert run.alphas[5:9] == [curves.alpha(blend, i) for i in range(4)]
    assert run.alphas[9:14] == [1.0] * 5
    assert run.alphas[14:] == [None] * 4
    assert "phage:seeds.block.out.0" in run.model.anatomy.phages
    assert run.session.lifecycle is not None
    assert run.session.lifecycle.state_dict()["after"] == {}
    run.session.close()
    log = list(Log(tmp_path / "run.esperlog"))
    moved = [e.payload for e in log if isinstance(e.payload, Metric)]
    assert [m.value for m in moved] == [curves.alpha(blend, i) for i in range(1, 5)]
    assert {m.name for m in moved} == {f"alpha/{SLOT}"}
    events = [e for e in log if e.kind == "transition"]
    told = [e.payload for e in events if isinstance(e.payload, Transition)]
    assert [e.target for e in events] == [SLOT] * 4
    assert [(t.before, t.after, t.gate) for t in told] == [
        ("dormant", "incubating", ""),
        ("incubating", "blending", "quick"),
        ("blending", "holding", "blended"),
        ("holding", "committed", "trial"),
    ]
    assert told[2].criteria["alpha"] == 1
    assert told[3].criteria["loss-worse"] == 0
    assert all(event.cause is not None for event in events)


def test_incubation_leaves_the_run_as_it_is() -> None:
    """Bit for bit, with momentum and batch norm: the host never notices the seed."""
    with_seed, without = Run(gates=()), Run(gates=(), plant=None)
    with_seed.go(8)
    without.go(8)
    assert with_seed.losses == without.losses
    seeds = dict(with_seed.model.named_parameters())
    for name, parameter in without.model.named_parameters():
        assert torch.equal(parameter, seeds[name]), name
    assert seeds["seeds.block.out.0.down.weight"].any()  # it learned meanwhile


def test_a_seed_that_harms_is_culled_and_its_slot_rests() -> None:
    run = Run()
    said = run.go(14, lambda loss, life: 3.0 if life.stage == "holding" else 1.0)
    assert said == ["5 passed blending", "9 passed holding"]
    assert run.go(1, lambda loss, life: 3.0) == ["14 passed culled"]
    assert run.life().stage == "quarantined"
    assert not any(name.startswith("seeds") for name, _ in run.model.all_tensors())
    with run.session.boundary(1.0) as boundary:
        assert boundary.submit(PLANT)[0].code == "quarantine"
    run.go(4)
    assert run.life().stage == "dormant"
    with run.session.boundary(1.0) as boundary:
        assert boundary.submit(PLANT)[0].kind == "passed"
    assert run.life().seed == "seeds.block.out.1"


def test_a_seed_that_breaks_is_culled_at_once() -> None:
    run = Run()
    run.go(4)
    with torch.no_grad():
        run.model.get_parameter("seeds.block.out.0.up.weight").fill_(float("inf"))
    assert run.go(2) == ["4 passed culled"]
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


def test_patience_ends() -> None:
    gate = StageGate(
        "never", "incubating", "blending", (Criterion("ticks", ">=", 99, ""),), patience=4
    )
    assert Run((gate,)).go(8) == ["6 passed culled"]


def test_without_losses_nobody_judges_and_without_gates_nothing_moves() -> None:
    run = Run()
    for _ in range(14):
        step(run.model, run.session.optimizer, batch(run.generator))
        with run.session.boundary() as boundary:
            if run.session.tick == 2:
                boundary.submit(PLANT)
    assert run.life().stage == "holding"
    still = Run(None)
    still.go(8)
    assert still.life().stage == "incubating"


def test_blending_out_ends_in_a_cull() -> None:
    run = Run()
    run.go(10)
    assert run.life().stage == "holding"
    out = AdvanceSeed(
        slot=SLOT, to="blending", blend=Blend(algorithm="gated", start=1, end=0, ticks=3)
    )
    with run.session.boundary(1.0) as boundary:
        assert boundary.submit(out)[0].kind == "passed"
    assert run.go(3) == ["13 passed culled"]
    assert [a for a in run.alphas[-3:] if a is not None] == pytest.approx([2 / 3, 1 / 3])


def test_a_seed_goes_with_its_host() -> None:
    run = Run()
    run.go(4)
    with run.session.boundary(1.0) as boundary:
        assert boundary.submit(DropRegion(region="phage:block"))[0].kind == "passed"
    assert run.go(1) == ["5 passed culled"]
    assert run.life().stage == "quarantined"
    assert SLOT not in run.model.anatomy.slots


def test_a_boundary_that_fails_takes_back_alpha_and_figures() -> None:
    run = Run()
    run.go(7)
    assert run.life().stage == "blending"
    lifecycle = run.session.lifecycle
    assert lifecycle is not None
    before, alpha = lifecycle.state_dict(), run.alphas[-1]
    with pytest.raises(RuntimeError, match="my own"), run.session.boundary(0.5):
        raise RuntimeError("my own")
    tensor = run.model.tensor(run.life().alpha)
    assert tensor is not None
    assert float(tensor) == alpha
    assert lifecycle.state_dict() == before


def test_a_transition_that_is_refused_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    from esper import contracts
    from esper.plan import Refusal

    def busy(model: Any, proposal: Any) -> Refusal | None:
        return (
            Refusal("leased", "somebody else holds it")
            if proposal.proposer == "lifecycle"
            else None
        )

    monkeypatch.setattr(contracts, "RULES", (busy, *contracts.RULES))
    assert Run().go(12) == ["5 missed blending", "10 missed blending"]


def test_averages_blend_along() -> None:
    run = Run()
    ema = torch.optim.swa_utils.AveragedModel(
        run.model, avg_fn=lambda average, live, _: torch.lerp(average, live, 0.5)
    )
    run.session.close()
    run.session = esper.Session(
        run.model, run.session.optimizer, ema=ema, lifecycle=Lifecycle(QUICK, window=5)
    )
    run.go(8)
    inner: Any = ema.module
    assert float(inner.tensor(run.life().alpha)) == run.alphas[-1] == curves.alpha(PLANT.blend, 2)
    run.go(8)
    assert inner.ecology.slot(SLOT).stage == run.life().stage == "committed"


@pytest.mark.parametrize("at", [4, 7, 11])
def test_a_run_resumes_bit_for_bit_from_every_stage(at: int) -> None:
    """While it incubates, blends and is on probation; through a file, into a fresh session."""
    whole = Run()
    whole.go(at)
    stream = io.BytesIO()
    torch.save(whole.session.state_dict(), stream)
    generator = whole.generator.get_state()
    said = whole.go(16 - at)
    torch.manual_seed(77)
    other = Run()
    stream.seek(0)
    other.session.load_state_dict(torch.load(stream, weights_only=True))
    other.generator.set_state(generator)
    assert other.go(16 - at) == said
    assert other.losses == whole.losses[at:]
    assert str(other.model) == str(whole.model)
    assert other.model.ecology.data() == whole.model.ecology.data()
    for (name, a), (_, b) in zip(other.model.all_tensors(), whole.model.all_tensors(), strict=True):
        assert torch.equal(a, b), name


def test_alpha_compiles_nothing_anew() -> None:
    run = Run(gates=(BLENDED,), plant=PLANT.model_copy(update={"blend": Blend(ticks=6)}))
    run.session.compile(backend="eager")
    run.go(4)
    with run.session.boundary(1.0) as boundary:
        boundary.submit(AdvanceSeed(slot=SLOT, to="blending"))
    run.go(1)
    compiled = len(run.session.compilations)
    run.go(4)
    assert run.life().stage == "blending"
    assert len({*run.alphas[-4:]}) == 4
    assert len(run.session.compilations) == compiled
    run.session.close()


def test_seeds_learn_under_autocast_and_leave_its_dtypes() -> None:
    model = traced(torch.float32)
    inputs = batch(torch.Generator().manual_seed(0), torch.float32)[0]
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(inputs)
    for blueprint in ("norm", "mlp-small"):
        manager = esper.PassManager(model)
        assert manager.apply(PlantSeed(slot=SLOT, blueprint=blueprint)).kind == "passed"
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model(inputs), expected)
        assert manager.apply(CullSeed(slot=SLOT, quarantine=0)).kind == "passed"


def test_a_phage_is_replaced_while_the_model_trains() -> None:
    """Staged replacement: alpha moves from the phage to the seed, then the phage goes."""
    blend = Blend(algorithm="replace", ticks=4)
    run = Run(plant=PlantSeed(slot=SLOT, blueprint="mlp-small", blend=blend))
    held = {id(p) for p in run.model.get_submodule("block").parameters()}
    assert run.go(15, lambda loss, life: 1.0)[-1] == "14 passed committed"
    assert "phage:block" not in run.model.anatomy.phages
    assert not any(name.startswith("block.") for name, _ in run.model.named_parameters())
    live = {id(p) for group in run.session.optimizer.param_groups for p in group["params"]}
    assert not live & held
    run.session.check()
    run.go(2)
