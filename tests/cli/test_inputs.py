"""Reading models: every accepted form, and one sentence for everything else."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from esper.cli.inputs import Loaded, read_input
from esper.errors import InputError, UsageError
from tests.cli.support import (
    Hostile,
    assert_one_sentence,
    exported,
    hostile_pickle,
    saved,
    small,
)

SUFFIXES = (".pt2", ".esper", ".onnx", ".pt", ".pth", ".safetensors", ".bin", "")
X = torch.linspace(-1, 1, 18).reshape(3, 6)


def refused(path: Path | str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_input(str(path), **options)
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert_one_sentence(message)
    return message


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def archive() -> bytes:
    return exported()


@pytest.fixture(scope="module")
def weights() -> bytes:
    return saved(small().state_dict())


@pytest.fixture(scope="module")
def tensors() -> bytes:
    import safetensors.torch

    return safetensors.torch.save(small().state_dict())


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    import esper

    path = tmp_path_factory.mktemp("artifact") / "m.esper"
    esper.save(esper.trace(small(), (X,)), path)
    return path.read_bytes()


# -- what is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt2", ".pt", ".esper", ""])
def test_an_exported_program_is_read_whatever_it_is_called(
    archive: bytes, tmp_path: Path, suffix: str
) -> None:
    loaded = read_input(str(write(tmp_path / f"m{suffix}", archive)))
    assert loaded.kind == "exported"
    assert torch.equal(loaded.module(X), small()(X))
    assert loaded.inputs is not None
    assert loaded.inputs[0][0].shape == (4, 6)


def test_an_exported_program_can_be_traced(archive: bytes, tmp_path: Path) -> None:
    import esper

    loaded = read_input(str(write(tmp_path / "m.pt2", archive)))
    assert loaded.inputs is not None
    model = esper.trace(loaded.module, *loaded.inputs)
    assert torch.equal(model(X), small()(X))
    assert set(model.state_dict()) == set(small().state_dict())


def test_tied_parameters_of_an_exported_program_stay_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 6)
            self.b = nn.Linear(6, 6)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.b(self.a(x))
            return out

    loaded = read_input(str(write(tmp_path / "m.pt2", exported(Tied()))))
    assert loaded.module.get_parameter("a.weight") is loaded.module.get_parameter("b.weight")


@pytest.mark.parametrize("name", ["bert", "resnet_basic", "unet_interpolate"])
def test_exported_programs_of_real_shapes_are_read(name: str, tmp_path: Path) -> None:
    from tests.models import MODELS

    module, args, kwargs = MODELS[name]()
    path = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(module, args, kwargs), path)
    leaves = torch.utils._pytree.tree_leaves
    found = leaves(read_input(str(path)).module(*args, **kwargs))
    for mine, theirs in zip(found, leaves(module(*args, **kwargs)), strict=True):
        assert torch.equal(mine, theirs)


def test_a_state_dict_fills_the_module_of_the_factory(
    weights: bytes, tensors: bytes, tmp_path: Path
) -> None:
    for number, data in enumerate((weights, tensors, saved({"state_dict": small().state_dict()}))):
        path = write(tmp_path / f"m{number}.pt2", data)
        loaded = read_input(str(path), factory=_other)
        assert torch.equal(loaded.module(X), small()(X))


def _other() -> nn.Module:
    torch.manual_seed(7)
    return type(small())()


def test_an_artifact_is_read(artifact: bytes, tmp_path: Path) -> None:
    import esper

    loaded = read_input(str(write(tmp_path / "m.pt", artifact)))
    assert loaded.kind == "artifact"
    assert isinstance(loaded.module, esper.Model)
    assert torch.equal(loaded.module(X), small()(X))


def test_a_pickled_module_is_read_only_when_trusted(tmp_path: Path) -> None:
    path = write(tmp_path / "m.pt", saved(small()))
    message = refused(path)
    assert "--allow-pickle" in message
    assert "torch.export.save" in message
    assert "Small" in message
    loaded = read_input(str(path), allow_pickle=True)
    assert torch.equal(loaded.module(X), small()(X))


def test_standard_input_is_read(archive: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipe(io.BytesIO):
        buffer = property(lambda self: self)

    monkeypatch.setattr("sys.stdin", Pipe(archive))
    assert torch.equal(read_input("-").module(X), small()(X))
    monkeypatch.setattr("sys.stdin", Pipe(b"rubbish that is no model"))
    assert "standard input" in refused("-")


# -- model directories -----------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_a_model_directory_is_read(directory: Path) -> None:
    loaded = read_input(str(directory))
    assert type(loaded.module).__name__ == "BertModel"
    assert loaded.keywords
    assert "input_ids=int64[8,64]:30," in loaded.hint
    assert not loaded.module.training


def test_what_libraries_log_while_a_directory_is_read_is_not_shown(directory: Path) -> None:
    """In a process of its own, where they are imported for the first time."""
    code = (
        "import sys, logging\nfrom esper.cli.inputs import read_input\n"
        f"read_input({str(directory)!r})\nlogging.warning('of the user')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == "WARNING:root:of the user\n"


def test_code_in_a_model_directory_is_not_run(directory: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    config = json.loads((directory / "config.json").read_text())
    config["model_type"] = "never-heard-of"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    (directory / "pytorch_model.bin").write_bytes(hostile_pickle(marker))
    refused(directory)
    assert not marker.exists()


def test_pickled_weights_of_a_directory_are_not_read(directory: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(hostile_pickle(marker))
    assert "safetensors" in refused(directory)
    assert not marker.exists()


def test_a_directory_whose_weights_do_not_fit_is_refused(directory: Path) -> None:
    import safetensors.torch

    file = directory / "model.safetensors"
    found = safetensors.torch.load_file(file)
    del found["encoder.layer.0.output.dense.weight"]
    safetensors.torch.save_file(found, file, {"format": "pt"})
    assert "encoder.layer.0.output.dense.weight is missing" in refused(directory)
    file.write_bytes(file.read_bytes()[:100])
    refused(directory)
    (directory / "config.json").write_text("{")
    assert "config.json" in refused(directory)
    (directory / "config.json").unlink()
    assert "config.json" in refused(directory)


# -- what is refused -------------------------------------------------------------------------------


def test_missing_and_empty_files(tmp_path: Path) -> None:
    assert "there is no file" in refused(tmp_path / "absent.pt2")
    assert "is empty" in refused(write(tmp_path / "m.pt2", b""))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_random_bytes_are_refused(tmp_path: Path, suffix: str) -> None:
    for seed in range(10):
        refused(write(tmp_path / f"m{suffix}", random.Random(seed).randbytes(3000)))
        for magic in (b"PK\x03\x04", b"\x80\x02", b"\x08\x08\x12\x07pytorch", bytes(8) + b"{"):
            data = magic + random.Random(seed).randbytes(3000)
            refused(write(tmp_path / f"m{suffix}", data))


@pytest.mark.parametrize("what", ["archive", "weights", "tensors", "artifact"])
def test_truncated_files_are_refused(
    what: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    data: bytes = request.getfixturevalue(what)
    for part in (3, 10, 30, 60, len(data) // 3, len(data) // 2, len(data) - 30, len(data) - 1):
        refused(write(tmp_path / "m.pt2", data[:part]), factory=None)


@pytest.mark.parametrize("what", ["archive", "weights", "artifact"])
def test_damaged_files_are_refused_or_read(
    what: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Flipped bytes give one sentence, or leave a file that still reads."""
    data: bytes = request.getfixturevalue(what)
    for seed in range(40):
        generator = random.Random(seed)
        changed = bytearray(data)
        for _ in range(8):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        path = write(tmp_path / "m.pt2", bytes(changed))
        try:
            loaded = read_input(str(path), factory=_other if what == "weights" else None)
        except (InputError, UsageError) as error:
            assert_one_sentence(str(error))
        else:
            assert isinstance(loaded, Loaded)


