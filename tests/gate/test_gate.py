"""The gate as users call it. Nothing here is concluded from time."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

import esper.gate.gate
import esper.gate.prepared
from esper.errors import BackendError, EsperError, GateError
from esper.gate.backends import usable
from esper.gate.backends.onnxruntime import OnnxRuntime
from esper.gate.environment import device_name, last_level_cache
from esper.gate.gate import Gate, usable_backends
from esper.gate.inputs import normalise
from esper.gate.launcher import Launcher
from esper.gate.prepared import Workshop
from esper.gate.sampling import Sampler, settles
from esper.gate.sequential import Conclusion, advance
from esper.gate.statistics import Rule, Samples
from esper.gate.verdict import Verdict
from esper.ir.model import Model
from esper.judge import Judge
from tests.gate.support import QUICK, Two, simulated, two_call

GATE = Gate(backend="eager", threads=1, effort=QUICK, looks=(2, 3))


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with Launcher() as running:
        yield running


def two(width: int = 8) -> Model:
    args, kwargs = two_call(2)
    return esper.trace(Two(width).eval(), args, kwargs)


@pytest.fixture(scope="module")
def verdict(launcher: Launcher) -> Verdict:
    inputs = [(3.0, *two_call(2)), (1.0, *two_call(4))]
    return GATE.compare(two(), two(16), inputs, launcher=launcher)


def test_a_verdict_says_what_was_measured(verdict: Verdict) -> None:
    assert verdict.outcome in ("accept", "reject", "ambiguous")
    assert verdict.accepted == (verdict.outcome == "accept")
    assert verdict.lower <= verdict.speedup <= verdict.upper
    assert verdict.interval == (verdict.lower, verdict.upper)
    assert verdict.weights == [3.0, 1.0]
    assert verdict.shapes == [[[2, 4], [2, 1]], [[4, 4], [4, 1]]]
    assert verdict.baseline.parameter_bytes == 4 * (4 * 8 + 8 + 8 * 3 + 3)
    assert verdict.candidate.parameter_bytes > verdict.baseline.parameter_bytes
    assert verdict.baseline.artifact_bytes > 0
    assert verdict.environment.threads == 1
    assert verdict.environment.versions["torch"] == torch.__version__
    assert verdict.delta_effective >= GATE.delta
    assert verdict.processes == len(verdict.samples.search) + len(verdict.samples.confirm)
    assert verdict.reason in verdict.summary()


def test_a_verdict_survives_json_and_is_judged_alike_again(verdict: Verdict) -> None:
    again = Verdict.model_validate_json(verdict.model_dump_json())
    assert again == verdict
    end = again.decide_again()
    assert end.outcome == verdict.outcome
    assert end.decision.speedup == pytest.approx(verdict.speedup, rel=1e-4)
    harsh = again.decide_again(Rule(delta=0.99, looks=(2,)))
    assert harsh.outcome != "accept"


def test_plain_modules_are_traced(launcher: Launcher) -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    found = GATE.compare(plain, plain, ((torch.randn(2, 4),), {}), launcher=launcher)
    assert found.baseline.backend == "eager"


def test_sides_may_run_on_different_backends(launcher: Launcher) -> None:
    found = GATE.compare(
        two(), two(), two_call(2), backends=("eager", "onnxruntime"), launcher=launcher
    )
    assert (found.baseline.backend, found.candidate.backend) == ("eager", "onnxruntime")
    assert "onnxruntime" in found.environment.versions


def test_auto_tries_what_is_usable_and_says_what_is_not(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(esper.gate.prepared, "NAMES", ("eager", "onnxruntime", "openvino"))
    monkeypatch.setattr(
        esper.gate.prepared,
        "usable",
        lambda name, context: "openvino is away" if name == "openvino" else usable(name, context),
    )
    gate = Gate(threads=1, effort=QUICK, looks=(2,))
    said: list[str] = []
    found = gate.compare(two(), two(), two_call(2), launcher=launcher, say=said.append)
    assert found.backends_tried["baseline/openvino"] == "openvino is away"
    assert found.backends_tried["candidate/eager"].endswith(" ms")
    assert found.baseline.backend in ("eager", "onnxruntime")
    assert any("measuring eager, onnxruntime" in line for line in said)


def test_a_training_step_can_be_the_objective(launcher: Launcher) -> None:
    gate = Gate(objective="training", backend="eager", threads=1, effort=QUICK, looks=(2,))
    found = gate.compare(two(), two(), two_call(4), launcher=launcher)
    assert found.objective == "training"


def test_a_table_has_the_rows_asked_for(launcher: Launcher) -> None:
    table = GATE.measure(
        {"narrow": (two(), "eager"), "wide": (two(64), "eager")},
        [two_call(2)],
        processes=2,
        launcher=launcher,
    )
    assert [row.name for row in table.rows] == ["narrow", "wide"]
    assert table.row("narrow").ratio == 1.0
    assert table.row("narrow").lower == 1.0
    wide = table.row("wide")
    assert wide.lower <= wide.ratio <= wide.upper
    assert wide.p10 <= wide.milliseconds <= wide.p90
    with pytest.raises(GateError, match="no row 'tall'"):
        table.row("tall")


def test_a_spent_budget_ends_undecided(launcher: Launcher) -> None:
    gate = Gate(backend="eager", threads=1, effort=QUICK, looks=(6,), budget_seconds=0.001)
    found = gate.compare(two(), two(), two_call(2), launcher=launcher)
    assert found.processes == 2
    assert found.outcome != "accept"
    assert "time budget" in found.reason


class Clock:
    """A clock that processes set forward by `seconds` each; they find the candidate 1.5x faster."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds, self.drawn = 100.0, seconds, 0

    def monotonic(self) -> float:
        return self.now

    def draw(self, *, deadline: float) -> npt.NDArray[np.float64]:
        self.now += self.seconds
        self.drawn += 1
        return simulated(1, 0.5, seed=self.drawn).processes[0]


