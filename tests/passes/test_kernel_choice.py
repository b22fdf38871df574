"""How kernels are chosen: duels, what is kept of them, and damaged files."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.gate.environment import device_name
from esper.gate.gate import Gate
from esper.passbase import Context
from esper_passes import choice_cache, contest, duel
from esper_passes.choice_cache import ChoiceCache
from esper_passes.contest import Contest, Ground, Way
from esper_passes.duel import Ratio
from esper_passes.example_sizes import ExampleSizes
from esper_passes.kernel_choice import Chooser
from esper_passes.working_set import working_set
from tests.passes.sparse_models import forms

FACTS = {"op": "vnm_linear", "tokens": 4}
RATIO = Ratio(1.5, 1.4, 1.6, 31)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "esper").mkdir()
    return tmp_path / "esper"


# -- duels -----------------------------------------------------------------------------------------


class Clock:
    """Time that only the contestants spend."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        clock = SimpleNamespace(perf_counter=lambda: self.now, thread_time=lambda: self.now)
        monkeypatch.setattr(duel, "time", clock)

    def takes(self, *seconds: float) -> Any:
        """A contestant whose calls take these times in turn."""
        calls = [0]

        def run() -> None:
            self.now += seconds[calls[0] % len(seconds)]
            calls[0] += 1

        return run


def test_the_ratio_of_steady_contestants_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    found = duel.duel(clock.takes(0.003), clock.takes(0.002))
    assert math.isclose(found.median, 1.5)
    assert math.isclose(found.lower, 1.5)
    assert math.isclose(found.upper, 1.5)
    assert found.pairs == 15  # it is clear at once
    assert found.clear


def test_noise_is_timed_for_longer_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    found = duel.duel(clock.takes(0.003), clock.takes(0.001, 0.0035), seconds=0.5)
    assert 30 < found.pairs < 301
    assert math.isclose(found.lower, 3 / 3.5)
    assert math.isclose(found.upper, 3.0)
    assert not found.clear
    assert duel.duel(clock.takes(1.0), clock.takes(1.0, 2.0), seconds=0.5).pairs == 15


def test_several_threads_are_timed_by_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    wall = SimpleNamespace(perf_counter=lambda: clock.now, thread_time=lambda: 0.0)
    monkeypatch.setattr(duel, "time", wall)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert math.isclose(duel.duel(clock.takes(0.003), clock.takes(0.002)).median, 1.5)


def test_it_is_timed_until_it_is_above_or_below_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    def pairs(bar: float) -> int:
        return duel.duel(clock.takes(0.00105), clock.takes(0.00097, 0.00103), bar=bar).pairs

    assert pairs(1.0) == pairs(1.2) == 15
    assert pairs(1.05) > 400  # a second


@pytest.mark.parametrize("count", [1, 6, 15, 40, 101, 2500])
def test_the_order_statistic_bounds_the_median(count: int) -> None:
    rank = duel._rank(count)
    below = [math.comb(count, k) / 2**count for k in range(count + 1)]
    assert sum(below[: rank + 1]) <= 0.01 or rank == 0
    assert sum(below[: rank + 2]) > 0.01


# -- what is kept ----------------------------------------------------------------------------------


def test_what_was_measured_is_kept(folder: Path) -> None:
    cache = ChoiceCache("cpu", 2)
    assert cache.get(FACTS) is None
    cache.put(FACTS, RATIO)
    assert ChoiceCache("cpu", 2).get(FACTS) == RATIO
    assert ChoiceCache("cpu", 1).get(FACTS) is None  # other threads, another answer
    assert cache.get({**FACTS, "tokens": 5}) is None
    assert [path.name for path in folder.iterdir()] == ["lowering.json"]
    assert not cache.trouble


