"""Reading a record: why, SQL, exports, and the commands around them."""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from esper.cli.main import main
from esper.recorder import tensorboard
from esper.recorder.decisions import (
    HeadMask,
    HeadSample,
    Mask,
    Observation,
    Outcome,
    Proposed,
    ResolvedConfig,
    Rewrite,
    Verdict,
)
from esper.recorder.event import Event
from esper.recorder.happenings import Metric, Tick, Transition
from esper.recorder.writer import Recorder
from tests.support import filecheck


def _decision(path: Path) -> dict[str, Event]:
    """A log with one whole decision."""
    who: dict[str, Any] = {"agent": "tamiyo", "target": "slot:stem.out"}
    with Recorder(path, run="run-test", clock=None) as r:
        r.tick = 3
        seen = r.event("observation", Observation("d1", {"loss": 0.5}), **who)
        head = HeadMask(("add", "multiply"), (True, False), ("", "cooldown"))
        mask = r.event(
            "mask", Mask({"blend": head}, {"cooldown": "changed 3 ticks ago"}), cause=seen, **who
        )
        drawn = HeadSample(
            "blend", ("add", "multiply"), (0.5, 2.0), (True, False), (1.0, 0.0), 0.0, 0.0, 0,
            "tamiyo", 7,
        )  # fmt: skip
        sample = r.event("head-sample", drawn, cause=mask, **who)
        asked = r.event("proposal", Proposed({"type": "plant-seed"}), cause=sample, **who)
        config = ResolvedConfig(blueprint="norm", blend="add", tempo="20", values={"seed": 4})
        resolved = r.event("resolved-config", config, cause=asked, **who)
        said = Verdict("passed", "applied", "planted norm", figures={"parameters": 8})
        verdict = r.event("verdict", said, cause=resolved, **who)
        done = r.event("rewrite", Rewrite("p1", "g1", "g2"), cause=verdict, **who)
        r.event("transition", Transition("dormant", "incubating"), target="slot:stem.out")
        r.tick = 9
        r.event("transition", Transition("incubating", "blending"), target="slot:stem.out")
        out = r.event("outcome", Outcome({"loss_change": -0.1}, 6, "paired"), cause=done, **who)
        r.event("metric", Metric("accuracy", 0.75))
        r.event("tick", Tick(loss=0.25))
    return {"seen": seen, "verdict": verdict, "done": done, "out": out}


@pytest.fixture
def log(tmp_path: Path) -> tuple[Path, dict[str, Event]]:
    path = tmp_path / "run.esperlog"
    return path, _decision(path)