def sampled(
    monkeypatch: pytest.MonkeyPatch, budget: float, seconds: float, preparing: float
) -> tuple[Conclusion, float | None, float]:
    """The conclusion, the budget that is needed, and the time that went by."""
    clock = Clock(seconds)
    monkeypatch.setattr(esper.gate.gate, "time", clock)
    gate = Gate(budget_seconds=budget)
    clock.now += preparing
    *_, end, needed = gate._sample(cast(Sampler, clock), 100.0, lambda _: None)
    return end, needed, clock.now - 100.0


@pytest.mark.parametrize(("seconds", "preparing"), [(10.0, 0.0), (1.0, 14.0), (7.3, 21.0)])
def test_a_find_that_cannot_be_confirmed_in_time_says_which_budget_does(
    monkeypatch: pytest.MonkeyPatch, seconds: float, preparing: float
) -> None:
    short = preparing + 2.5 * seconds
    end, needed, _ = sampled(monkeypatch, short, seconds, preparing)
    assert end.unconfirmed
    assert needed is not None
    end, again, spent = sampled(monkeypatch, needed, seconds, preparing)
    assert (end.outcome, end.stage, again) == ("accept", "confirm", None)
    assert spent <= needed


def test_the_budget_that_is_needed_is_part_of_the_verdict(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = advance(simulated(3, 0.5), Samples(), GATE.rule, ended=("search", "confirm"))
    assert isinstance(end, Conclusion)
    found = (simulated(3, 0.5), Samples(), end, 150.0)
    monkeypatch.setattr(Gate, "_sample", lambda *_: found)
    verdict = GATE.compare(two(), two(), two_call(2), launcher=launcher)
    assert verdict.seconds_needed == 150.0
    assert verdict.reason.endswith("x, but not confirmed: that needs a budget of about 150 s.")
    judge = Judge(GATE, two_call(2), None, launcher, lambda _: None)
    judged = judge.judge(two(), two(), ("eager", "eager"), lossy=False)
    assert (judged.accepted, judged.code) == (False, "gate-unconfirmed")
    assert judged.figures["seconds_needed"] == 150.0


def test_inputs_that_do_not_fit_the_model_are_told(launcher: Launcher) -> None:
    wrong = ((torch.randn(2, 5),), {"scale": torch.ones(2, 1)})
    with pytest.raises(EsperError):
        GATE.compare(two(), two(), wrong, launcher=launcher)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "sleep"}, "objective"),
        ({"backend": "tvm"}, "unknown backend 'tvm'"),
        ({"delta": -1.0}, "delta"),
        ({"confidence": 2.0}, "confidence"),
        ({"threads": 0}, "threads"),
        ({"budget_seconds": 0}, "budget_seconds"),
        ({"device": "tpu"}, "device"),
        ({"looks": (5, 2)}, "looks"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(GateError, match=message):
        Gate(**options)  # type: ignore[arg-type]


def test_a_backend_that_cannot_serve_the_objective_is_an_error(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendError, match="openvino cannot run a training step"):
        Gate(objective="training", backend="openvino")
    gate = Gate(objective="training", backend="eager", threads=1)
    with pytest.raises(BackendError, match="openvino cannot run a training step"):
        gate.compare(two(), two(), two_call(2), backends=("eager", "openvino"), launcher=launcher)
    monkeypatch.setattr(OnnxRuntime, "available", lambda self: "onnxruntime is away")
    with pytest.raises(BackendError, match="onnxruntime is away"):
        Gate(backend="onnxruntime")


def test_every_backend_is_listed() -> None:
    assert list(usable_backends(GATE.context)) == ["eager", "inductor", "onnxruntime", "openvino"]


def test_prepared_models_are_kept_by_content(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[str] = []
    real = OnnxRuntime.prepare

    def counted(self: OnnxRuntime, *args: Any) -> None:
        prepared.append(self.name)
        real(self, *args)

    monkeypatch.setattr(OnnxRuntime, "prepare", counted)
    model, other, (calls, weights) = two(), two(9), normalise(two_call(2))
    with Launcher() as own:
        for _ in range(2):
            with Workshop(own, calls, weights, GATE.context, QUICK, ()) as shop:
                one = shop.prepare(model, "onnxruntime")
                assert shop.prepare(copy.deepcopy(model), "onnxruntime") == one
                assert shop.prepare(other, "onnxruntime") != one
        assert len(prepared) == 2
        with torch.no_grad():
            next(model.parameters()).add_(1.0)
        with Workshop(own, calls, weights, GATE.context, QUICK, ()) as shop:
            assert shop.prepare(model, "onnxruntime") != one
        assert len(prepared) == 3


def test_contenders_settle_where_caches_or_thread_pools_matter() -> None:
    assert not settles(["eager", "eager"], smallest=2000, cache=1000)
    assert settles(["eager", "eager"], smallest=1000, cache=1000)
    assert settles(["eager", "openvino"], smallest=2000, cache=1000)


def test_processors_of_one_model_are_told_apart_by_their_instructions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def has(*names: str) -> None:
        for name in ("vnni", "avx512_bf16", "amx_tile"):
            found = name in names
            monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda found=found: found)

    capability = torch.backends.cpu.get_cpu_capability()
    has()
    plain = device_name("cpu")
    assert f" ({capability}), " in plain
    has("vnni", "avx512_bf16")
    assert device_name("cpu") == plain.replace(capability, f"{capability} VNNI BF16")
    has("amx_tile")
    assert device_name("cpu") == plain.replace(capability, f"{capability} AMX")


def test_the_last_level_cache_is_read_from_linux(tmp_path: Path) -> None:
    for index, size in enumerate(["32K", "512K", "24576K", "unknown"]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert last_level_cache(tmp_path) == 24576 * 1024
    assert last_level_cache(tmp_path / "nowhere") == 2**30


@pytest.mark.parametrize("settle", [None, False])
def test_settling_reaches_the_measured_process(launcher: Launcher, settle: bool | None) -> None:
    effort = replace(QUICK, settle=settle)
    with Workshop(launcher, [two_call(2)], [1.0], GATE.context, effort, ()) as shop:
        prepared = shop.prepare(two(), "eager")
        sampler = shop.sampler([prepared, prepared], 0)
        assert sampler.settle == (settle is None)  # a small model is at home in any cache
        assert sampler.draw().shape[1] == 2
