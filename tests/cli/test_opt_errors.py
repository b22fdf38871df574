"""Whatever goes wrong: one sentence, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from esper.cli.opt import main
from tests.cli.support import (
    Hostile,
    assert_one_sentence,
    exported,
    hostile_pickle,
    saved,
    small,
)

Capture = pytest.CaptureFixture[str]
# Alignment is given, since the default is measured and may keep everything.
PRUNE = ["-p", "prune{ratio=0.5 align=1}", "--no-gate"]


@pytest.fixture(scope="module")
def archive() -> bytes:
    return exported()


@pytest.fixture
def model(archive: bytes, tmp_path: Path) -> str:
    path = tmp_path / "model.pt2"
    path.write_bytes(archive)
    return str(path)


def fails(capsys: Capture, code: int, *argv: str) -> str:
    """Run, check exit code and form of the message, and return the message."""
    capsys.readouterr()
    found = main(list(argv))
    out, err = capsys.readouterr()
    assert found == code, err
    assert out == ""
    assert err.startswith("esper-opt: error: ")
    assert_one_sentence(err)
    return err


def script(folder: Path, code: str) -> str:
    path = folder / "user_code.py"
    path.write_text(code)
    return str(path)


# -- INPUT -----------------------------------------------------------------------------------------


def test_files_that_are_no_models(archive: bytes, tmp_path: Path, capsys: Capture) -> None:
    contents = {
        "empty": b"",
        "random": random.Random(0).randbytes(5000),
        "text": b"not a model\n",
        "truncated": archive[: len(archive) // 2],
    }
    for name, data in contents.items():
        for suffix in (".pt2", ".esper", ".onnx", ".pt", ".pth"):
            path = tmp_path / f"{name}{suffix}"
            path.write_bytes(data)
            assert name in fails(capsys, 3, str(path))
    fails(capsys, 3, str(tmp_path / "absent.pt2"))
    fails(capsys, 3, str(tmp_path))


def test_pickles(tmp_path: Path, capsys: Capture) -> None:
    marker = tmp_path / "marker"
    for number, data in enumerate((hostile_pickle(marker), saved(Hostile(marker)))):
        for suffix in (".pt2", ".esper", ".onnx", ".pt", ".pth"):
            path = tmp_path / f"m{number}{suffix}"
            path.write_bytes(data)
            assert "--allow-pickle" in fails(capsys, 3, str(path))
            assert not marker.exists()


def test_state_dicts(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(saved(small().state_dict()))
    assert "--model" in fails(capsys, 3, str(path))
    other = "from torch import nn\ndef make(): return nn.Linear(3, 3)\n"
    factory = script(tmp_path, other) + ":make"
    assert "does not fit Linear" in fails(capsys, 3, str(path), "--model", factory)
    assert "did you mean 'make'" in fails(capsys, 2, str(path), "--model", factory + "r")


def test_weights_that_are_not_finite(tmp_path: Path, capsys: Capture) -> None:
    for value in (float("nan"), float("inf")):
        module = small()
        with torch.no_grad():
            module.first.weight[0, 0] = value
        path = tmp_path / "m.pt2"
        path.write_bytes(exported(module))
        assert "first.weight" in fails(capsys, 3, str(path))


def test_a_model_that_cannot_be_exported(tmp_path: Path, capsys: Capture) -> None:
    code = """
import torch
from torch import nn

class Branchy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        if self.linear(x).sum().item() > 0:  # depends on the data
            return x
        return -x

def make():
    return Branchy()