def test_why_prints_the_chain(
    log: tuple[Path, dict[str, Event]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, events = log
    assert main(["why", str(path), events["verdict"].code[:6].lower()]) == 0
    text = capsys.readouterr().out
    filecheck(
        text,
        """
        CHECK: tick 3  observation of slot:stem.out by tamiyo
        CHECK-NEXT: saw d1
        CHECK-NEXT: loss = 0.5
        CHECK-NEXT: mask of slot:stem.out by tamiyo
        CHECK-NEXT: blend: add allowed
        CHECK-NEXT: not multiply: cooldown (changed 3 ticks ago)
        CHECK-NEXT: head-sample
        CHECK-NEXT: blend: chose add with tamiyo, draw 7 (log-probability 0, entropy 0)
        CHECK-NEXT: * add       logit    0.5000    1.0000
        CHECK-NEXT: multiply  logit    2.0000    masked
        CHECK-NEXT: proposal
        CHECK-NEXT: asked for {"type": "plant-seed"}
        CHECK-NEXT: resolved-config
        CHECK-NEXT: blend = "add"
        CHECK-NEXT: blueprint = "norm"
        CHECK-NEXT: seed = 4
        CHECK-NEXT: tempo = "20"
        CHECK-NEXT: => {{.*}} verdict
        CHECK-NEXT: passed [applied]: planted norm
        CHECK-NEXT: parameters = 8
        CHECK: and so
        CHECK-NEXT: rewrite
        CHECK: graph g1 -> g2
        CHECK: outcome
        CHECK-NEXT: outcome over 6 ticks (paired)
        CHECK-NEXT: loss_change = -0.1
        """,
    )
    assert main(["why", str(path), events["verdict"].code, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [cause["kind"] for cause in data["causes"]][:2] == ["observation", "mask"]
    assert [effect["kind"] for effect in data["effects"]] == ["rewrite", "outcome"]


def test_sql(log: tuple[Path, dict[str, Event]], capsys: pytest.CaptureFixture[str]) -> None:
    path, events = log
    query = "SELECT v.code, v.result, m.value FROM verdict v, metric m WHERE m.value > 0.5"
    assert main(["log", str(path), "--json", "--sql", query]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"code": events["verdict"].code, "result": "passed", "value": 0.75}
    ]
    assert main(["log", str(path), "--sql", "SELECT kind, count(*) FROM events GROUP BY 1"]) == 0
    assert "transition" in capsys.readouterr().out
    assert main(["log", str(path), "--sql", "SELEC"]) == 2
    assert "this query cannot be run" in capsys.readouterr().err


def test_exports_are_read_back(
    log: tuple[Path, dict[str, Event]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import duckdb

    path, _ = log
    parquet, trace = tmp_path / "out'put.parquet", tmp_path / "trace.json"
    assert main(["log", str(path), "--export", "parquet", "-o", str(parquet)]) == 0
    assert capsys.readouterr().out == f"wrote {parquet}\n"
    table = duckdb.read_parquet(str(parquet).replace("'", "?")).fetchall()
    assert len(table) == 13
    assert main(["log", str(path), "--export", "perfetto", "-o", str(trace), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"wrote": str(trace)}
    made = json.loads(trace.read_text())["traceEvents"]
    slices = [(e["name"].split()[0], e["ts"], e["dur"]) for e in made if e["ph"] == "X"]
    assert slices == [("incubating", 3000, 6000), ("blending", 9000, 1000)]
    assert {(e["name"], e["args"]["value"]) for e in made if e["ph"] == "C"} == {
        ("accuracy", 0.75),
        ("loss", 0.25),
    }
    assert {e["args"]["name"] for e in made if e["ph"] == "M"} == {"slot:stem.out", "tamiyo", "run"}


def _fields(data: bytes) -> list[tuple[int, Any]]:
    """A protobuf message as (number, value) pairs."""

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            value |= (data[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 128:
                return value, at

    found: list[tuple[int, Any]] = []
    at = 0
    while at < len(data):
        key, at = varint(at)
        value: Any
        if key & 7 == 2:
            length, at = varint(at)
            value, at = data[at : at + length], at + length
        elif key & 7 == 0:
            value, at = varint(at)
        else:
            form = "<d" if key & 7 == 1 else "<f"
            size = struct.calcsize(form)
            value, at = struct.unpack(form, data[at : at + size])[0], at + size
        found.append((key >> 3, value))
    return found


def test_tensorboard_reads_the_event_file(
    log: tuple[Path, dict[str, Event]], tmp_path: Path
) -> None:
    path, events = log
    folder = tmp_path / "board"
    assert main(["log", str(path), "--export", "tensorboard", "-o", str(folder)]) == 0
    data = (folder / tensorboard.FILE).read_bytes()
    # The check value of CRC-32C, masked.
    crc = 0xE3069283
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert tensorboard._checksum(b"123456789") == struct.pack("<I", masked)
    messages = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        body = data[12 : 12 + length]
        assert data[8:12] == tensorboard._checksum(data[:8])
        assert data[12 + length : 16 + length] == tensorboard._checksum(body)
        messages.append(dict(_fields(body)))
        data = data[16 + length :]
    assert messages[0] == {1: 0.0, 3: b"brain.Event:2"}
    scalars, texts = {}, {}
    for message in messages[1:]:
        value = dict(_fields(dict(_fields(message[5]))[1]))
        tag = value[1].decode()
        if 8 in value:
            assert dict(_fields(dict(_fields(value[9]))[1])) == {1: b"text"}
            texts[tag] = (message[2], dict(_fields(value[8]))[8].decode())
        else:
            scalars[tag] = (message[2], value[2])
    assert scalars["loss"] == (9, 0.25)
    assert scalars["accuracy"] == (9, 0.75)
    assert scalars["outcome/loss_change"][1] == pytest.approx(-0.1)
    assert scalars["tamiyo/blend/entropy"] == (3, 0.0)
    code = events["verdict"].code
    assert texts["tamiyo/verdict"] == (
        3,
        f"{code} slot:stem.out: passed [applied] planted norm",
    )


def test_a_store_of_mlflow(log: tuple[Path, dict[str, Event]], tmp_path: Path) -> None:
    path, events = log
    folder = tmp_path / "store"
    with Recorder(path, resume=True) as recorder:
        recorder.event("metric", Metric("../../out", float("inf")))
    assert main(["log", str(path), "--export", "mlflow", "-o", str(folder)]) == 0
    files = {str(f.relative_to(folder)): f for f in folder.rglob("*") if f.is_file()}
    run = hashlib.blake2b(b"run-test", digest_size=16).hexdigest()
    about = dict(
        line.split(": ", 1) for line in files[f"0/{run}/meta.yaml"].read_text().split("\n")[:-1]
    )
    assert (about["run_id"], about["run_name"], about["status"]) == (f'"{run}"', '"run-test"', "3")
    assert files[f"0/{run}/metrics/loss"].read_text() == "9 0.25 9\n"
    assert files[f"0/{run}/metrics/outcome/loss_change"].read_text().endswith(" -0.1 9\n")
    assert files[f"0/{run}/metrics/out"].read_text().split()[1] == "inf"
    code = events["verdict"].code
    assert files[f"0/{run}/tags/{code}"].read_text() == "passed [applied] planted norm"
    assert files[f"0/{run}/tags/mlflow.runName"].read_text() == "run-test"
    assert "0/meta.yaml" in files


def test_summary_and_verification(
    log: tuple[Path, dict[str, Event]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, events = log
    assert main(["log", str(path)]) == 0
    text = capsys.readouterr().out
    assert "holds 13 events, all sealed" in text
    assert f"{events['verdict'].code}  tick 3  slot:stem.out  applied: planted norm" in text
    assert main(["log", str(path), "--verify"]) == 0
    capsys.readouterr()
    data = bytearray(path.read_bytes())
    data[400] ^= 1
    path.write_bytes(data)
    assert main(["log", str(path), "--verify"]) == 1
    assert "is the first bad one" in capsys.readouterr().out
    assert main(["log", str(path)]) == 3
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["log", "none.esperlog"], 3, "cannot be read"),
        (["log", "LOG", "--verify", "--sql", "x"], 2, "exclude one another"),
        (
            ["log", "LOG", "--export", "csv", "-o", "x"],
            2,
            "parquet, perfetto, tensorboard or mlflow",
        ),
        (["log", "LOG", "--export", "parquet"], 2, "needs -o"),
        (["log", "LOG", "--export", "parquet", "-o", "none/x"], 2, "cannot be written"),
        (["log", "LOG", "--export", "perfetto", "-o", "none/x"], 2, "cannot be written"),
        (["log", "LOG", "--export", "tensorboard", "-o", "LOG"], 2, "cannot be made"),
        (["log", "LOG", "--export", "mlflow", "-o", "LOG"], 2, "cannot be written"),
        (["log", "LOG", "--sql", " "], 2, "is empty"),
        (["log", "LOG", "--sql", "SELECT * FROM nothing"], 2, "cannot be run"),
        (["log", "LOG", "-o", "x"], 2, "-o is where --export writes"),
        (["log", "LOG", "--verify", "-o", "x"], 2, "-o is where --export writes"),
        (["log", "LOG", "--bogus"], 2, "there is no option --bogus"),
        (["log"], 2, "missing argument"),
        (["why", "LOG"], 2, "missing argument"),
        (["why", "none.esperlog", "A"], 3, "cannot be read"),
        (["log", __file__], 3, "not a flight record"),
        (["why", "LOG", "ZZZZZZZZ"], 3, "has no event"),
        (["why", "LOG", "U!"], 3, "is no code"),
    ],
)
def test_bad_input_is_one_sentence(
    log: tuple[Path, dict[str, Event]],
    words: list[str],
    code: int,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([str(log[0]) if word == "LOG" else word for word in words]) == code
    err = capsys.readouterr().err
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err


def test_what_needs_duckdb_says_so(
    log: tuple[Path, dict[str, Event]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    output = str(tmp_path / "x.parquet")
    for words in (["--sql", "SELECT 1"], ["--export", "parquet", "-o", output]):
        assert main(["log", str(log[0]), *words]) == 2
        assert "pip install 'esper-opt[log]'" in capsys.readouterr().err
