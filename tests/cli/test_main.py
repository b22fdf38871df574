"""`esper inspect` and `esper bench`."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

import esper
from esper.cli import main as program
from esper.cli.main import main
from tests.cli.support import assert_one_sentence, exported
from tests.models import MODELS

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def bert(tmp_path: Path) -> str:
    module, args, kwargs = MODELS["bert"]()
    path = tmp_path / "bert.esper"
    esper.save(esper.trace(module, args, kwargs), path)
    return str(path)


def test_the_tree_names_axes_and_what_freezes_them(bert: str, capsys: Capture) -> None:
    assert main(["inspect", bert]) == 0
    text = capsys.readouterr().out
    model = esper.load(bert)
    for name, axis in model.anatomy.axes.items():
        line = next(line for line in text.splitlines() if f"{name} " in line)
        assert f" {axis.size} " in f"{line} "
        if axis.frozen_reason is not None:
            assert axis.frozen_reason in line
    for name in (*model.anatomy.phages, *model.anatomy.slots):
        assert name in text
    total = sum(parameter.numel() for parameter in model.parameters())
    assert f"{total:,} parameters" in text


def test_the_json_object_has_the_same(bert: str, capsys: Capture) -> None:
    assert main(["inspect", bert, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = esper.load(bert)
    assert [axis["id"] for axis in found["axes"]] == list(model.anatomy.axes)
    assert [phage["id"] for phage in found["phages"]] == list(model.anatomy.phages)
    assert found["bytes"] == model.nbytes()
    first = model.anatomy.axes[found["axes"][0]["id"]]
    held = {name for name, _ in first.members if isinstance(model.tensor(name), torch.nn.Parameter)}
    assert found["axes"][0]["parameters"] == sum(model.get_parameter(n).numel() for n in held)


def test_the_picture(tmp_path: Path, capsys: Capture) -> None:
    path, picture = tmp_path / "m.pt2", tmp_path / "m.svg"
    path.write_bytes(exported())
    assert main(["inspect", str(path), "--svg", str(picture)]) == 0
    assert ET.fromstring(picture.read_text()).tag.endswith("svg")
    assert main(["inspect", str(path), "--svg", str(tmp_path / "no" / "m.svg")]) == 2
    assert_one_sentence(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["inspect", "absent.pt2"], 3),
        (["inspect"], 2),
        (["inspect", "m.pt2", "--jsn"], 2),
        (["inspekt", "m.pt2"], 2),
        (["replay", "log"], 2),
        (["bench", "gat"], 2),
    ],
)
def test_errors_are_one_sentence(argv: list[str], code: int, capsys: Capture) -> None:
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("esper: error: ")
    assert_one_sentence(err)


def test_help_names_the_commands(capsys: Capture) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert "inspect" in text
    assert "bench" in text


def test_benchmarks_run_in_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    folder = tmp_path / "benchmarks"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(esper, "__file__", str(tmp_path / "esper" / "__init__.py"))
        assert main(["bench", "gate"]) == 2
        assert "checkout" in capsys.readouterr().err
        folder.mkdir()
        (folder / "__init__.py").touch()
        code = "import sys\nprint('gate about') if sys.argv[1:] == ['--list'] else sys.exit(9)\n"
        (folder / "__main__.py").write_text(code)
        assert program.suites(tmp_path) == ["gate"]
        assert main(["bench", "gate"]) == 9
    assert "gate" in program.suites(program.benchmarks_root())
