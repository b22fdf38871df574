"""Damaged and hostile `.esper` files end in one sentence; nothing in them is executed."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import esper
from esper.errors import InputError
from esper.ir import codec
from tests.ir.small import perceptron, perceptron_inputs

Parts = dict[str, bytes]
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """Members of a good file."""
    path = tmp_path_factory.mktemp("good") / "good.esper"
    esper.save(perceptron(), path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A good file."""
    path = tmp_path_factory.mktemp("whole") / "good.esper"
    esper.save(perceptron(), path)
    return path.read_bytes()


def _write(path: Path, parts: Parts, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


def _refused(path: Path, pattern: str = "") -> None:
    with pytest.raises(InputError, match=pattern or None) as caught:
        esper.load(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    assert len(text) < 600 + len(str(path))


def _edited(parts: Parts, member: str, edit: Edit) -> Parts:
    data = json.loads(parts[member])
    edit(data)
    return {**parts, member: json.dumps(data).encode()}


def _node(data: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(node for node in data["nodes"] if node["name"] == name)
    return found


def test_the_parts_of_a_good_file_load(parts: Parts, tmp_path: Path) -> None:
    model = esper.load(_write(tmp_path / "m.esper", parts))
    inputs = perceptron_inputs()
    assert torch.equal(model(*inputs)["logits"], perceptron()(*inputs)["logits"])


def test_missing_files_and_directories(tmp_path: Path) -> None:
    _refused(tmp_path / "none.esper", "No such file")
    _refused(tmp_path, "directory")


def test_truncated_files(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.esper"
    for length in [0, 1, 21, 22, *range(100, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:length])
        _refused(path)


@settings(max_examples=60)
@given(data=st.binary(max_size=400))
def test_random_bytes(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("random") / "m.esper"
    path.write_bytes(data)
    _refused(path)


@settings(max_examples=60)
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_damaged_byte_is_noticed_or_harmless(
    where: float, flip: int, whole: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    damaged = bytearray(whole)
    damaged[int(where * len(whole))] ^= flip
    path = tmp_path_factory.mktemp("damaged") / "m.esper"
    path.write_bytes(damaged)
    inputs = perceptron_inputs()
    try:
        loaded = esper.load(path)
    except InputError:
        return
    assert torch.equal(loaded(*inputs)["logits"], perceptron()(*inputs)["logits"])


def test_a_damaged_tensor_is_noticed(whole: bytes, tmp_path: Path) -> None:
    damaged = bytearray(whole)
    damaged[whole.index(b"PK\x01\x02") - 1] ^= 1  # last byte before the directory
    (tmp_path / "m.esper").write_bytes(damaged)
    _refused(tmp_path / "m.esper", "checksum")


def test_compressed_members_are_refused(parts: Parts, tmp_path: Path) -> None:
    bomb = {**parts, "history.json": b" " * 50_000_000}
    _refused(_write(tmp_path / "m.esper", bomb, zipfile.ZIP_DEFLATED), "compressed")


def test_other_members_are_refused(parts: Parts, tmp_path: Path) -> None:
    _refused(_write(tmp_path / "m.esper", {**parts, "../evil": b""}), "parts of one")
    _refused(_write(tmp_path / "n.esper", {"graph.json": b"{}"}), "parts of one")


def test_deep_json_is_refused(parts: Parts, tmp_path: Path) -> None:
    deep = b'{"history": ' + b"[" * 200_000 + b"]" * 200_000 + b', "notes": []}'
    _refused(_write(tmp_path / "m.esper", {**parts, "history.json": deep}), "nested")


def test_other_versions_are_refused(parts: Parts, tmp_path: Path) -> None:
    _refused(
        _write(tmp_path / "m.esper", {**parts, "format": b'{"version": 99}'}), "format version 99"
    )


@pytest.mark.parametrize(
    "header",
    [
        {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"x": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}},
        {"x": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        {"x": 3},
        [],
    ],
)
def test_tensor_headers_that_lie(header: Any, parts: Parts, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + bytes(8)
    _refused(_write(tmp_path / "m.esper", {**parts, "tensors.safetensors": data}))


def test_a_tensor_header_longer_than_the_file(parts: Parts, tmp_path: Path) -> None:
    data = (2**62).to_bytes(8, "little") + b"{}"
    _refused(
        _write(tmp_path / "m.esper", {**parts, "tensors.safetensors": data}), "longer than the file"
    )


_INJECTION = 'x"); __import__("os").system("false"); ("'

_SYMBOL: dict[str, int | None] = {"hint": 3, "min": 2, "max": None}

_HOSTILE_GRAPHS: dict[str, tuple[Edit, str]] = {
    "node name": (lambda d: _node(d, "relu").update(name="a; import os"), "identifier"),
    "keyword as name": (lambda d: _node(d, "relu").update(name="import"), "identifier"),
    "input name": (lambda d: _node(d, "ids").update(target="ids=exec('1')"), "identifier"),
    "argument name": (lambda d: d["signature"].update(names=["x): pass #"]), "identifier"),
    "keyword argument": (
        lambda d: _node(d, "relu").update(kwargs={"a=exec('1'), b": 1}),
        "identifier",
    ),
    "tensor read": (
        lambda d: next(n for n in d["nodes"] if n["op"] == "get_attr").update(target=_INJECTION),
        "not admitted",
    ),
    "tensor name": (lambda d: d["tensors"][0].update(name="__class__"), ""),
    "module name": (lambda d: d["modules"].append("forward"), ""),
    "attribute of the model": (lambda d: d["modules"].append("_parameters"), ""),
    "python function": (lambda d: _node(d, "relu").update(target="os.system"), "is no op"),
    "builtin": (lambda d: _node(d, "relu").update(target="builtins.exec.default"), "not admitted"),
    "unknown library": (
        lambda d: _node(d, "relu").update(target="evil.op.default"),
        "library evil are not admitted",
    ),
    "unknown op": (lambda d: _node(d, "relu").update(target="aten.nope.default"), "not known"),
    "no op": (lambda d: _node(d, "relu").update(target="aten.__class__.mro"), "not known"),
    "op that reads files": (
        lambda d: _node(d, "relu").update(target="aten.from_file.default", args=["/etc/passwd"]),
        "not admitted",
    ),
    "op that loads libraries": (
        lambda d: _node(d, "relu").update(target="torch.load_library.x"),
        "not admitted",
    ),
    "call of a method": (lambda d: _node(d, "relu").update(op="call_method"), "kind"),
    "call of a module": (lambda d: _node(d, "relu").update(op="call_module"), "kind"),
    "later node": (
        lambda d: _node(d, "embedding").update(args=[{"node": "relu"}, {"node": "ids"}]),
        "no earlier node",
    ),
    "unknown argument": (
        lambda d: _node(d, "relu").update(args=[{"pickle": "gASV"}]),
        "no kind of argument",
    ),
    "huge integer": (lambda d: _node(d, "relu").update(args=[10**40]), "64 bits"),
    "deep argument": (lambda d: _node(d, "relu").update(args=[_nested(60)]), "nested too deeply"),
    "twice the name": (lambda d: _node(d, "relu").update(name="linear"), "two nodes"),
    "no output": (lambda d: d["nodes"].pop(), "output"),
    "no nodes": (lambda d: d.pop("nodes"), ""),
    "other shape": (lambda d: _node(d, "relu").update(value="float32[s0, 5, 9]"), "file says"),
    "wrong operands": (
        lambda d: _node(d, "linear").update(args=[{"node": "ids"}, {"node": "ids"}]),
        "",
    ),
    "memory": (
        lambda d: _node(d, "relu").update(target="operator.mul", args=["x" * 1000, 2**40]),
        "no number",
    ),
    "big power": (
        lambda d: _node(d, "relu").update(target="operator.pow", args=[9, 2**60]),
        "exponent",
    ),
    "big product": (
        lambda d: _node(d, "relu").update(target="operator.mul", args=[2**60, 2**60]),
        "out of range",
    ),
    "control characters": (lambda d: _node(d, "relu").update(source="a\x1b[2Jb"), "printed"),
    "symbol with a bad name": (lambda d: d["symbols"].update({"exit()": _SYMBOL}), "symbol"),
    "symbol out of its range": (
        lambda d: d["symbols"].update({"s1": {**_SYMBOL, "min": 9}}),
        "symbol",
    ),
    "size as code": (
        lambda d: _node(d, "ids")["input"].update(shape=["__import__('os')", 5]),
        "symbolic size",
    ),
    "size as a tower": (
        lambda d: _node(d, "ids")["input"].update(shape=[["**", 9, ["**", 9, 8]], 5]),
        "symbolic size",
    ),
    "structure with an import": (
        lambda d: d["signature"].update(out=["class", ["keys", "os.path", ["a b"], []], "*"]),
        "class",
    ),
    "structure with another number": (
        lambda d: d["signature"].update({"in": ["tuple", "*", "*"]}),
        "number of inputs",
    ),
    "mode of nothing": (
        lambda d: _node(d, "dropout").update(modes=[[[40], False, True]]),
        "",
    ),
    "training flag": (lambda d: d.update(training="yes"), "training flag"),
}


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("name", _HOSTILE_GRAPHS)
def test_hostile_graphs(name: str, parts: Parts, tmp_path: Path) -> None:
    edit, pattern = _HOSTILE_GRAPHS[name]
    _refused(_write(tmp_path / "m.esper", _edited(parts, "graph.json", edit)), pattern)


_HOSTILE_ANATOMIES: dict[str, Edit] = {
    "axes are a list": lambda d: d.update(axes=[]),
    "unit numbers are text": lambda d: next(iter(d["axes"].values())).update(units=["a"]),
    "members name no tensor": lambda d: next(iter(d["axes"].values())).update(
        members=[["a\nb", 0, 0]]
    ),
    "no next number": lambda d: next(iter(d["axes"].values())).update(next=None),
    "control characters": lambda d: d.update(retired=["a\x07"]),
    "region with other facts": lambda d: d.update(regions={"phage:x": {"a": "b"}}),
}


@pytest.mark.parametrize("name", _HOSTILE_ANATOMIES)
def test_hostile_anatomies(name: str, parts: Parts, tmp_path: Path) -> None:
    edit = _HOSTILE_ANATOMIES[name]
    _refused(_write(tmp_path / "m.esper", _edited(parts, "anatomy.json", edit)))


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text()
    | st.complex_numbers()
    | st.sampled_from(
        [torch.float32, torch.bool, torch.strided, torch.channels_last, torch.device("cpu")]
    )
    | st.sampled_from([torch.device("cuda", 1), slice(None), slice(1, None, -2)]),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(-9, 9), inner)
    ),
    max_leaves=8,
)


@given(_VALUES)
def test_arguments_round_trip_through_json(value: Any) -> None:
    text = json.dumps(codec.encode(value), allow_nan=False)
    assert repr(codec.decode(json.loads(text), {})) == repr(value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_decoding_raises_nothing_else(value: Any) -> None:
    with suppress(codec.CodecError):
        codec.decode(value, {})