def test_a_state_dict_needs_a_model(weights: bytes, tensors: bytes, tmp_path: Path) -> None:
    for data in (weights, tensors):
        assert "--model" in refused(write(tmp_path / "m.pt", data))


def test_weights_that_do_not_fit_name_the_tensors(tmp_path: Path) -> None:
    state = small().state_dict()
    cases: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
        (lambda s: s.pop("first.bias"), "the file lacks first.bias"),
        (lambda s: s.update(other=torch.ones(2)), "the module has no other"),
        (lambda s: s.update({"last.weight": torch.ones(3, 9)}), "last.weight has shape [3, 9]"),
        (lambda s: s.update({"last.bias": torch.ones(3).double()}), "last.bias is float64"),
    ]
    for change, expected in cases:
        changed = dict(state)
        change(changed)
        path = write(tmp_path / "m.pt", saved(changed))
        assert expected in refused(path, factory=_other)
    many = {f"layer{i}.weight": torch.ones(2) for i in range(9)}
    message = refused(write(tmp_path / "m.pt", saved(many)), factory=_other)
    assert "more)" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    module = small()
    with torch.no_grad():
        module.last.weight[1, 2] = value
    message = refused(write(tmp_path / "m.pt2", exported(module)))
    assert "last.weight" in message
    path = write(tmp_path / "m.pt", saved(module.state_dict()))
    assert "last.weight" in refused(path, factory=_other)


