"""What a session records beside proposals, and that a log alone brings a run back."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import esper
from esper.live import keyframes, packing
from esper.live.recording import Recording
from esper.recorder.event import Event
from esper.recorder.log import Log
from esper.recorder.sidecar import directory
from esper.recorder.writer import Recorder
from tests.live.training import CUT, batch, step, traced


class Counted:
    """Something that an agent would remember."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state: Any) -> None:
        self.seen = list(state["seen"])


def _session(recorder: Any, **recording: Any) -> tuple[esper.Session, Counted]:
    model = traced(torch.float32)
    memory = Counted()
    session = esper.Session(
        model,
        torch.optim.AdamW(model.parameters(), lr=0.01),
        recorder=recorder,
        recording=Recording(**recording),
        generators=esper.Generators(5),
        governor=esper.Governor(),
        stateful={"memory": memory},
    )
    return session, memory


def _run(session: esper.Session, memory: Counted, to: int, *, cut_at: int = 2) -> None:
    while session.tick < to:
        data = batch(session.generators["data"].generator(), torch.float32)
        loss = step(session.model, session.optimizer, data)
        memory.seen.append(loss)
        with session.boundary(loss, batch=data) as boundary:
            if session.tick == cut_at:
                boundary.submit(CUT)


def _of(path: Path, kind: str) -> list[Event]:
    return [event for event in Log(path) if event.kind == kind]


def test_digests_and_keyframes_come_as_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "run.esperlog"
    session, memory = _session(
        path, digests_every=4, keyframes_every=2, keyframes=3, config={"about": "this"}
    )
    _run(session, memory, 17)
    session.close()
    (start,) = _of(path, "run-started")
    assert start.payload.config == {"about": "this"}
    assert start.payload.seeds == {"": 5, "torch": 0}
    assert [e.payload.index for e in _of(path, "boundary")] == [3, 4, 8, 12, 16]
    assert all(e.payload.generators == {"data": e.payload.index} for e in _of(path, "boundary"))
    assert len({event.payload.batch for event in _of(path, "tick")}) == 17
    frames = _of(path, "keyframe")
    assert [event.tick for event in frames] == [2, 4, 6, 8, 12, 16]
    kept = {
        e.tick for e in frames if (directory(path) / f"{e.payload.digest}.safetensors").exists()
    }
    assert kept == {8, 16}
    with pytest.raises(esper.EsperError, match="is missing"):
        keyframes.read(Log(path), frames[0])
    with pytest.raises(esper.EsperError, match="not a keyframe"):
        keyframes.read(Log(path), start)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 7), st.integers(2, 6), st.integers(1, 400))
def test_the_number_of_keyframes_is_bounded(every: int, most: int, last: int) -> None:
    recording = Recording(keyframes_every=every, keyframes=most)
    kept: set[int] = set()
    for tick in range(1, last + 1):
        if recording.keyframe_due(tick):
            kept.add(tick)
            kept = {earlier for earlier in kept if earlier % recording.period(tick) == 0}
            assert tick in kept
        assert len(kept) <= most
    # The last one is never further back than a share of the run.
    assert last - max(kept, default=0) < max(every, 2 * last / most + 1)


def test_nothing_is_recorded_that_was_not_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "run.esperlog"
    session, memory = _session(path)
    _run(session, memory, 3, cut_at=-1)
    session.close()
    assert set(Log(path).counts()) == {"run-started", "tick", "finished"}
    assert not directory(path).exists()


@pytest.mark.parametrize(
    "options",
    [{"digests_every": -1}, {"keyframes_every": -2}, {"sync_seconds": -1}, {"keyframes": 1}],
)
def test_what_is_no_recording(options: dict[str, Any]) -> None:
    with pytest.raises(esper.EsperError, match=r"not negative|at least 2"):
        Recording(**options)


