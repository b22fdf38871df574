"""The `.esper` file: round trips of the whole zoo."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file as save_safetensors
from torch.utils import _pytree as pytree

import esper
from esper.errors import OutputError
from esper.ir.graphs_equal import graphs_equal
from esper.ir.model import Model
from esper.ir.pytrees import NamedOutput
from esper.ir.verifier import verify
from tests.ir.small import convolution_inputs, convolutions, perceptron, perceptron_inputs
from tests.models import MODELS


def _equal(a: Any, b: Any) -> bool:
    left, right = pytree.tree_leaves(a), pytree.tree_leaves(b)
    return len(left) == len(right) and all(map(torch.equal, left, right))


def _again(model: Model, folder: Path) -> Model:
    esper.save(model, folder / "model.esper")
    return esper.load(folder / "model.esper")


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_model_is_the_saved_one(name: str, tmp_path: Path) -> None:
    module, args, kwargs = MODELS[name]()
    model = esper.trace(module, args, kwargs)
    loaded = _again(model, tmp_path)

    assert graphs_equal(model, loaded) is None
    assert str(loaded) == str(model)
    assert loaded.code == model.code
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert [n for n, _ in loaded.all_tensors()] == [n for n, _ in model.all_tensors()]
    assert loaded.canonical_names() == model.canonical_names()
    assert loaded.anatomy.axes == model.anatomy.axes
    assert loaded.ports == model.ports
    verify(loaded)
    assert _equal(loaded(*args, **kwargs), model(*args, **kwargs))

    copied = copy.deepcopy(loaded)
    assert _equal(copied(*args, **kwargs), model(*args, **kwargs))
    model.train()
    loaded.train()
    assert loaded.code == model.code
    results = []
    for trained in (model, loaded):
        torch.manual_seed(0)
        output = trained(*args, **kwargs)
        pytree.tree_leaves(output)[0].float().square().sum().backward()
        results.append((output, [p.grad for p in trained.parameters() if p.grad is not None]))
    assert results[0][1]
    assert _equal(*results)
    assert _equal([b for _, b in loaded.named_buffers()], [b for _, b in model.named_buffers()])
    esper.save(loaded.eval(), tmp_path / "a.esper")
    esper.save(esper.load(tmp_path / "a.esper"), tmp_path / "b.esper")
    assert (tmp_path / "a.esper").read_bytes() == (tmp_path / "b.esper").read_bytes()


def test_a_loaded_model_can_be_exported_and_traced_again(tmp_path: Path) -> None:
    loaded = _again(perceptron(), tmp_path)
    inputs = perceptron_inputs()
    program = torch.export.export(loaded, inputs)
    assert _equal(program.module()(*inputs), loaded(*inputs))
    assert _equal(esper.trace(loaded, inputs)(*inputs), loaded(*inputs))


def test_another_batch_size_works(tmp_path: Path) -> None:
    loaded = _again(convolutions(), tmp_path)
    assert loaded(torch.zeros(7, 3, 5, 5)).shape == (7, 2)


def test_the_training_flag_and_the_batch_counter_are_kept(tmp_path: Path) -> None:
    model = convolutions().train()
    loaded = _again(model, tmp_path)
    assert loaded.training
    loaded(*convolution_inputs())
    counter = loaded.tensor("norm.num_batches_tracked")
    assert counter is not None
    assert int(counter) == 1
    loaded.eval()(*convolution_inputs())
    assert int(counter) == 1


def test_flags_of_tensors_are_kept(tmp_path: Path) -> None:
    model = perceptron()
    model.get_parameter("up.weight").requires_grad_(False)
    loaded = _again(model, tmp_path)
    assert not loaded.get_parameter("up.weight").requires_grad
    assert loaded.get_parameter("up.bias").requires_grad
    assert loaded.get_parameter("head.weight") is loaded.get_parameter("embed.weight")
    assert "offset" not in loaded.state_dict()
    assert loaded.tensor("offset") is not None


def test_identities_history_and_notes_are_kept(tmp_path: Path) -> None:
    model = perceptron()
    (name,) = model.find("*/neurons")
    model.identities.axes[name].unit_ids = (0, 1, 2, 3, 9, 5, 6, 7)
    model.identities.axes[name].next_unit = 10
    model.identities.retired.add("axis:gone/neurons")
    model.history.append({"type": "prune-units", "units": [8]})
    model.notes.append("a note")
    model.invalidate()
    loaded = _again(model, tmp_path)
    assert loaded.identities == model.identities
    assert loaded.anatomy.axes == model.anatomy.axes
    assert loaded.history == model.history
    assert loaded.notes == model.notes


def test_the_tensors_are_a_safetensors_file_with_tied_ones_once(tmp_path: Path) -> None:
    model = perceptron()
    esper.save(model, tmp_path / "m.esper")
    with zipfile.ZipFile(tmp_path / "m.esper") as archive:
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        tensors = load_safetensors(archive.read("tensors.safetensors"))
        assert json.loads(archive.read("format"))["version"] == 1
    canonical = model.canonical_names()
    assert set(tensors) == set(canonical.values())
    assert len(tensors) == len(canonical) - 1
    assert all(torch.equal(tensors[n], t) for n, t in model.all_tensors() if n in tensors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_are_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    x = torch.ones(2, 3, dtype=dtype)
    model = esper.trace(torch.nn.Linear(3, 2, dtype=dtype), (x,))
    loaded = _again(model, tmp_path)
    assert loaded.get_parameter("weight").dtype == dtype
    assert _equal(loaded(x), model(x))


@dataclass
class Pair:
    """A registered output class with a field that may be None."""

    first: torch.Tensor
    second: torch.Tensor | None = None


class Structured(torch.nn.Module):
    """Returns a registered dataclass in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> list[Pair]:
        return [Pair(self.fc(x)), Pair(x + 1, x + 2)]


