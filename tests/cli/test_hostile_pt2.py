"""A `.pt2` archive cannot run code: every way through `torch.export.load` that could is closed."""

from __future__ import annotations

import copy
import io
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.cli.inputs import read_input
from esper.cli.pt2_check import check_expression, check_operator, check_tree
from esper.errors import InputError
from tests.cli.support import (
    Hostile,
    assert_one_sentence,
    edit_json,
    exported,
    hostile_pickle,
    rewrite,
    saved,
)

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


@pytest.fixture(scope="module")
def archive() -> bytes:
    return exported()


def refused(data: bytes, folder: Path) -> str:
    path = folder / "m.pt2"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_input(str(path)).module(torch.ones(2, 6))
    assert_one_sentence(str(caught.value))
    return str(caught.value)


def replaced(member: str, data: bytes) -> Callable[[str, bytes], bytes | None]:
    return lambda path, old: data if path == member else old


def command(marker: Path) -> str:
    return f"__import__('os').mkdir({str(marker)!r})"


def test_pickled_members_do_not_run(archive: bytes, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    hostile = saved(Hostile(marker))
    examples = rewrite(archive, replaced("data/sample_inputs/model.pt", hostile))
    assert "example inputs" in refused(examples, tmp_path)
    assert not marker.exists()

    def pickled(config: Any) -> None:
        config["config"]["first.weight"]["use_pickle"] = True

    weights = edit_json(archive, WEIGHTS, pickled)
    refused(rewrite(weights, replaced("data/weights/weight_0", hostile)), tmp_path)
    assert not marker.exists()

    for kind in ("opaque_obj_0", "custom_obj_0", "../models/model.json"):

        def object_(config: Any, kind: str = kind) -> None:
            entry = {"path_name": kind, "is_param": False, "use_pickle": True, "tensor_meta": None}
            config["config"]["thing"] = entry

        changed = edit_json(archive, CONSTANTS, object_)
        extended = io.BytesIO(changed)
        with zipfile.ZipFile(extended, "a") as more:
            root = more.namelist()[0].partition("/")[0]
            more.writestr(f"{root}/data/constants/{kind}", hostile_pickle(marker))
        refused(extended.getvalue(), tmp_path)
        assert not marker.exists()


def test_legacy_weights_do_not_run(archive: bytes, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    data = io.BytesIO(rewrite(archive, lambda path, old: None if path == WEIGHTS else old))
    with zipfile.ZipFile(data, "a") as more:
        root = more.namelist()[0].partition("/")[0]
        more.writestr(f"{root}/data/weights/model.pt", saved(Hostile(marker)))
    refused(data.getvalue(), tmp_path)
    assert not marker.exists()


def test_members_cannot_be_hidden_behind_others(archive: bytes, tmp_path: Path) -> None:

    data = io.BytesIO(archive)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of the second member of that name
        with zipfile.ZipFile(data, "a") as more:
            name = next(n for n in more.namelist() if n.endswith(MODEL))
            more.writestr(name, b"{}")
    assert "twice" in refused(data.getvalue(), tmp_path)
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    assert "compressed" in refused(packed.getvalue(), tmp_path)


def _first_node(program: Any) -> Any:
    return program["graph_module"]["graph"]["nodes"][0]


def _rename_input(program: Any, name: str) -> None:
    """Every mention of the input `x` becomes `name`."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {name if k == "x" else k: walk(v) for k, v in value.items()}
        if isinstance(value, list):
            return [walk(v) for v in value]
        return name if value == "x" else value

    program.update(walk(copy.deepcopy(program)))


def _size(program: Any, text: str) -> None:
    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if "expr_str" in value:
                value["expr_str"] = text
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(program)


def _spec(program: Any, text: str) -> None:
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    signature["in_spec"] = text


def _call(program: Any, marker: Path) -> None:
    node = _first_node(program)
    node["target"] = "torch.os.mkdir"
    node["inputs"] = [{"name": "", "arg": {"as_string": str(marker)}, "kind": 1}]


EDITS: dict[str, Callable[[Any, Path], None]] = {
    "a symbolic size that is code": lambda p, m: _size(p, command(m)),
    "a symbolic size with an attribute": lambda p, m: _size(p, "s0.__class__.__mro__"),
    "a function of a module": _call,
    "a file operator": lambda p, m: _first_node(p).update(
        target="torch.ops.aten.from_file.default"
    ),
    "an input named like code": lambda p, m: _rename_input(p, f"x={command(m)}"),
    "an input with a default": lambda p, m: _rename_input(p, "x, y=print()"),
    "an import through a tree": lambda p, m: _spec(
        p,
        '[1, {"type": "collections.defaultdict", "context": {"default_factory_module": '
        '"antigravity", "default_factory_name": "x", "dict_context": []}, "children_spec": []}]',
    ),
    "an import through an enumeration": lambda p, m: _spec(
        p,
        '[1, {"type": "builtins.dict", "context": "[{\\"__enum__\\": true, \\"fqn\\": '
        '\\"this:a\\", \\"name\\": \\"b\\"}]", "children_spec": [{"type": null, "context": null, '
        '"children_spec": []}]}]',
    ),
}


@pytest.mark.parametrize("what", EDITS)
def test_the_description_of_the_graph_cannot_run_code(
    archive: bytes, tmp_path: Path, what: str
) -> None:
    import sys

    marker = tmp_path / "marker"
    changed = edit_json(archive, MODEL, lambda program: EDITS[what](program, marker))
    refused(changed, tmp_path)
    assert not marker.exists()
    assert "antigravity" not in sys.modules
    assert "this" not in sys.modules


def test_guards_are_dropped(archive: bytes, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    def guard(program: Any) -> None:
        program["guards_code"] = [command(marker)]

    path = tmp_path / "m.pt2"
    path.write_bytes(edit_json(archive, MODEL, guard))
    read_input(str(path)).module(torch.ones(2, 6))
    assert not marker.exists()


def test_weight_names_end_up_in_code_and_are_checked(archive: bytes, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    name = f'first"),{command(marker)},("'

    def rename(value: Any) -> None:
        inner = value["config"]
        inner[name] = inner.pop("first.weight")

    changed = edit_json(archive, WEIGHTS, rename)
    changed = edit_json(changed, MODEL, lambda p: _rename_parameter(p, name))
    refused(changed, tmp_path)
    assert not marker.exists()


def _rename_parameter(program: Any, name: str) -> None:
    for item in program["graph_module"]["signature"]["input_specs"]:
        if item.get("parameter", {}).get("parameter_name") == "first.weight":
            item["parameter"]["parameter_name"] = name


def test_the_same_archives_do_run_code_when_trusted(archive: bytes, tmp_path: Path) -> None:
    """So that the tests above are known to attack something real."""
    path = tmp_path / "m.pt2"
    marker = tmp_path / "one"
    path.write_bytes(
        rewrite(archive, replaced("data/sample_inputs/model.pt", saved(Hostile(marker))))
    )
    with pytest.raises(InputError):
        read_input(str(path), allow_pickle=True)
    assert marker.exists()
    marker = tmp_path / "two"
    path.write_bytes(edit_json(archive, MODEL, lambda p: _size(p, command(marker))))
    with pytest.raises(InputError):
        read_input(str(path), allow_pickle=True)
    assert marker.exists()


def test_bytes_that_end_early_are_named(archive: bytes, tmp_path: Path) -> None:
    short = rewrite(archive, lambda p, d: d[:8] if p == "data/weights/weight_0" else d)
    assert "end too early" in refused(short, tmp_path)

    def negative(config: Any) -> None:
        config["config"]["first.weight"]["tensor_meta"]["storage_offset"]["as_int"] = -4

    assert "end too early" in refused(edit_json(archive, WEIGHTS, negative), tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "2*s0 + 1",
        "Symbol('s77', positive=True, integer=True)",
        "Mul(Integer(2), Symbol('u0', integer=True))",
        "FloorDiv(s0 - 1, 2) + Max(1, s1)**2",
        "Pow(Symbol('s1', positive=True, integer=True), Integer(2))",
        "Float('0.5', precision=53)",
        "Eq(s0, 3) & (s1 <= 4)",
    ],
)
def test_honest_symbolic_sizes_pass(text: str) -> None:
    check_expression(text.replace("&", "|"), "m.pt2")


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "s0.real",
        "[s0 for s0 in s1]",
        "(lambda: 1)()",
        "Symbol('os')",
        "Symbol(s0)(1)",
        "eval('1')",
        "9**9**9",
        "Pow(9, Pow(9, 9))",
        "s0[0]",
        "f'{s0}'",
        "'text'",
        "s0 if s1 else s2",
        "1 +",
        "(" * 3000,
        "",
    ],
)
def test_other_symbolic_sizes_do_not(text: str) -> None:
    with pytest.raises(InputError):
        check_expression(text, "m.pt2")


@pytest.mark.parametrize(
    "name",
    [
        "torch.ops.aten.linear.default",
        "torch.ops.aten.__and__.Tensor",
        "torch.ops.higher_order.cond",
        "_operator.getitem",
        "torch.sym_max",
        "math.ceil",
    ],
)
def test_operators_that_compute_pass(name: str) -> None:
    check_operator(name, "m.pt2")


@pytest.mark.parametrize(
    "name",
    [
        "torch.os.system",
        "torch.load",
        "torch.hub.load",
        "torch.ops.load_library",
        "torch.ops.aten.__class__",
        "torch.ops.aten.linear.__call__",
        "torch.ops.aten.from_file.default",
        "torch.ops.debugprims.load_tensor.default",
        "torch.ops.higher_order.triton_kernel_wrapper_mutation",
        "_operator.attrgetter",
        "_operator.methodcaller",
        "_operator.call",
        "math.factorial",
        "#extension:thing",
        "torch.ops.aten.linear.default\n",
    ],
)
def test_other_operators_do_not(name: str) -> None:
    with pytest.raises(InputError):
        check_operator(name, "m.pt2")


def test_trees_of_plain_containers_pass() -> None:
    from torch.utils import _pytree as pytree

    for value in ({"a": [1, (2,)], "b c": 3}, ((1,), {"x": 2}), [None], 1):
        check_tree(pytree.treespec_dumps(pytree.tree_structure(value)), "m.pt2", names=True)
    quoted = pytree.treespec_dumps(pytree.tree_structure({"a(b)": 1}))
    check_tree(quoted, "m.pt2", names=False)
    with pytest.raises(InputError):
        check_tree(quoted, "m.pt2", names=True)
