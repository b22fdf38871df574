"""`esper-opt` with custom kernels: pipelines, files in fresh processes, formats that refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.cli.opt import main
from tests.cli.support import assert_one_sentence

Capture = pytest.CaptureFixture[str]
X = torch.linspace(-1, 1, 128).reshape(4, 32)
LOWER = ["--passes=sparsify{pattern=16:1:4x4},lower-kernels{choose=all}", "--no-gate"]


class Mlp(nn.Module):
    """[batch, 32] -> [batch, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(32, 64), nn.Linear(64, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(torch.relu(self.first(x)))
        return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model.pt2`, and `low.pt2` and `low.esper` with kernels in them."""
    folder = tmp_path_factory.mktemp("lowered")
    torch.manual_seed(0)
    program = torch.export.export(
        Mlp().eval(), (X,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}}
    )
    torch.export.save(program, folder / "model.pt2")
    for suffix in ("pt2", "esper"):
        assert main([str(folder / "model.pt2"), *LOWER, "-o", str(folder / f"low.{suffix}")]) == 0
    torch.save(torch.export.load(folder / "low.pt2").module()(X), folder / "wanted.pt")
    return folder


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )


def test_people_are_told_what_is_inside(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    capsys.readouterr()
    report, records = tmp_path / "r.html", tmp_path / "r.jsonl"
    argv = [*LOWER, "-o", str(tmp_path / "out.pt2"), "--report", str(report)]
    assert main([str(folder / "model.pt2"), *argv, "--records", str(records)]) == 0
    out = capsys.readouterr().out
    inside = "custom kernels inside: esper::vnm_linear; loading a file of it needs"
    assert inside in out
    assert "note: import esper_kernels.ops before torch.export.load" in out
    assert inside.capitalize() in report.read_text()
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert [line["proposal"]["type"] for line in lines] == [
        *["set-mask", "fold-mask"] * 2,
        *["lower-linear"] * 2,
    ]
    assert {line["code"] for line in lines} == {"not-measured"}
    assert main([str(folder / "model.pt2"), *LOWER, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["kernels"] == ["esper::vnm_linear"]
    assert found["bytes"][1] < 0.3 * found["bytes"][0]


def test_a_fresh_process_needs_one_import(folder: Path) -> None:
    load = f"import torch; p = torch.export.load({str(folder / 'low.pt2')!r}).module(); "
    compare = (
        f"x = torch.linspace(-1, 1, 128).reshape(4, 32); "
        f"print(torch.equal(p(x), torch.load({str(folder / 'wanted.pt')!r})), "
        "p(x[:1]).shape, 'esper' in __import__('sys').modules)"
    )
    done = python("import esper_kernels.ops; " + load + compare)
    assert done.stdout.strip() == "True torch.Size([1, 16]) False", done.stderr
    assert python(load).returncode != 0


def test_a_fresh_process_trains_what_it_loads(folder: Path) -> None:
    """Weights keep training as long as they are packed."""
    model = esper.load(folder / "low.esper")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weight = model.get_parameter("first.weight")
    before = weight.detach().clone()
    model(X).square().sum().backward()
    optimizer.step()
    assert weight.shape == (64, 8)
    assert not torch.equal(weight, before)


def test_lowered_files_are_read_and_raised_again(folder: Path, tmp_path: Path) -> None:
    """In a process that nobody told of kernels, trusted or not."""
    source, output = str(folder / "low.pt2"), tmp_path / "out.onnx"
    done = python(
        "import sys; from esper.cli.opt import main; from esper.cli.pt2_read import load_trusted; "
        f"load_trusted(open({source!r}, 'rb'), 'x'); "
        f"argv = ['--passes=raise-kernels', '--no-gate', '-o', {str(output)!r}]; "
        f"sys.exit(main([{source!r}, *argv]))"
    )
    assert done.returncode == 0, done.stderr
    assert "2 proposals committed" in done.stdout
    assert output.stat().st_size > 0


def fails(capsys: Capture, code: int, *argv: str) -> str:
    capsys.readouterr()
    assert main(list(argv)) == code
    err = capsys.readouterr().err
    assert_one_sentence(err)
    return err


def test_onnx_has_no_kernels(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "out.onnx"
    err = fails(capsys, 2, str(folder / "model.pt2"), *LOWER, "-o", str(output))
    assert "lower-kernels puts in kernels, which ONNX does not have" in err
    again = [str(folder / "low.pt2"), "--passes=fold-constants", "--no-gate", "-o", str(output)]
    err = fails(capsys, 2, *again)
    assert "ONNX has no esper::vnm_linear: write .pt2 or .esper, or unpack" in err
    assert not output.exists()


def test_information(capsys: Capture) -> None:
    capsys.readouterr()
    assert main(["--list-passes"]) == 0
    out = capsys.readouterr().out
    assert "lower-kernels" in out
    assert "raise-kernels" in out
    assert main(["--describe", "lower-kernels"]) == 0
    out = capsys.readouterr().out
    assert "import esper_kernels.ops" in out
    assert "choose = one of measured, all; default measured" in out
