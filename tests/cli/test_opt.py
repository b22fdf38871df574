"""`esper-opt` end to end on a small model, and what every option does."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import esper
from esper.cli.opt import main
from esper.cli.options import Options, parse
from esper.cli.session import Session
from tests.cli.support import Small, assert_one_sentence, exported, saved, small

Capture = pytest.CaptureFixture[str]
X = torch.linspace(-1, 1, 24).reshape(4, 6)
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


def script(folder: Path, code: str) -> str:
    path = folder / f"user_{len(list(folder.iterdir()))}.py"
    path.write_text(code)
    return str(path)


def run(*argv: str) -> None:
    assert main(list(argv)) == 0


def run_json(capsys: Capture, *argv: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*argv, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found: dict[str, Any] = json.loads(out)
    return found


def test_a_pruned_model_is_written_and_loads(model: str, tmp_path: Path) -> None:
    output = tmp_path / "out.pt2"
    run(model, *PRUNE, "-o", str(output))
    loaded = torch.export.load(output).module()
    assert loaded.get_parameter("first.weight").shape == (4, 6)
    assert loaded(X).shape == small()(X).shape
    assert loaded(X).dtype == small()(X).dtype
    assert loaded(X[:1]).shape == (1, 3)  # the batch dimension is still dynamic
    kept = {tuple(row.tolist()) for row in loaded.get_parameter("first.weight")}
    assert kept < {tuple(row.tolist()) for row in small().first.weight}


def test_the_json_object(model: str, tmp_path: Path, capsys: Capture) -> None:
    output = str(tmp_path / "out.pt2")
    found = run_json(capsys, model, *PRUNE, "-o", output, "--stats", "--time-passes")
    assert found["committed"] == 1
    assert found["exact"] is True
    assert found["speedup"] is None
    assert found["parameters"] == [83, 43]
    assert found["output"] == output
    assert found["exit_code"] == 0
    assert found["records"][-1]["kind"] == "passed"
    assert "prune" in found["timing"]
    assert found["stats"]["model"]["parameters"] == [83, 43]


def test_results_go_to_stdout_and_reports_to_stderr(model: str, capsys: Capture) -> None:
    capsys.readouterr()
    run(model, *PRUNE, "--remarks=passed", "--time-passes", "--stats")
    out, err = capsys.readouterr()
    assert "1 proposals committed" in out
    assert "axis:first/neurons" in out
    assert err.startswith("passed prune-units axis:first/neurons")
    assert "seconds" in err
    assert "outcome" in err
    run(model, *PRUNE, "--quiet")
    assert capsys.readouterr() == ("", "")
    run(model, *PRUNE, "-v")
    assert "passed prune-units" in capsys.readouterr().err


class WithConstant(Small):
    """A constant that is worked out anew at each call."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x) + torch.ones(3) * 2
        return out


def test_what_exact_means_is_said(model: str, tmp_path: Path, capsys: Capture) -> None:
    """A cut changes what a model computes: it is exact beside the model with zeros in its place."""
    run(model, *PRUNE)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "every kept change is exact: the model as it was with the units that were cut at zero"
    )
    constant = tmp_path / "constant.pt2"
    constant.write_bytes(exported(WithConstant()))
    run(str(constant), "-p", "fold-constants", "--no-gate")
    assert capsys.readouterr().out.splitlines()[-1] == "every kept change is exact"


def test_nothing_to_do_changes_nothing(model: str, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "out.pt2"
    capsys.readouterr()
    run(model, "-O0", "--no-gate", "-o", str(output))
    assert "the model is unchanged" in capsys.readouterr().out
    assert torch.equal(torch.export.load(output).module()(X), small()(X))


@pytest.mark.parametrize("suffix", [".esper", ".onnx", ".pt2"])
def test_every_format_computes_the_same(suffix: str, model: str, tmp_path: Path) -> None:
    first, second = tmp_path / "a.esper", tmp_path / f"b{suffix}"
    run(model, *PRUNE, "-o", str(first))
    run(str(first), "-O0", "--no-gate", "--inputs", "x=float32[4,6]", "-o", str(second))
    wanted = esper.load(first)(X)
    if suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(second), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {"x": X[:3].numpy()})[0])
        assert torch.allclose(found, wanted[:3], atol=1e-6)
    else:
        program = esper.load(second) if suffix == ".esper" else torch.export.load(second).module()
        assert torch.equal(program(X), wanted)