"""
    factory = script(tmp_path, code) + ":make"
    weights = tmp_path / "w.pt"
    weights.write_bytes(saved({"linear.weight": torch.ones(4, 4), "linear.bias": torch.ones(4)}))
    argv = [str(weights), "--model", factory, "--inputs", "x=float32[2,4]"]
    message = fails(capsys, 4, *argv)
    assert "Branchy" in message
    assert "user_code.py:11" in message
    assert "self.linear(x).sum().item()" in message


def test_inputs_that_do_not_fit(model: str, capsys: Capture) -> None:
    message = fails(capsys, 2, model, "--inputs", "x=float32[4,7]")
    assert "does not run on the example inputs" in message
    assert "x" in fails(capsys, 2, model, "--inputs", "y=float32[4,6]")
    fails(capsys, 2, model, "--inputs", "x=float32[4")


def test_a_model_without_inputs(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(saved(small().state_dict()))
    code = "from tests.cli.support import small\n"
    factory = script(tmp_path, code) + ":small"
    assert "give --inputs" in fails(capsys, 2, str(path), "--model", factory)


# -- options ---------------------------------------------------------------------------------------


def test_options_and_passes_that_do_not_exist(model: str, capsys: Capture) -> None:
    assert "did you mean --remarks?" in fails(capsys, 2, model, "--remraks")
    assert "there is no option --zzz" in fails(capsys, 2, model, "--zzz")
    assert "--seed" in fails(capsys, 2, model, "--seed", "many")
    assert "which model?" in fails(capsys, 2)
    assert "did you mean 'prune'" in fails(capsys, 2, "--describe", "prun")
    assert "O7" in fails(capsys, 2, model, "-O7")


def test_a_malformed_pipeline_shows_the_place(model: str, capsys: Capture) -> None:
    for text, near in [
        ("prune{ratio=0.3", ""),
        ("prun{ratio=0.3}", "did you mean 'prune'?"),
        ("prune{raito=0.3}", "did you mean 'ratio'?"),
        ("prune{ratio=lots}", ""),
        ("prune,,prune", ""),
    ]:
        assert main([model, "-p", text]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        lines = err.rstrip("\n").splitlines()
        assert lines[0].startswith("esper-opt: error: ")
        assert near in lines[0]
        assert lines[1].strip() == text
        assert set(lines[2].strip()) == {"^"}


def test_options_that_exclude_or_need_one_another(model: str, capsys: Capture) -> None:
    for argv in (
        ["-p", "prune", "-O1"],
        ["--static", "--dynamic", "x:1"],
        ["--verify-each", "--no-verify"],
        ["--no-gate", "--backend", "eager"],
        ["--no-gate", "--objective", "training"],
        ["--no-gate", "--device", "cpu"],
        ["--no-gate", "--budget-seconds", "9"],
        ["--max-loss", "1%"],
        ["--max-loss", "lots", "--eval", "f.py:f"],
        ["--dynamic", "x"],
        ["--threads", "0"],
        ["--budget-seconds", "-1"],
        ["--budget-seconds", "inf"],
        ["--opt-bisect-limit", "-2"],
        ["--remarks=pased"],
        ["--remarks=passed,("],
        ["--print-ir-after=prun"],
        ["-p", "prune", "--target-speedup", "2"],
        ["-p", "search(prune{ratio=0.1})"],
        ["--run-reproducer", "r.json"],
    ):
        arguments = [model, *argv] if "-p" in argv or "-O1" in argv else [model, "-O0", *argv]
        assert fails(capsys, 2, *arguments)
    assert main([model, "-O0", "-q", "-v"]) == 2
    assert main([model, "-O0", "-q", "--json"]) == 2


def test_a_backend_that_cannot_time_the_step_is_told_at_once(model: str, capsys: Capture) -> None:
    argv = [model, "-O0", "--backend", "openvino", "--objective", "training"]
    assert "openvino cannot run a training step" in fails(capsys, 5, *argv)


def test_errors_are_json_when_that_was_asked_for(tmp_path: Path, capsys: Capture) -> None:
    assert main([str(tmp_path / "absent.pt2"), "--json"]) == 3
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["exit_code"] == 3
    assert found["error"] in err


def test_tracebacks_only_with_v(tmp_path: Path, capsys: Capture) -> None:
    assert main([str(tmp_path / "absent.pt2"), "-v"]) == 3
    assert "Traceback" in capsys.readouterr().err


# -- the user's functions --------------------------------------------------------------------------

EVALS = """
import torch
calls = []
def raises(module): raise RuntimeError("no data today")
def nan(module): return float("nan")
def text(module): return "good"
def changes(module):
    with torch.no_grad():
        next(module.parameters()).add_(1)
    return 1.0