def test_two_processes_keep_what_both_measured() -> None:
    one, other = ChoiceCache("cpu", 1), ChoiceCache("cpu", 1)
    assert one.get(FACTS) is None
    assert other.get(FACTS) is None
    one.put(FACTS, RATIO)
    other.put({**FACTS, "tokens": 5}, Ratio(1.0, 0.9, 1.1, 15))
    again = ChoiceCache("cpu", 1)
    assert again.get(FACTS) == RATIO
    assert again.get({**FACTS, "tokens": 5}) == Ratio(1.0, 0.9, 1.1, 15)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "{}", "null", '{"format": 7, "entries": {}}', '{"format": 1}'),
        *('{"format": 1, "entries": {"a": [1]}}', '{"format": 1, "entries": []}'),
        '{"format": 1, "entries": null}',
    ],
)
def test_a_damaged_file_is_one_remark_and_built_anew(text: str, folder: Path) -> None:
    (folder / "lowering.json").write_text(text)
    cache = ChoiceCache("cpu", 1)
    assert cache.get(FACTS) is None
    assert "is damaged and is built anew" in cache.trouble
    cache.put(FACTS, RATIO)
    assert ChoiceCache("cpu", 1).get(FACTS) == RATIO


def test_a_cache_that_cannot_be_written_is_told_of(folder: Path) -> None:
    cache = ChoiceCache("cpu", 1, folder / "file" / "lowering.json")
    (folder / "file").write_text("no directory")
    cache.put(FACTS, RATIO)
    assert "could not be kept" in cache.trouble
    assert cache.get(FACTS) == RATIO


def test_a_table_of_the_device_comes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ChoiceCache("cpu", 1).put(FACTS, RATIO)
    table = folder / "tuned" / "choices"
    table.mkdir(parents=True)
    name = device_name("cpu").replace(" ", "_")
    entries = {choice_cache.key(FACTS): [3.0, 2.9, 3.1, 400]}
    (table / f"{name}.json").write_text(json.dumps({"format": 1, "entries": entries}))
    monkeypatch.setattr(importlib.resources, "files", lambda package: folder)
    assert ChoiceCache("cpu", 1).get(FACTS) == Ratio(3.0, 2.9, 3.1, 400)
    assert choice_cache.shipped("another device") == {}


def test_the_directory_is_that_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert choice_cache.directory() == Path("/somewhere/esper")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert choice_cache.directory() == Path.home() / ".cache" / "esper"


# -- choosing --------------------------------------------------------------------------------------


def _contest() -> Contest:
    def ways(x: torch.Tensor) -> Any:
        weight = torch.randn(2, 3)
        turned = weight.T.contiguous()
        return (
            Way(lambda: nn.functional.linear(x, weight), (x, weight)),
            Way(lambda: x @ turned, (x, turned)),
        )

    return Contest(
        esper.propose.RaiseKernel(node="x"), ("w",), FACTS, lambda: torch.randn(4, 3), ways, 24
    )


