"""The log: what is written comes back, and what was promised survives everything."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esper.errors import EsperError, InputError, OutputError, UsageError
from esper.recorder import canonical, frames
from esper.recorder.chain import verify_path
from esper.recorder.codes import ALPHABET, Codes
from esper.recorder.decisions import HeadMask, HeadSample, Mask, Observation
from esper.recorder.event import Event
from esper.recorder.happenings import Metric, Tick
from esper.recorder.log import Log
from esper.recorder.writer import Recorder

_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
_KINDS = st.sampled_from(["own-kind", "other"])
_EVENTS = st.lists(st.tuples(_KINDS, st.dictionaries(st.text(), _PLAIN)))
_QUICK = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _fresh(folder: Path) -> Path:
    return folder / f"{len(list(folder.iterdir()))}.esperlog"


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)


@_QUICK
@given(_EVENTS)
def test_events_come_back(tmp_path: Path, events: list[tuple[str, dict[str, Any]]]) -> None:
    path = _fresh(tmp_path)
    with Recorder(path, clock=None) as recorder:
        made = [
            recorder.event(kind, payload, cause=number - 1 if number else None)
            for number, (kind, payload) in enumerate(events)
        ]
    log = Log(path)
    assert len(log) == len(events) + 1  # and the event that the run finished
    for event, (kind, payload), found in zip(made, events, log, strict=False):
        assert (found.kind, found.code, found.cause) == (kind, event.code, event.cause)
        assert _same(found.payload, payload)
        assert log.find(event.code).number == event.number
    assert verify_path(path).sealed == len(log)


@_QUICK
@given(st.integers(1, 6), st.integers(0, 6), st.data())
def test_a_cut_tail_keeps_what_was_sealed(
    tmp_path: Path, before: int, after: int, data: st.DataObject
) -> None:
    path = _fresh(tmp_path)
    recorder = Recorder(path)
    for number in range(before):
        recorder.event("metric", Metric("loss", number))
    recorder.sync()
    promised = path.stat().st_size
    for number in range(after):
        recorder.event("metric", Metric("loss", -number))
    whole = path.read_bytes()
    recorder.close()
    cut = data.draw(st.integers(promised, len(whole)))
    path.write_bytes(whole[:cut])
    found = verify_path(path)
    assert found.ok
    assert found.events >= found.sealed == before
    assert found.end + found.torn_bytes == cut
    assert ("torn" in found.reason) == bool(found.torn_bytes)
    again = Recorder(path, resume=True)
    assert again.resumed is not None
    assert again.resumed.payload.truncated_bytes == found.torn_bytes
    again.close()
    assert verify_path(path).events == found.events + 1
    assert verify_path(path).torn_bytes == 0


@_QUICK
@given(st.data())
def test_every_flipped_byte_is_noticed(tmp_path: Path, data: st.DataObject) -> None:
    path = _fresh(tmp_path)
    with Recorder(path) as recorder:
        for number in range(4):
            recorder.event("metric", Metric("loss", number))
        recorder.sync()
    whole = bytearray(path.read_bytes())
    # What lies behind the last seal but one was promised by that; the rest is a torn tail at most.
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    if at < len(frames.START):
        with pytest.raises(InputError, match=r"is not a flight record|format"):
            verify_path(path)
        return
    found = verify_path(path)
    assert not found.ok or found.torn_bytes
    if not found.ok:
        assert "first bad one" in found.reason or "header" in found.reason
        with pytest.raises(InputError, match="damaged"):
            Log(path)


def test_codes_are_unique_and_survive_being_read_aloud(tmp_path: Path) -> None:
    codes = Codes("run-1")
    made = [codes.code(n) for n in range(20_000)]
    assert len(set(made)) == len(made)
    assert [codes.number(c) for c in made[:1000]] == list(range(1000))
    assert set("".join(made)) <= set(ALPHABET)
    path = tmp_path / "a.esperlog"
    with Recorder(path) as recorder:
        event = recorder.event("tick", Tick())
    spoken = event.code.lower().replace("1", "l").replace("0", "o")
    log = Log(path)
    assert log.find(spoken).number == event.number
    assert log.find(event.code[:6]).number == event.number
    with pytest.raises(InputError, match="no code"):
        log.find("not a code!")
    with pytest.raises(InputError, match="no event"):
        log.find(codes.code(3))


def test_causes_and_effects(tmp_path: Path) -> None:
    path = tmp_path / "a.esperlog"
    with Recorder(path) as recorder:
        root = recorder.event("observation", Observation("d"))
        two = [recorder.event("own", {"n": n}, cause=root) for n in range(2)]
        leaf = recorder.event("own", {}, cause=two[1])
    log = Log(path)
    assert [e.number for e in log.causes(log.event(leaf.number))] == [0, 2, 3]
    assert [e.number for e in log.effects(log.event(0))] == [1, 2]
    with pytest.raises(InputError, match="has no event 9"):
        log.event(9)


@pytest.mark.parametrize(
    ("kind", "payload", "sentence"),
    [
        ("Bad Kind", {}, "cannot name a kind"),
        ("metric", {"name": "x"}, "value"),
        ("metric", {"name": "x", "value": 1.0, "more": 2}, "more"),
        ("own", {"tensor": torch.ones(2)}, "Tensor"),
        ("tick", Metric("x", 1.0), "cannot hold the payload of metric"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, kind: str, payload: Any, sentence: str
) -> None:
    with Recorder(tmp_path / "a.esperlog") as recorder:
        with pytest.raises(UsageError, match=sentence):
            recorder.event(kind, payload)
        with pytest.raises(UsageError, match="cannot be caused"):
            recorder.event("own", {}, cause=7)
        assert recorder.events == 0


def test_decisions_must_be_whole() -> None:
    with pytest.raises(UsageError, match="needs a rule"):
        HeadMask(("a", "b"), (True, False), ("", ""))
    with pytest.raises(UsageError, match="equally"):
        HeadMask(("a",), (True, False), ("", ""))
    with pytest.raises(UsageError, match="no choice number 3"):
        HeadSample("op", ("a",), (0.0,), (True,), (1.0,), 0.0, 0.0, 3)
    assert Mask({"op": HeadMask(("a", "b"), (True, False), ("", "cooldown"))}).heads["op"].rules


def test_one_log_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "a.esperlog"
    with Recorder(path) as recorder:
        with pytest.raises(UsageError, match="exists"):
            Recorder(path)
        with pytest.raises(UsageError, match="another recorder"):
            Recorder(path, resume=True)
        recorder.event("tick", Tick())
    with pytest.raises(UsageError, match="closed"):
        recorder.event("tick", Tick())
    with pytest.raises(UsageError, match="not of run-x"):
        Recorder(path, resume=True, run="run-x")
    with pytest.raises(InputError, match="no log"):
        Recorder(tmp_path / "none.esperlog", resume=True)
    with pytest.raises(OutputError, match="cannot be written"):
        Recorder(tmp_path / "none" / "a.esperlog")


def test_a_forked_process_may_not_write(tmp_path: Path) -> None:
    path = tmp_path / "a.esperlog"
    recorder = Recorder(path)
    recorder.event("tick", Tick())

    def child(queue: Any) -> None:
        try:
            recorder.event("tick", Tick())
            queue.put("wrote")
        except EsperError as error:
            queue.put(str(error))

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    assert "forked" in queue.get(timeout=60)
    process.join()
    recorder.event("tick", Tick())
    recorder.close()
    assert verify_path(path).events == 2


def test_a_checkpoint_is_held_against_the_log(tmp_path: Path) -> None:
    path = tmp_path / "a.esperlog"
    recorder = Recorder(path)
    recorder.event("tick", Tick(loss=1.0))
    recorder.sync()
    position = recorder.position
    recorder.event("tick", Tick(loss=2.0))
    recorder.close()
    again = Recorder(path, resume=position)
    assert again.resumed is not None
    assert again.resumed.payload.lost_after == 0  # event 1 happened in a life that was lost
    late = again.position
    again.close()
    other = tmp_path / "b.esperlog"
    with Recorder(other, run=again.run) as another:
        another.event("tick", Tick(loss=9.0))
    with pytest.raises(InputError, match="another life"):
        Recorder(other, resume=position)
    with pytest.raises(InputError, match="ends with"):
        Recorder(other, resume={**late, "events": 99})


def test_tensors_stand_beside_the_log(tmp_path: Path) -> None:
    path = tmp_path / "a.esperlog"
    shared = torch.arange(6.0).reshape(2, 3)
    with Recorder(path) as recorder:
        event = recorder.keyframe({"a": shared, "b": shared.t()}, state={"step": 3})
    log = Log(path)
    found = log.tensors(log.event(event.number).payload.digest)
    assert torch.equal(found["b"], shared.t())
    (file,) = (tmp_path / "a.esperlog.d").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match=r"damaged|cannot be read"):
        log.tensors(event.payload.digest)
    file.unlink()
    with pytest.raises(InputError, match="missing"):
        log.tensors(event.payload.digest)


def test_equal_values_have_equal_text() -> None:
    assert canonical.encode({"b": 1, "a": (1.5, math.nan)}) == canonical.encode(
        {"a": [1.5, math.nan], "b": 1}
    )
    tricky = {"$float": "nan"}
    assert canonical.decode(canonical.encode(tricky)) == tricky


_WRITER = textwrap.dedent(
    """
    import sys
    from esper.recorder.happenings import Tick
    from esper.recorder.writer import Recorder

    recorder = Recorder(sys.argv[1])
    print("ready", flush=True)
    count = 0
    while True:
        recorder.event("tick", Tick(loss=float(count)))
        count += 1
        if count % 7 == 0:
            recorder.sync()
            print(count, flush=True)
    """
)


@pytest.mark.parametrize("moment", range(8))
def test_kill_dash_nine_loses_nothing_that_was_synced(tmp_path: Path, moment: int) -> None:
    path = tmp_path / "killed.esperlog"
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    time.sleep(0.01 + 0.013 * moment)
    os.kill(process.pid, signal.SIGKILL)
    told = [int(line) for line in process.stdout.read().split() if line.isdigit()]
    process.wait()
    process.stdout.close()
    found = verify_path(path)
    assert found.ok
    assert found.events >= found.sealed >= (told[-2] if len(told) > 1 else 0)
    events: list[Event] = list(Log(path))
    assert [event.payload.loss for event in events] == [float(n) for n in range(len(events))]