def late(module):
    calls.append(1)
    if len(calls) > 1:
        raise RuntimeError("second time")
    return 1.0
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [("raises", "no data today"), ("nan", "nan"), ("text", ""), ("changes", "")],
)
def test_evaluations_that_go_wrong(
    name: str, expected: str, model: str, tmp_path: Path, capsys: Capture
) -> None:
    path = script(tmp_path, EVALS)
    output = tmp_path / "out.pt2"
    output.write_bytes(b"old")
    message = fails(
        capsys, 2, model, *PRUNE, "--eval", f"{path}:{name}",
        "-o", str(output),
    )  # fmt: skip
    assert expected in message
    assert output.read_bytes() == b"old"


def test_an_evaluation_that_raises_on_the_candidate_speaks_against_it(
    model: str, tmp_path: Path, capsys: Capture
) -> None:
    """Metrics of other libraries raise on NaN: what the baseline passed, the candidate failed."""
    path = script(tmp_path, EVALS)
    output = tmp_path / "out.pt2"
    argv = [model, *PRUNE, "--eval", f"{path}:late", "-o", str(output), "--json"]
    assert main(argv) == 0
    report = json.loads(capsys.readouterr().out)
    (judged,) = report["judgements"]
    assert not judged["accepted"]
    assert "raised RuntimeError: second time" in judged["reason"]
    before, after = report["parameters"]
    assert before == after


def test_a_training_that_raises(model: str, tmp_path: Path, capsys: Capture) -> None:
    path = script(tmp_path, "def tune(module):\n    raise RuntimeError('out of luck')\n")
    argv = [model, *PRUNE, "--finetune", f"{path}:tune"]
    assert "out of luck, at user_code.py:2" in fails(capsys, 2, *argv)


# -- outputs ---------------------------------------------------------------------------------------


def test_outputs_that_cannot_be_written(model: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "folder.pt2").mkdir()
    for option, path in [
        ("-o", tmp_path / "out.bin"),
        ("-o", tmp_path / "nowhere" / "out.pt2"),
        ("-o", tmp_path / "folder.pt2"),
        ("-o", Path("/proc/out.pt2")),
        ("--records", tmp_path / "nowhere" / "r.jsonl"),
        ("--report", tmp_path / "nowhere" / "r.html"),
        ("--dump-dir", tmp_path / "model.pt2" / "dumps"),
    ]:
        fails(capsys, 2, model, "-O0", "--no-gate", option, str(path))


def test_a_full_disk(model: str, tmp_path: Path, capsys: Capture) -> None:
    """`/dev/full` refuses every byte for want of space."""
    for suffix in (".pt2", ".esper"):
        output = tmp_path / f"out{suffix}"
        output.symlink_to("/dev/full")
        message = fails(capsys, 2, model, "-O0", "--no-gate", "-o", str(output))
        assert "No space left on device" in message
    for option in ("--records", "--report"):
        target = tmp_path / option.strip("-")
        target.symlink_to("/dev/full")
        argv = [model, *PRUNE, option, str(target)]
        assert "No space left on device" in fails(capsys, 2, *argv)


def test_a_disk_with_too_little_space(
    model: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    output = tmp_path / "out.pt2"
    message = fails(capsys, 2, model, *PRUNE, "-o", str(output))
    assert "the disk has" in message
    assert not output.exists()


def test_strict_without_success(model: str, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "out.pt2"
    argv = [model, "-O0", "--no-gate", "--strict", "-o", str(output)]
    assert "no change was kept" in fails(capsys, 6, *argv)
    assert not output.exists()