@pytest.mark.parametrize("objective", ["inference", "training"])
def test_contestants_run_with_gradients_where_that_is_the_objective(
    objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def watched(present: Any, other: Any, **options: Any) -> Ratio:
        seen.extend([present(), other()])
        return RATIO

    monkeypatch.setattr(contest, "duel", watched)
    assert contest.fight(_contest(), Ground(objective=objective), 1.0) == RATIO
    if objective == "inference":
        assert [tuple(value.shape) for value in seen] == [(4, 2), (4, 2)]
        assert not any(value.requires_grad for value in seen)
    else:
        assert [[tuple(t.shape) for t in value] for value in seen] == [
            [(4, 3), (2, 3)],
            [(4, 3), (3, 2)],
        ]


@pytest.mark.parametrize(("working_set", "copies"), [(0, 1), (47, 1), (48, 2), (10**9, 64)])
def test_as_many_copies_take_turns_as_the_model_reads(
    working_set: int, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of a layer come from memory, as they do in a model; what it reads does not."""
    calls: dict[str, list[int]] = {"present": [], "kernel": []}
    read: list[int] = []

    def ways(x: torch.Tensor) -> Any:
        number = len(read)
        read.append(id(x))
        return (
            Way(lambda: calls["present"].append(number), (x,)),
            Way(lambda: calls["kernel"].append(number), (x,)),
        )

    def twice(present: Any, other: Any, **options: Any) -> Ratio:
        assert options == {"bar": 1.2, "device": "cpu"}
        for _ in range(2 * copies):
            present()
            other()
        return RATIO

    monkeypatch.setattr(contest, "duel", twice)
    found = dataclasses.replace(_contest(), ways=ways)
    assert contest.fight(found, Ground(working_set=working_set), 1.2) == RATIO
    once = list(range(copies))
    assert calls == {"present": 3 * once, "kernel": 3 * once}  # once before anything is timed
    assert len(set(read)) == 1


def test_the_working_set_is_what_is_read_whole() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.tied = nn.Embedding(500, 16), nn.Embedding(4, 16)
            self.layer = nn.Linear(16, 24)

        def forward(self, ids: torch.Tensor) -> Any:
            hidden = self.words(ids) + self.tied(ids % 4)
            return self.layer(hidden), hidden @ self.tied.weight.T

    model = esper.trace(Tied().eval(), (torch.zeros(1, 3, dtype=torch.long),))
    size = 4 * (16 * 24 + 24 + 4 * 16)  # a table whose rows are looked up does not count
    assert size == 1888
    assert working_set(model, "cpu") == 2048
    large = esper.trace(nn.Linear(4096, 4096).eval(), (torch.zeros(1, 4096),))
    assert working_set(large, "cpu") == 2**25
    assert working_set(large, "cuda") == 2**27


def test_a_contest_is_fought_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fought: list[int] = []

    def fight(*_: Any) -> Ratio:
        fought.append(torch.get_num_threads())
        return RATIO

    monkeypatch.setattr("esper_passes.kernel_choice.fight", fight)
    model = forms()[0]
    gate = Gate(threads=2, objective="training")
    for context in (Context(), Context(), Context(gate=gate)):
        assert Chooser(model, context, "me").ratio(_contest()) == RATIO
    assert fought == [1, 2]
    assert torch.get_num_threads() == 1


def test_noise_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    fought: list[int] = []

    def fight(*_: Any) -> Ratio:
        fought.append(1)
        return Ratio(1.5, 0.9, 2.5, 31)

    monkeypatch.setattr("esper_passes.kernel_choice.fight", fight)
    for _ in range(2):
        assert Chooser(forms()[0], Context(), "me").ratio(_contest()).lower == 0.9
    assert len(fought) == 2


def test_the_model_moves_where_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = forms()[0]
    assert Chooser(model, Context(backend="inductor"), "me").move() is None
    chooser = Chooser(model, Context(backend="onnxruntime"), "me")
    move = chooser.move()
    assert move is not None
    assert (move.backend, move.proposer) == ("inductor", "me")
    assert chooser.move() is None
    assert not chooser.bound
    monkeypatch.setattr("esper_passes.kernel_choice.usable", lambda *_: "no compiler")
    move = Chooser(model, Context(backend="openvino"), "me").move()
    assert move is not None
    assert move.backend == "eager"
    told = Context(backend="onnxruntime", gate=Gate(backend="onnxruntime"))
    assert Chooser(model, told, "me").bound == "onnxruntime"


# -- sizes -----------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_example() -> None:
    inputs = {"input": [0, 1]}
    model = esper.trace(
        nn.Sequential(nn.Linear(8, 4)).eval(), (torch.randn(2, 5, 8),), None, inputs
    )
    node = model.nodes["linear"]
    sizes = ExampleSizes(model, ((torch.randn(3, 7, 8),), {}))
    assert sizes.of(node) == [3, 7, 4]
    assert sizes.tokens(node) == 21
    assert ExampleSizes(model, None).of(node) == [2, 5, 4]
