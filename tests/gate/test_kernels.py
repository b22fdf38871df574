"""Lowered models at the gate: which backends have kernels, and what measured processes load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esper.errors import BackendError
from esper.gate.backends import backend, lacking
from esper.gate.backends.base import Call, Context
from esper.gate.gate import Gate
from esper.ir.model import Model
from esper.propose import LowerLinear
from tests.gate.support import QUICK
from tests.passes.sparse_models import forms


@pytest.fixture(scope="module")
def lowered() -> Model:
    model, _ = forms()[0].apply(LowerLinear(node="linear", rows=8, run=4))
    return model.float()


@pytest.fixture(scope="module")
def calls() -> list[Call]:
    return [((torch.randn(5, 32),), {})]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_backends_without_kernels_say_so(name: str, lowered: Model, calls: list[Call]) -> None:
    assert lacking(name, forms()[0]) is None
    gate = Gate(backend=name, threads=1, effort=QUICK)
    with pytest.raises(BackendError) as caught:
        gate.compare(lowered, lowered, calls)
    assert str(caught.value) == (
        f"{name} does not have esper::vnm_linear: run it on eager or inductor, or raise the "
        "kernels with raise-kernels."
    )


def test_measured_processes_know_the_kernels(lowered: Model, calls: list[Call]) -> None:
    gate = Gate(backend="eager", threads=1, effort=QUICK)
    dense = forms()[0].float()
    table = gate.measure(
        {"dense": (dense, "eager"), "lowered": (lowered, "eager")}, calls, processes=2
    )
    assert table.row("lowered").milliseconds > 0


def test_a_compiled_package_defines_its_kernels(
    lowered: Model, calls: list[Call], tmp_path: Path
) -> None:
    """The package names ops that a fresh process must have before it calls them."""
    context = Context("inference", 1, "cpu")
    backend("inductor").prepare(lowered, calls, tmp_path, context)
    assert json.loads((tmp_path / "libraries.json").read_text()) == ["esper"]
    torch.save([calls[0][0][0], lowered(calls[0][0][0]).detach()], tmp_path / "io.pt")
    code = (
        "import torch; from pathlib import Path; "
        "from esper.gate.backends import backend; from esper.gate.backends.base import Context; "
        f"folder = Path({str(tmp_path)!r}); x, y = torch.load(folder / 'io.pt'); "
        "run = backend('inductor').load(folder, [], Context('inference', 1, 'cpu')); "
        "print(torch.allclose(run(x)[0], y, atol=1e-5))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.stdout.strip() == "True", done.stderr