def test_masks_may_hold_minus_infinity_and_no_buffer_nan(tmp_path: Path) -> None:
    module = small()
    module.scale[0] = -torch.inf
    assert read_input(str(write(tmp_path / "m.pt2", exported(module)))).kind == "exported"
    for value in (torch.inf, torch.nan):
        module.scale[0] = value
        assert "scale" in refused(write(tmp_path / "m.pt2", exported(module)))


def test_a_factory_must_make_a_module(weights: bytes, archive: bytes, tmp_path: Path) -> None:
    path = str(write(tmp_path / "m.pt", weights))

    def broken() -> nn.Module:
        raise RuntimeError("no such size")

    with pytest.raises(UsageError, match=r"no such size, at test_inputs\.py"):
        read_input(path, factory=broken)
    with pytest.raises(UsageError, match="returned a int"):
        read_input(path, factory=lambda: 3)
    with pytest.raises(UsageError, match="--model goes with a state dict"):
        read_input(str(write(tmp_path / "m.pt2", archive)), factory=_other)


def test_other_archives_are_named(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "docs.zip", "w") as archive:
        archive.writestr("a/readme.txt", "hello")
    assert "zip archive" in refused(tmp_path / "docs.zip")
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "g", [], [])
    onnx.save(onnx.helper.make_model(graph, producer_name="pytorch"), tmp_path / "m.pt2")
    assert "ONNX" in refused(tmp_path / "m.pt2")


# -- hostile pickles -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_hostile_pickle_does_not_run(suffix: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    payloads = {
        "plain": hostile_pickle(marker),
        "torch": saved(Hostile(marker)),
        "nested": saved({"state_dict": {"w": Hostile(marker)}}),
        "text": b"cos\nmkdir\n(V" + str(marker).encode() + b"\ntR.",
    }
    for data in payloads.values():
        path = write(tmp_path / f"m{suffix}", data)
        refused(path)
        refused(path, factory=_other)
        assert not marker.exists()


def test_the_hostile_pickle_would_run_if_it_were_trusted(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = write(tmp_path / "m.pt", saved(Hostile(marker)))
    with pytest.raises(InputError):
        read_input(str(path), allow_pickle=True)
    assert marker.exists()
