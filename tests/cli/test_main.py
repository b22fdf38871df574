"""`esper inspect` and `esper bench`."""

from __future__ import annotations

import importlib.metadata
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pytest
import torch
import typer

import esper
from esper.cli import bench
from esper.cli.main import main
from esper.ir.codec import trust
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


def test_shares_of_time(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(exported())
    assert main(["inspect", str(path), "--time", "--json"]) == 0
    seconds = json.loads(capsys.readouterr().out)["node_seconds"]
    assert seconds
    assert all(value > 0 for value in seconds.values())
    assert main(["inspect", str(path), "--time"]) == 0
    text = capsys.readouterr().out
    assert "ms node by node" in text
    shares = [float(share) for share in re.findall(r"([\d.]+)% of time", text)]
    assert shares
    assert all(0 <= share <= 100 for share in shares)
    assert main(["inspect", str(path)]) == 0
    assert "of time" not in capsys.readouterr().out


def test_times_need_inputs(bert: str, capsys: Capture) -> None:
    assert main(["inspect", bert, "--time"]) == 2
    err = capsys.readouterr().err
    assert "needs example inputs" in err
    assert_one_sentence(err)


@torch.library.custom_op("esper_tests::scaled", mutates_args=())
def scaled(x: torch.Tensor, by: float) -> torch.Tensor:
    return x * by


@scaled.register_fake
def _(x: torch.Tensor, by: float) -> torch.Tensor:
    return torch.empty_like(x)


class Custom(torch.nn.Module):
    """An op of the user's own between two layers, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(4, 8)
        self.down = torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = scaled(self.up(x), 2.0)
        out: torch.Tensor = self.down(scaled(hidden, 3.0))
        return out


def test_an_op_without_a_rule_is_named_with_its_line(tmp_path: Path, capsys: Capture) -> None:
    trust("esper_tests")
    path = tmp_path / "m.esper"
    model = esper.trace(Custom(), (torch.randn(3, 4),))
    esper.save(model, path)
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    (line,) = [line for line in text.splitlines() if line.startswith("no axis rule for")]
    assert "esper_tests.scaled.default, at %scaled (test_main.py:" in line
    assert "hidden = scaled(self.up(x), 2.0)) and 1 more: what it touches is frozen" in line
    assert line.endswith("esper.register_axis_rule adds a rule")
    assert main(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["unknown_ops"]
    assert [(u["op"], u["node"]) for u in found] == [
        ("esper_tests.scaled.default", "scaled"),
        ("esper_tests.scaled.default", "scaled_1"),
    ]
    axis = next(a for a in model.anatomy.axes.values() if a.id == "axis:up/neurons")
    refusal = model.check(esper.propose.PruneUnits(axis=axis.id, units=(0,)))
    assert refusal is not None
    assert refusal.node == "scaled"
    assert "hidden = scaled(self.up(x), 2.0)" in refusal.reason
    assert "esper.register_axis_rule" in refusal.remedy


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["inspect", "absent.pt2"], 3),
        (["inspect"], 2),
        (["inspect", "m.pt2", "--jsn"], 2),
        (["inspekt", "m.pt2"], 2),
        (["replay", "absent.esperlog"], 3),
        (["replay"], 2),
        (["why", "absent.esperlog", "ABCD1234"], 3),
        (["demo", "stage9"], 2),
        (["bench", "gat"], 2),
    ],
)
def test_errors_are_one_sentence(argv: list[str], code: int, capsys: Capture) -> None:
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("esper: error: ")
    assert_one_sentence(err)


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"esper {importlib.metadata.version('esper-opt')}\n"


def test_help_names_the_commands(capsys: Capture) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert "inspect" in text
    assert "bench" in text


class Point:
    """An entry point of a package that brings a suite."""

    name = "speed"

    def load(self) -> Callable[[Callable[[int], None]], Callable[..., None]]:
        def make(done: Callable[[int], None]) -> Callable[..., None]:
            def speed(fast: Annotated[bool, typer.Option("--fast")] = False) -> None:
                """Time something."""
                done(7 if fast else 8)

            return speed

        return make


def test_packages_bring_suites(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: [Point()])
    assert main(["bench", "speed", "--fast"]) == 7
    assert main(["bench", "speed"]) == 8
    assert main(["bench", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Time something." in shown
    assert main(["bench"]) == 0
    assert capsys.readouterr().out == shown
    assert main(["bench", "sped"]) == 2
    assert "did you mean 'speed'" in capsys.readouterr().err


def test_installed_suites_need_no_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(esper, "__file__", str(tmp_path / "esper" / "__init__.py"))
    assert main(["bench", "kernels", "--shapes", "nothing"]) == 2
    assert "no layer of the table" in capsys.readouterr().err
    for suite in ("gate", "e2e", "surgery"):
        assert main(["bench", suite]) == 2
        err = capsys.readouterr().err
        assert "run this from a checkout" in err
        assert_one_sentence(err)


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
        assert bench.suites(tmp_path) == ["gate"]
        assert main(["bench", "gate"]) == 9
    assert "gate" in bench.suites(bench.benchmarks_root())
