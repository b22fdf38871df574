"""Replays: equal where nothing changed; each planted fault is named for what it is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import esper
from esper import contracts, replay
from esper.cli.main import main
from esper.ir.model import Model
from esper.plan import Refusal
from esper.propose import Proposal, PruneUnits
from esper.recorder.event import Event
from esper.recorder.history import surviving
from esper.recorder.log import Log
from esper.recorder.writer import Recorder
from esper.replay import compare
from esper_passes.refit import digest
from tests.live.training import traced
from tests.replay import payload_run, runs

LEVELS = ("decision", "pass", "full")


@pytest.fixture(autouse=True)
def vocabulary() -> Iterator[None]:
    runs.FAULTS.clear()
    with runs.installed():
        yield
    runs.FAULTS.clear()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("replay") / "run.esperlog"
    with runs.installed():
        runs.train(path, seed=3)
    return path


def _replayed(path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code = main(["replay", str(path), "--json", *words])
    return code, json.loads(capsys.readouterr().out)


# -- equal -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_changed(recorded: Path, level: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = recorded.read_bytes()
    code, found = _replayed(recorded, capsys, "--level", level)
    assert (code, found["equal"], found["divergence"]) == (0, True, None)
    kinds = {
        "decision": ["head-sample"],
        "pass": ["keyframe", "resolved-config", "verdict", "rewrite"],
    }
    there = Log(recorded).counts()
    if level in kinds:
        assert found["compared"] == {kind: there[kind] for kind in kinds[level]}
        assert min(found["compared"].values()) > 1
    if level == "full":
        assert sum(found["compared"].values()) == len(Log(recorded)) - 1  # all but `finished`
    assert recorded.read_bytes() == before


@pytest.mark.parametrize("level", ["pass", "full"])
def test_from_a_keyframe(recorded: Path, level: str, capsys: pytest.CaptureFixture[str]) -> None:
    frame = next(event for event in Log(recorded) if event.kind == "keyframe")
    code, found = _replayed(recorded, capsys, "--level", level, "--from", frame.code)
    assert (code, found["equal"]) == (0, True)
    assert found["notes"][0].startswith(f"from the keyframe {frame.code}, tick 4")
    if level == "full":
        assert found["compared"]["tick"] == 6


def test_the_caller_keeps_its_own_chance_and_threads(recorded: Path) -> None:
    torch.manual_seed(11)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    assert replay.full(Log(recorded)).equal
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_a_program_of_the_users_own(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("from tests.replay.runs import train as run\n")
    for named in (f"{mine}:run", "tests.replay.runs:train"):
        code, found = _replayed(recorded, capsys, "--program", named)
        assert (code, found["equal"]) == (0, True)


# -- planted faults --------------------------------------------------------------------------------


def _locked(model: Model, proposal: Proposal) -> Refusal | None:
    if isinstance(proposal, PruneUnits) and model.anatomy.axes[proposal.axis].size < 12:
        return Refusal("test-lock", "enough was cut", proposal.axis)
    return None


def _plant(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "weight":
        runs.FAULTS["weight"] = 0.25
    elif fault == "rule":
        monkeypatch.setattr(contracts, "RULES", (*contracts.RULES, _locked))
    elif fault == "curve":
        runs.FAULTS["curves"] = {"cosine": "linear", "linear": "cosine"}
    elif fault == "rate":
        runs.FAULTS["lr"] = 0.011
    elif fault == "data":
        runs.FAULTS["shift"] = 1
    elif fault == "rewrite":
        plan = runs.MarkRewrite.plan

        def wrong(self: runs.MarkRewrite, model: Model, proposal: runs.Mark) -> Any:
            changed = proposal.blend.model_copy(update={"ticks": 3})
            return plan(self, model, proposal.model_copy(update={"blend": changed}))

        monkeypatch.setattr(runs.MarkRewrite, "plan", wrong)


@pytest.mark.parametrize(
    ("fault", "level", "kind", "blame"),
    [
        ("weight", "decision", "head-sample", "policy"),
        ("weight", "full", "head-sample", "policy"),
        ("rule", "pass", "verdict", "mask"),
        ("rule", "full", "mask", "mask"),
        ("curve", "full", "proposal", "wiring"),
        ("rewrite", "pass", "rewrite", "wiring"),
        ("rewrite", "full", "verdict", "wiring"),
        ("rate", "full", "rewrite", "training"),
        ("data", "full", "tick", "data"),
    ],
)
def test_each_fault_is_named(
    recorded: Path,
    fault: str,
    level: str,
    kind: str,
    blame: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _plant(fault, monkeypatch)
    code, found = _replayed(recorded, capsys, "--level", level)
    assert code == 1
    first = found["divergence"]
    assert (first["event"]["kind"], first["blame"]) == (kind, blame)
    # It is the first one: without the fault everything before it agrees, and it itself would.
    assert Log(recorded).find(first["code"]).number == first["event"]["number"]


@pytest.mark.parametrize("fault", ["weight", "curve", "rewrite", "rate", "data"])
def test_levels_that_a_fault_cannot_reach_stay_equal(
    recorded: Path,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _plant(fault, monkeypatch)
    for level in {"weight": ["pass"], "rewrite": ["decision"]}.get(fault, ["decision", "pass"]):
        assert _replayed(recorded, capsys, "--level", level)[0] == 0


def test_a_recording_made_with_a_wiring_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _plant("curve", pytest.MonkeyPatch())
    runs.train(tmp_path / "run.esperlog", seed=3, steps=3)
    for level in LEVELS:
        code, found = _replayed(tmp_path / "run.esperlog", capsys, "--level", level)
        first = found["divergence"]
        assert (code, first["blame"], first["event"]["kind"]) == (1, "wiring", "resolved-config")
        assert "sampled, then resolved" in first["differences"][0]["field"]


def test_the_text_names_code_chain_and_verdict(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _plant("weight", pytest.MonkeyPatch())
    assert main(["replay", str(recorded), "--level", "decision"]) == 1
    lines = capsys.readouterr().out.splitlines()
    code = lines[1].split()[2].rstrip(",")
    event = Log(recorded).find(code)
    assert lines[1] == (
        f"diverges at {code}, tick {event.tick}, head-sample of {runs.AXIS} by tamiyo"
    )
    assert lines[2].startswith("  logits[2]: recorded ")
    assert any(line.startswith("verdict: policy: ") for line in lines)
    assert any(line.startswith(f"=> {code}") for line in lines)


def test_weights_of_a_policy_travel_beside_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.esperlog"
    with Recorder(path) as recorder:
        digest = recorder.tensors({"w": torch.tensor(0.7)})
        runs.train(recorder, seed=3, steps=2, weights=digest)
    # The program used 0.7 as float64, the file holds it as float32: the replay notices.
    code, found = _replayed(path, capsys, "--level", "decision")
    assert (code, found["divergence"]["blame"]) == (1, "policy")
    other = tmp_path / "other.esperlog"
    with Recorder(other) as recorder:
        digest = recorder.tensors({"w": torch.tensor(0.7, dtype=torch.float64)})
        runs.train(recorder, seed=3, steps=2, weights=digest)
    assert _replayed(other, capsys, "--level", "decision")[0] == 0


@esper.program
def refit(recorder: Any) -> None:
    """One boundary at which a layer takes other weights, which the proposal names by digest."""
    model = traced(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with esper.Session(model, optimizer, recorder=recorder) as session:
        payload = {"weight": torch.full((3, 10), 0.5), "bias": torch.ones(3)}
        named = digest(payload)
        model.payloads[named] = payload
        node = next(n.name for n in model.graph.nodes if "linear" in n.name and "3" in n.name)
        with session.boundary() as boundary:
            (record,) = boundary.submit(esper.propose.Refit(node=node, digest=named))
        assert record.kind == "passed"


def test_tensors_that_a_proposal_brings_travel_beside_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.esperlog"
    refit(path)
    code, found = _replayed(path, capsys, "--level", "pass")
    assert (code, found["compared"]["rewrite"], found["notes"]) == (0, 1, [])


@pytest.mark.parametrize("level", ["pass", "full"])
def test_whatever_tensors_proposals_name_are_found_again(
    level: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.esperlog"
    payload_run.train(path)
    log = Log(path)
    brought = [e.payload for e in log if e.kind == "proposal" and e.payload.tensors]
    kinds = ["widen-units", "set-mask", "regrow-mask", "set-mask", "low-rank-swap"]
    assert [each.proposal["type"] for each in brought] == kinds
    missing = [e.payload.code for e in log if e.kind == "verdict"][-1]
    assert missing == "missing-payload"  # it is so again, though the log holds other tensors
    code, found = _replayed(path, capsys, "--level", level)
    assert (code, found["equal"]) == (0, True), found["divergence"]
    assert (found["compared"]["rewrite"], found["compared"]["verdict"]) == (5, 6)


def test_tensors_that_are_gone_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.esperlog"
    payload_run.train(path)
    first = next(e.payload for e in Log(path) if e.kind == "proposal")
    (tmp_path / "run.esperlog.d" / f"{first.tensors}.safetensors").unlink()
    assert main(["replay", str(path), "--level", "pass"]) == 3
    assert "is missing: the log names tensors" in capsys.readouterr().err


# -- runs that broke -------------------------------------------------------------------------------


def test_a_rollback_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.esperlog"
    session = runs.train(path, seed=3, steps=8, broken_at=5)
    assert Log(path).counts()["rollback"] == 1
    assert any(life.kind == "immunity" for life in session.model.ecology.lives.values())
    for level in LEVELS:
        assert _replayed(path, capsys, "--level", level)[0] == 0


def _told(log: Log) -> list[tuple[int, str, Any]]:
    """The history of a log as far as it does not depend on who wrote it when."""
    kept = [e for e in surviving(log) if e.kind not in ("run-started", "finished")]
    return [(e.tick, e.kind, compare.payload(e.kind, e.payload)) for e in kept]


_KILLED = """
import sys
from tests.replay import payload_run, runs
with runs.installed():
    runs.FAULTS["hook"] = lambda tick: print(tick, flush=True)
    runs.train(sys.argv[1], seed=3, steps=1000)