def test_an_artifact_needs_inputs_only_for_other_formats(
    model: str, tmp_path: Path, capsys: Capture
) -> None:
    first = str(tmp_path / "a.esper")
    run(model, *PRUNE, "-o", first)
    run(first, "-O0", "--no-gate", "-o", str(tmp_path / "b.esper"))
    assert main([first, "-O0", "--no-gate", "-o", str(tmp_path / "c.pt2")]) == 2
    assert "--inputs" in capsys.readouterr().err
    assert main([first, "-O0", "--no-gate", "--static"]) == 2
    assert "traced already" in capsys.readouterr().err


def test_structured_outputs_load_without_their_library(tmp_path: Path, capsys: Capture) -> None:
    import subprocess
    import sys

    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    output = tmp_path / "bert.pt2"
    inputs = "input_ids=int64[2,8]:30,attention_mask=int64[2,8]:2"
    run(str(tmp_path / "bert"), "-O0", "--no-gate", "--inputs", inputs, "-o", str(output))
    assert "saved as dictionaries" in capsys.readouterr().out
    code = (
        "import sys, torch; m = torch.export.load(sys.argv[1]).module(); "
        "i = torch.ones(3, 8, dtype=torch.int64); "
        "assert 'transformers' not in sys.modules; "
        "print(m(input_ids=i, attention_mask=i)['last_hidden_state'].shape)"
    )
    command = [sys.executable, "-c", code, str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "[3, 8, 8]" in done.stdout


# -- options ---------------------------------------------------------------------------------------


def test_every_option_is_in_the_help(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in Options.__dataclass_fields__:
        shown = {"input": "INPUT", "level": "-O"}.get(name, "--" + name.replace("_", "-"))
        assert shown in text, name


def test_version(capsys: Capture) -> None:
    run("--version")
    assert capsys.readouterr().out == f"esper-opt {importlib.metadata.version('esper-opt')}\n"
    run("--version", "--json")
    assert json.loads(capsys.readouterr().out) == {"version": esper.__version__}


def test_information_about_passes(capsys: Capture) -> None:
    run("--list-passes")
    listed = capsys.readouterr().out
    assert re.search(r"^prune +\w", listed, re.MULTILINE)
    run("--list-passes", "--json")
    assert "prune" in json.loads(capsys.readouterr().out)
    run("--describe", "prune")
    assert "ratio" in capsys.readouterr().out
    run("--schema")
    schema = json.loads(capsys.readouterr().out)
    assert "PruneUnits" in json.dumps(schema["proposal"])
    assert "kind" in schema["record"]["properties"]
    run("--print-pipeline", "-p", " prune { ratio = 50% } ")
    assert capsys.readouterr().out == "prune{ratio=0.5}\n"


def test_records_and_report(model: str, tmp_path: Path) -> None:
    records, report = tmp_path / "r.jsonl", tmp_path / "r.html"
    run(model, *PRUNE, "--records", str(records), "--report", str(report))
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(len(lines)))
    assert any(line["kind"] == "passed" for line in lines)
    assert report.read_text().lower().startswith("<!doctype html>")
    assert "axis:first/neurons" in report.read_text()


def test_graphs_are_printed_and_dumped(model: str, tmp_path: Path, capsys: Capture) -> None:
    capsys.readouterr()
    dumps = tmp_path / "dumps"
    run(model, *PRUNE, "--print-ir-before", "--print-ir-after=change", "--dump-dir", str(dumps))
    err = capsys.readouterr().err
    assert "; IR before pass 0: prune{ratio=0.5 align=1}" in err
    assert "; IR after pass 0: prune{ratio=0.5 align=1}" in err
    assert sorted(path.name for path in dumps.iterdir()) == ["000_prune.txt", "input.txt"]
    assert main([model, *PRUNE, "--dump-dir", str(dumps)]) == 2
    assert "earlier run" in capsys.readouterr().err


def test_the_bisect_limit(model: str, capsys: Capture) -> None:
    assert run_json(capsys, model, *PRUNE, "--opt-bisect-limit", "0")["committed"] == 0
    assert run_json(capsys, model, *PRUNE, "--opt-bisect-limit", "-1")["committed"] == 1
    run(model, *PRUNE, "--opt-bisect-limit", "-1")
    assert "BISECT: running proposal (1) prune-units" in capsys.readouterr().err


def test_the_seed(model: str, capsys: Capture) -> None:
    argv = [model, "-p", "prune{ratio=0.5 align=1 saliency=random}", "--no-gate"]

    def cut(seed: str) -> Any:
        records = run_json(capsys, *argv, "--seed", seed)["records"]
        return next(r["proposal"]["units"] for r in records if r["kind"] == "passed")

    assert cut("1") == cut("1")
    assert len({tuple(cut(str(seed))) for seed in range(5)}) > 1


def test_threads(model: str) -> None:
    before = torch.get_num_threads()
    try:
        run(model, "-O0", "--no-gate", "--threads", "2")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_dynamic_dimensions(tmp_path: Path) -> None:
    code = "from tests.cli.support import small\nfrom torch import nn\n"
    code += "class Pool(nn.Module):\n    def forward(self, x): return x.mean(1) * 2\n"
    code += "    def __init__(self):\n        super().__init__()\n"
    code += "        self.register_buffer('k', __import__('torch').ones(1))\n"
    factory = script(tmp_path, code) + ":Pool"
    weights = tmp_path / "w.pt"
    weights.write_bytes(saved({"k": torch.ones(1)}))
    argv = [str(weights), "--model", factory, "--inputs", "x=float32[4,5,6]", "-O0", "--no-gate"]
    for options, allowed, refused in [
        ([], (3, 5, 6), (4, 7, 6)),
        (["--dynamic", "x:1"], (3, 7, 6), (4, 5, 7)),
        (["--static"], (4, 5, 6), (3, 5, 6)),
    ]:
        output = tmp_path / "out.pt2"
        run(*argv, *options, "-o", str(output))
        loaded = torch.export.load(output).module()
        assert loaded(torch.ones(allowed)).shape == (allowed[0], 6)
        with pytest.raises(AssertionError):
            loaded(torch.ones(refused))


def test_evaluation_bounds_the_loss(model: str, tmp_path: Path, capsys: Capture) -> None:
    code = """
import torch
x = torch.linspace(-1, 1, 24).reshape(4, 6)
wanted = None
def score(module):
    global wanted
    found = module(x).detach()
    if wanted is None:
        wanted = found
    return 1.0 - float((found - wanted).abs().mean())
def batches():
    return [(x,)]
"""
    path = script(tmp_path, code)
    argv = [model, *PRUNE, "--eval", f"{path}:score"]
    assert run_json(capsys, *argv, "--max-loss", "0%")["committed"] == 0
    found = run_json(capsys, *argv, "--max-loss", "1000")
    assert found["committed"] == 1
    assert found["quality"]["quality_after"] < found["quality"]["quality_before"]
    drift = [model, *PRUNE, "--data", f"{path}:batches"]
    assert run_json(capsys, *drift, "--max-loss", "0%")["committed"] == 0
    assert run_json(capsys, *drift, "--max-loss", "100%")["committed"] == 1


def test_training_after_a_lossy_change(model: str, tmp_path: Path, capsys: Capture) -> None:
    code = """
import torch
def tune(module):
    with torch.no_grad():
        dict(module.named_parameters())["last.bias"].fill_(7.0)
"""
    output = tmp_path / "out.esper"
    argv = [model, *PRUNE, "--finetune", script(tmp_path, code) + ":tune"]
    run(*argv, "-o", str(output))
    assert esper.load(output).get_parameter("last.bias").tolist() == [7.0, 7.0, 7.0]
    assert "every kept change is exact" not in (shown := capsys.readouterr().out)
    assert (
        "weights were fine-tuned, so outputs differ; the kept changes themselves: 1 exact" in shown
    )
    found = run_json(capsys, *argv)
    assert (found["exact"], found["finetuned"]) == (False, True)
    found = run_json(capsys, model, *PRUNE)
    assert (found["exact"], found["finetuned"]) == (True, False)


def test_pinned_parts_stay(model: str, tmp_path: Path) -> None:
    output = tmp_path / "out.esper"
    run(model, *PRUNE, "--pin", "axis:first/*", "--pin", "axis:last/*", "-o", str(output))
    loaded = esper.load(output)
    assert loaded.pins == ("axis:first/*", "axis:last/*")
    assert loaded.anatomy.axes["axis:first/neurons"].size == 8


def test_help_says_how_long_the_gate_takes_by_default() -> None:
    from esper.gate.gate import Gate

    (field,) = [f for f in dataclasses.fields(Options) if f.name == "budget_seconds"]
    hints = typing.get_type_hints(Options, include_extras=True)[field.name]
    assert f"Default: {Gate.budget_seconds:g}." in hints.__metadata__[0].help


@pytest.mark.own_verification
def test_verification_levels(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from esper import manager
    from esper.ir.verifier import verify as real

    seen: list[bool] = []

    def spy(subject: Any, **options: Any) -> None:
        seen.append(options.get("change") is None)
        real(subject, **options)

    monkeypatch.setattr(manager, "verify", spy)
    for option, expected in [([], {False}), (["--verify-each"], {True}), (["--no-verify"], set())]:
        seen.clear()
        run(model, *PRUNE, *option)
        assert set(seen) == expected, option


def test_options_reach_the_gate() -> None:
    words = (
        "m.pt2 -O0 --objective training --backend eager --device cpu --threads 3 "
        "--budget-seconds 12 --seed 5"
    )
    options = parse(words.split())
    assert options is not None
    gate = Session.prepare(options, "").gate()
    assert gate is not None
    assert (gate.objective, gate.backend, gate.device) == ("training", "eager", "cpu")
    assert (gate.threads, gate.budget_seconds, gate.seed) == (3, 12.0, 5)
    bare = parse(["m.pt2", "-O0", "--no-gate"])
    assert bare is not None
    assert Session.prepare(bare, "").gate() is None


def test_a_measured_run_writes_what_the_gate_decided(
    model: str, tmp_path: Path, capsys: Capture
) -> None:
    output = tmp_path / "out.esper"
    argv = ["-p", "prune{ratio=0.5 align=1}", "--backend", "eager", "--budget-seconds", "1"]
    found = run_json(capsys, model, *argv, "--progress", "never", "-o", str(output))
    (judgement,) = found["judgements"]
    assert judgement["figures"]["milliseconds_before"] > 0
    assert found["committed"] == int(judgement["accepted"])
    width = 4 if judgement["accepted"] else 8
    assert esper.load(output).get_parameter("first.weight").shape == (width, 6)
    assert not any("timed on" in note for note in found["notes"])


def test_a_run_that_chose_no_backend_says_what_it_was_timed_on(model: str, capsys: Capture) -> None:
    prune = [model, "-p", "prune{ratio=0.5 align=1}"]
    told = "timed on eager; --passes=select-backend,... finds the fastest backend"
    assert told in run_json(capsys, *prune, "--budget-seconds", "1")["notes"]
    assert told not in run_json(capsys, *prune, "--no-gate")["notes"]


# -- rewrites that break ---------------------------------------------------------------------------


def test_a_rewrite_that_breaks_leaves_a_reproducer(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    import dataclasses

    from esper.passbase import rewrites
    from esper.plan import Plan
    from esper.state import StateTransform

    rewrite = rewrites()["prune-units"]
    real = type(rewrite).plan

    def broken(self: Any, subject: Any, proposal: Any) -> Any:
        plan = real(self, subject, proposal)
        # Forgets the tensors: the graph no longer agrees with itself.
        return dataclasses.replace(plan, state=StateTransform()) if isinstance(plan, Plan) else plan

    monkeypatch.setattr(type(rewrite), "plan", broken)
    folder, output = tmp_path / "repro", tmp_path / "out.pt2"
    capsys.readouterr()
    argv = [model, *PRUNE, "--reproducer", str(folder), "-o", str(output)]
    assert main(argv) == 5
    err = capsys.readouterr().err
    assert_one_sentence(err)
    assert "prune-units broke and was rolled back" in err
    assert str(folder / "reproducer.json") in err
    assert not output.exists()
    assert esper.load(folder / "model.esper")(X).shape == (4, 3)
    again = ["--run-reproducer", str(folder / "reproducer.json")]
    assert main(again) == 5
    assert capsys.readouterr().out.startswith("failure prune-units")
    monkeypatch.undo()
    assert main(again) == 0
    assert capsys.readouterr().out.startswith("passed prune-units")
    (folder / "reproducer.json").write_text("{}")
    assert main(again) == 3
