"""Kernel libraries: found by entry point, known to files, verified, and named to people."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.errors import InputError, VerificationError
from esper.ir import kernels
from esper.ir.model import Model
from esper.ir.origin import Origin, origin_of
from esper.ir.packed_axes import rearrange
from esper.ir.verifier import verify
from esper.propose import LowerLinear, RaiseKernel
from tests.passes.sparse_models import forms


@pytest.fixture(scope="module")
def lowered() -> Model:
    model, _ = forms()[0].apply(LowerLinear(node="addmm", rows=8, run=4))
    return model


def test_ops_of_a_library_are_known() -> None:
    found = kernels.library("esper")
    target = torch.ops.esper.vnm_linear.default
    assert kernels.kernel(target) is found[target]
    assert kernels.kernel(torch.ops.aten.linear.default) is None
    assert kernels.kernel(len) is None
    assert kernels.library("nobody") == {}
    kernels.define_all()


def test_people_are_told(lowered: Model) -> None:
    assert kernels.sentence(forms()[0].graph) == ""
    assert kernels.sentence(lowered.graph) == (
        "custom kernels inside: esper::vnm_linear; loading a file of it needs "
        "`import esper_kernels.ops`"
    )


def _spoil(model: Model, index: Any) -> tuple[str, ...]:
    broken = copy.deepcopy(model)
    broken.tensor("columns_index").copy_(torch.as_tensor(index))  # type: ignore[union-attr]
    with pytest.raises(VerificationError) as caught:
        verify(broken, "lowered")
    return caught.value.problems


def test_the_verifier_looks_at_what_is_packed(lowered: Model) -> None:
    verify(lowered, "lowered")
    good = lowered.tensor("columns_index")
    assert good is not None
    past = good.clone()
    past[1, -1] = 8
    (problem,) = _spoil(lowered, past)
    assert problem.startswith("packed: columns_index names runs of 4 inputs beyond the last, 7: %")
    (problem,) = _spoil(lowered, good.flip(1))
    assert "columns_index has runs that do not ascend" in problem
    (problem,) = _spoil(lowered, good - 9)
    assert "beyond" in problem


def test_nothing_is_changed_in_a_model_that_is_packed_wrongly(lowered: Model) -> None:
    broken = copy.deepcopy(lowered)
    broken.tensor("columns_index").zero_()  # type: ignore[union-attr]
    manager = esper.PassManager(broken, verify="full")
    record = manager.apply(LowerLinear(node="linear", rows=8, run=4))
    assert (record.kind, record.code) == ("failure", "verification")
    assert broken.kernel_ops == lowered.kernel_ops
    assert manager.apply(RaiseKernel(node="addmm")).kind == "failure"
    assert origin_of(broken.nodes["addmm"])


def test_computed_indices_are_no_indices(lowered: Model) -> None:
    broken = copy.deepcopy(lowered)
    node = broken.nodes["addmm"]
    with broken.graph.inserting_before(node):
        shifted = broken.graph.call_function(torch.ops.aten.clone.default, (node.args[2],))
    shifted.meta = {**node.args[2].meta}  # type: ignore[union-attr]
    node.update_arg(2, shifted)
    with pytest.raises(VerificationError, match="is no tensor of the model"):
        verify(broken, "lowered")


# -- where a node came from ------------------------------------------------------------------------


def test_files_keep_where_a_node_came_from(lowered: Model, tmp_path: Path) -> None:
    (call,) = origin_of(lowered.nodes["addmm"])
    assert call[:3] == ("addmm", "aten.addmm.default", ())
    esper.save(lowered, tmp_path / "m.esper")
    assert origin_of(esper.load(tmp_path / "m.esper").nodes["addmm"]) == (call,)


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (["addmm", "aten.nothing.default", [], "", "", [], False], "is not known"),
        (["no name", "aten.addmm.default", [], "", "", [], False], "no identifier"),
        (["addmm", "os.system", [], "", "", [], False], "is no op"),
        (["addmm", "aten.addmm.default", ["a b"], "", "", [], False], "no identifier"),
        (["addmm", "aten.addmm.default", [], "\n", "", [], False], "in one line"),
        (["addmm", "aten.addmm.default", [], "", "", ["a\nb"], False], "not admitted"),
        (["addmm", "aten.addmm.default", [], "", "", [], 1], "origins are not encoded"),
        (["addmm"], "not hold what it should"),
        ("addmm", "not encoded"),
    ],
)
def test_hostile_origins(call: Any, why: str, lowered: Model, tmp_path: Path) -> None:
    esper.save(lowered, tmp_path / "m.esper")
    with zipfile.ZipFile(tmp_path / "m.esper") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    graph = json.loads(parts["graph.json"])
    node = next(n for n in graph["nodes"] if n["name"] == "addmm")
    node["origin"] = [call]
    parts["graph.json"] = json.dumps(graph).encode()
    with zipfile.ZipFile(tmp_path / "bad.esper", "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    with pytest.raises(InputError, match=why):
        esper.load(tmp_path / "bad.esper")


def test_a_fresh_process_loads_a_lowered_file(lowered: Model, tmp_path: Path) -> None:
    """Nothing but the file names the library."""
    esper.save(lowered, tmp_path / "m.esper")
    code = f"import esper; print(esper.load({str(tmp_path / 'm.esper')!r}).kernel_ops)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "('esper::vnm_linear',)"


# -- axes that sleep -------------------------------------------------------------------------------


def test_members_move_with_their_dims_and_come_back() -> None:
    model = esper.trace(nn.Sequential(nn.Linear(4, 3)).eval(), (torch.randn(2, 4),))
    _ = model.anatomy.axes
    identities = model.identities
    before = {name: identity.members for name, identity in identities.axes.items()}
    rearrange(identities, "0.weight", (1, None))
    moved = {name: identity.members for name, identity in identities.axes.items()}
    assert moved["axis:0/units"] == {("0.weight", 0, 0)}
    assert ("0.weight", -1, 0) in moved["axis:0/neurons"]
    rearrange(identities, "0.weight", (None, 0))
    assert {name: identity.members for name, identity in identities.axes.items()} == before


def test_an_origin_is_plain_data() -> None:
    assert Origin("mul", "aten.mul.Tensor") == ("mul", "aten.mul.Tensor", (), "", "", (), False)