"""


def test_kill_dash_nine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = 5
    path = tmp_path / "run.esperlog"
    command = [sys.executable, "-c", _KILLED, str(path)]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == at:
                process.kill()
                break
    log = Log(path)
    assert max(event.tick for event in log if event.kind == "tick") >= at - 1
    assert _replayed(path, capsys, "--level", "full")[0] == 0  # as far as it goes
    runs.FAULTS["hook"] = _crash(at + 3)
    with pytest.raises(CrashError):
        replay.resume(path)
    code, found = _replayed(path, capsys, "--level", "full")
    assert (code, found["notes"]) == (0, [])  # no notes: compared to the last bit


class CrashError(RuntimeError):
    """Not an error of Esper's."""


def _crash(at: int) -> Any:
    def hook(tick: int) -> None:
        if tick == at:
            raise CrashError("power is out")

    return hook


@pytest.mark.parametrize("at", [2, 6])
def test_a_run_goes_on_from_its_last_keyframe(
    recorded: Path, at: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.esperlog"
    runs.FAULTS["hook"] = _crash(at)
    with pytest.raises(CrashError):
        runs.train(path, seed=3)
    assert list(Log(path))[-1].payload.status == "failed"
    assert _replayed(path, capsys, "--level", "full")[0] == 0  # it fails again, likewise
    runs.FAULTS["hook"] = lambda tick: None
    assert _replayed(path, capsys, "--level", "full")[0] == 1
    replay.resume(path)

    assert _told(Log(path)) == _told(Log(recorded))
    for level in LEVELS:
        assert _replayed(path, capsys, "--level", level)[0] == 0
    (resumed,) = (event for event in Log(path) if event.kind == "resumed")
    lost = Log(path).event(resumed.payload.lost_after)
    assert lost.kind == ("run-started" if at < 4 else "keyframe")


# -- bad input -------------------------------------------------------------------------------------


def _edited(path: Path, tmp_path: Path, **changes: Any) -> Path:
    """The same log with another first event."""
    copy = tmp_path / "edited.esperlog"
    with Recorder(copy) as recorder:
        for event in Log(path):
            _copy(recorder, event, changes)
    return copy


def _copy(recorder: Recorder, event: Event, changes: dict[str, Any]) -> None:
    payload: Any = event.payload
    if event.kind == "run-started":
        payload = {**vars(payload), "config": {**payload.config, **changes}}
    recorder.tick = event.tick
    if event.kind != "finished":
        names = {"agent": event.agent, "target": event.target}
        recorder.event(event.kind, payload, cause=event.cause, **names)


CALL = {"function": "os:getcwd", "arguments": {}, "weights": ""}


@pytest.mark.parametrize(
    ("words", "changes", "code", "sentence"),
    [
        (["--level", "half"], {}, 2, "the levels are decision, pass, full"),
        (["--level", "decision", "--from", "X"], {}, 2, "belong to the levels"),
        (["--program", "none.py:f"], {}, 2, "there is no file"),
        (["--from", "ZZZZZZZZ"], {}, 3, "has no event"),
        ([], {"program": CALL}, 3, "not marked with @replayable"),
        ([], {"program": 3}, 3, "names no function"),
        (["--level", "decision"], {"policies": {}}, 3, "names no policy for the agent 'tamiyo'"),
        (["--level", "decision"], {"policies": {"tamiyo": CALL}}, 3, "not marked"),
    ],
)
def test_bad_input_is_one_sentence(
    recorded: Path,
    words: list[str],
    changes: dict[str, Any],
    code: int,
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = _edited(recorded, tmp_path, **changes) if changes else recorded
    assert main(["replay", str(path), *words]) == code
    err = capsys.readouterr().err
    assert sentence in err
    assert len(err.strip().splitlines()) == 1


def test_what_cannot_be_replayed(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Log(recorded).event(0)
    assert main(["replay", str(recorded), "--from", first.code]) == 3
    assert "not a keyframe" in capsys.readouterr().err
    for name, begin in (("none", []), ("unnamed", [first])):
        path = tmp_path / f"{name}.esperlog"
        with Recorder(path) as recorder:
            for event in begin:
                recorder.event("run-started", {**vars(event.payload), "config": {}})
    assert main(["replay", str(tmp_path / "none.esperlog")]) == 3
    assert "does not begin with run-started" in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "unnamed.esperlog")]) == 3
    assert "names no program" in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "missing.esperlog")]) == 3


def test_another_platform_is_compared_roughly(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "foreign.esperlog"
    with Recorder(path) as recorder:
        for event in Log(recorded):
            if event.kind == "run-started":
                platform = {**event.payload.platform, "torch": "1.0"}
                recorder.event("run-started", {**vars(event.payload), "platform": platform})
            else:
                _copy(recorder, event, {})
    code, found = _replayed(path, capsys, "--level", "full")
    assert (code, found["equal"]) == (0, True)
    assert "other torch" in found["notes"][0]
    runs.FAULTS["lr"] = 0.02
    assert _replayed(path, capsys, "--level", "full")[0] == 1


def test_a_run_that_went_on_elsewhere_is_compared_roughly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.esperlog"
    runs.train(path, seed=3, steps=2)
    with Recorder(path, resume=True):
        pass
    assert replay.full(Log(path)).notes == ()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    with Recorder(path, resume=True):
        pass
    torch.set_num_threads(threads)
    found = replay.full(Log(path))
    assert found.equal
    assert "other threads" in found.notes[0]


def test_everything_public_is_exported() -> None:
    for name in ("Generators", "Recorder", "Recording", "program", "replayable"):
        assert name in esper.__all__