def test_a_log_brings_the_run_back(tmp_path: Path) -> None:
    whole, memory = _session(None)
    _run(whole, memory, 9)
    path = tmp_path / "run.esperlog"
    session, first = _session(path, keyframes_every=4)
    _run(session, first, 7)
    session.close()
    with keyframes.continued(path) as recorder:
        again, second = _session(recorder, keyframes_every=4)
        assert again.tick == 4
        assert second.seen == first.seen[:4]
        assert again.generators.cursors == {"data": 4}
        _run(again, second, 9)
    assert second.seen == memory.seen
    for (name, own), (_, other) in zip(
        again.model.all_tensors(), whole.model.all_tensors(), strict=True
    ):
        assert torch.equal(own, other), name
    assert [event.tick for event in _of(path, "keyframe")] == [4, 8]
    assert _of(path, "resumed")[0].payload.lost_after == _of(path, "keyframe")[0].number


def test_a_log_without_keyframes_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "run.esperlog"
    Recorder(path, run="r").close()
    with keyframes.continued(path) as recorder:
        assert (recorder.run, recorder.events) == ("r", 0)
        session, memory = _session(recorder)
        _run(session, memory, 2)
    with keyframes.continued(path) as recorder:
        session, memory = _session(recorder)
        assert session.tick == 0
    assert len(_of(path, "run-started")) == 1
    assert _of(path, "resumed")[0].payload.lost_after == 0


def test_a_boundary_that_an_error_ends_is_recorded_as_undone(tmp_path: Path) -> None:
    path = tmp_path / "run.esperlog"
    session, _ = _session(path)

    def fail(*proposals: Any) -> None:
        with session.boundary(1.0) as boundary:
            boundary.submit(*proposals)
            raise KeyError("mine")

    for proposals in ((CUT,), ()):
        with pytest.raises(KeyError):
            fail(*proposals)
    session.close()
    (undone,) = _of(path, "rollback")
    assert undone.payload.reason == "the boundary ended with KeyError"
    assert not _of(path, "boundary")


def test_a_rollback_takes_streams_and_memory_along(tmp_path: Path) -> None:
    session, memory = _session(None)
    _run(session, memory, 3, cut_at=-1)
    kept, cursors = list(memory.seen), session.generators.cursors
    session.keep()
    session.generators["data"].bits()
    memory.seen.append(9.0)
    with session.boundary(float("nan")) as boundary:
        assert boundary.rolled_back
    assert (memory.seen, session.generators.cursors) == (kept, cursors)


def test_a_state_of_other_company_is_refused() -> None:
    session, _ = _session(None)
    state = session.state_dict()
    with pytest.raises(esper.EsperError, match="what \\['other'\\] keep"):
        session.load_state_dict({**state, "stateful": {"other": {}}})
    other = {"seeds": {"": 6}, "cursors": {}}
    with pytest.raises(esper.EsperError, match="seeds"):
        session.load_state_dict({**state, "generators": other})


# -- packing ---------------------------------------------------------------------------------------


def test_a_state_is_packed_and_unpacked() -> None:
    state = {
        "a": (1, 2.5, None, [True, "x", float("inf")]),
        "t": {"w": torch.arange(3.0), "deep": [torch.tensor(2), torch.empty(0)]},
        "numbers": {3: "three", 4: (4,)},
        "$odd": {"$tensor": "no tensor"},
        "order": OrderedDict(z=1, a=2),
    }
    found = packing.unpack(packing.pack(state))
    tensors = [found["t"]["w"], *found["t"]["deep"]]
    expected = [torch.arange(3.0), torch.tensor(2), torch.empty(0)]
    assert all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))
    assert {k: v for k, v in found.items() if k != "t"} == {
        k: v for k, v in state.items() if k != "t"
    }
    assert list(found["order"]) == ["z", "a"]
    assert isinstance(found["a"], tuple)
    assert found["a"][3][0] is True
    with pytest.raises(esper.EsperError, match="/deep is a set"):
        packing.pack({"deep": {1}})
    for damage in (
        {},
        {"state": torch.zeros(3)},
        {"state": torch.tensor([123], dtype=torch.uint8)},
    ):
        with pytest.raises(esper.EsperError, match="no training state"):
            packing.unpack(damage)
