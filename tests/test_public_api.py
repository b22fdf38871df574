"""Public names resolve, modules say what they are, and importing stays light."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import esper
import esper_passes

# Costly to import, and needed only by those who use a backend, a report or the command line.
HEAVY = {
    *("onnx", "onnxruntime", "onnxscript", "openvino", "torchao", "transformers", "tokenizers"),
    *("matplotlib", "scipy", "pandas", "triton", "torchvision"),
}
COMMAND_LINE = {"rich", "typer", "click"}


def _names(package: ModuleType) -> list[str]:
    found = pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    return [package.__name__, *(info.name for info in found)]


MODULES = [*_names(esper), *_names(esper_passes)]
PUBLIC = [n for n in MODULES if not any(part.startswith("_") for part in n.split("."))]


@pytest.mark.parametrize("name", PUBLIC)
def test_module_is_documented_and_exports_what_it_says(name: str) -> None:
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip(), f"{name} has no docstring"
    exported = getattr(module, "__all__", [])
    assert len(set(exported)) == len(exported)
    for attribute in exported:
        assert not attribute.startswith("_"), f"{name} exports the private {attribute}"
        assert hasattr(module, attribute), f"{name} exports {attribute}, which it does not have"


def test_top_level_names() -> None:
    for name in esper.__all__:
        assert getattr(esper, name) is not None
        assert name in dir(esper)
    leaked = {n for n in vars(esper) if not n.startswith("_")} - set(esper.__all__)
    submodules = {n.split(".")[1] for n in MODULES if n.startswith("esper.")}
    assert leaked - submodules <= {"annotations", "importlib", "TYPE_CHECKING", "Any"}


def test_unknown_top_level_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'esper' has no attribute 'optimise'"):
        _ = esper.optimise


def _imported(statements: str) -> set[str]:
    """Top-level packages that a fresh interpreter holds after some statements."""
    code = f"import json, sys\n{statements}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_import_esper_loads_nothing_heavy() -> None:
    """`import esper` may cost 0.3 s more than `import torch`; these are what would cost more."""
    added = _imported("import torch, esper") - _imported("import torch")
    assert added & (HEAVY | COMMAND_LINE | {"networkx", "pydantic", "sympy"}) == set()
    assert "esper_passes" not in added


def test_no_module_loads_a_backend_before_it_is_used() -> None:
    statements = "import torch\n" + "\n".join(f"import {name}" for name in PUBLIC)
    added = _imported(statements) - _imported("import torch")
    assert added & HEAVY == set()


def test_only_the_command_line_loads_its_libraries() -> None:
    library = [n for n in PUBLIC if not n.startswith("esper.cli")]
    statements = "import torch\n" + "\n".join(f"import {name}" for name in library)
    assert (_imported(statements) - _imported("import torch")) & COMMAND_LINE == set()