def test_registered_classes_come_back_and_others_have_a_stand_in(tmp_path: Path) -> None:
    torch.export.register_dataclass(Pair, serialized_type_name="tests.Pair")
    try:
        model = esper.trace(Structured().eval(), (torch.ones(3, 2),))
        loaded = _again(model, tmp_path)
        one, two = loaded(torch.ones(3, 2))
        assert isinstance(one, Pair)
        assert one.second is None
        assert torch.equal(two.second, torch.full((3, 2), 3.0))
    finally:
        pytree._deregister_pytree_node(Pair)
        pytree.SUPPORTED_NODES.pop(Pair, None)
    loaded = esper.load(tmp_path / "model.esper")
    one, two = loaded(torch.ones(3, 2))
    assert isinstance(one, NamedOutput)
    assert one.second is None
    assert torch.equal(two[1], two.second)
    assert loaded.ports == model.ports
    esper.save(loaded, tmp_path / "again.esper")
    assert (tmp_path / "again.esper").read_bytes() == (tmp_path / "model.esper").read_bytes()


def test_transformers_outputs_load_without_transformers(tmp_path: Path) -> None:
    module, args, kwargs = MODELS["bert_encoder"]()
    inner = module.get_submodule("model")
    model = esper.trace(inner, args, kwargs)
    loaded = _again(model, tmp_path)
    assert type(loaded(**kwargs)) is type(inner(**kwargs))
    save_safetensors(kwargs, tmp_path / "inputs")
    script = f"""
import sys, torch, esper
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
model = esper.load({str(tmp_path / "model.esper")!r})
output = model(**load_file({str(tmp_path / "inputs")!r}))
assert "transformers" not in sys.modules
assert type(output).__name__ == "NamedOutput", type(output)
esper.save(model, {str(tmp_path / "again.esper")!r})
found = [output.last_hidden_state, output[1], dict(output)["pooler_output"].clone()]
save_file(dict(zip("abc", found)), {str(tmp_path / "outputs")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    expected = model(**kwargs)
    found = load_safetensors((tmp_path / "outputs").read_bytes())
    assert torch.equal(found["a"], expected.last_hidden_state)
    assert torch.equal(found["b"], expected.pooler_output)
    assert torch.equal(found["c"], expected.pooler_output)
    assert (tmp_path / "again.esper").read_bytes() == (tmp_path / "model.esper").read_bytes()


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    model = perceptron()
    node = model.nodes["relu"]
    node.target = torch.relu
    with pytest.raises(OutputError, match="node %relu: calls of relu cannot be saved"):
        esper.save(model, tmp_path / "m.esper")
    node.target = torch.ops.aten.relu.default
    node.kwargs = {"generator": torch.Generator()}  # type: ignore[dict-item]
    with pytest.raises(OutputError, match="node %relu: values of type Generator cannot be saved"):
        esper.save(model, tmp_path / "m.esper")
    assert list(tmp_path.iterdir()) == []


def test_names_and_texts_that_need_care(tmp_path: Path) -> None:
    model = perceptron()
    model.nodes["relu"].meta["source"] = "a.py:1: x =\t1" + " + 1" * 2000
    model.notes.append("two\nlines")
    loaded = _again(model, tmp_path)
    assert loaded.notes == ["two lines"]
    assert loaded.nodes["relu"].meta["source"].startswith("a.py:1: x = 1 + 1")
    odd = torch.nn.ModuleDict({"größe-1": torch.nn.Linear(2, 2)})

    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = odd

        def forward(self, größe: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.parts["größe-1"](größe)
            return out

    x = torch.ones(3, 2)
    traced = esper.trace(Odd().eval(), (x,))
    assert _equal(_again(traced, tmp_path)(größe=x), traced(x))
    model.add_module('a"b', torch.nn.Linear(2, 2))
    with pytest.raises(OutputError, match="of a module or tensor is not admitted"):
        esper.save(model, tmp_path / "m.esper")


def test_only_models_are_saved(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="writes an esper\\.Model, not Linear"):
        esper.save(torch.nn.Linear(2, 2), tmp_path / "m.esper")  # type: ignore[arg-type]
