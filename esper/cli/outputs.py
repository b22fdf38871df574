"""Writing the OUTPUT of `esper-opt`: format by suffix, checked, whole or not at all."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from esper.cli.export import export_program
from esper.cli.pt2_read import first_line, quiet_torch
from esper.errors import OutputError
from esper.gate.backends.onnx_export import quiet_converter
from esper.ir.atomic import atomic_write
from esper.ir.kernels import kernel, modules
from esper.ir.model import Model
from esper.ir.onnx_graph import respell, translations
from esper.passbase import Batch

#: Longest suffix first, since `.aoti.pt2` ends in `.pt2` too.
SUFFIXES = (".aoti.pt2", ".pt2", ".onnx", ".esper")

#: Largest distance between outputs of the file and of the model, relative to their norm. Another
#: runtime reorders sums; half precision rounds by 1e-2.
_TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 1e-2, torch.float64: 1e-9}
_DEFAULT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Output:
    """A file that will be written.

    Attributes:
        path: where.
        suffix: one of `SUFFIXES`.
    """

    path: Path
    suffix: str

    @property
    def needs_inputs(self) -> bool:
        """Whether writing it needs example inputs."""
        return self.suffix != ".esper"


def prepare(path: str) -> Output:
    """Check, before any work starts, that this output can be written later.

    Raises OutputError: unknown suffix, no such directory, no permission, or a package or compiler
    that the format needs is missing.
    """
    suffix = next((s for s in SUFFIXES if path.endswith(s)), None)
    if suffix is None:
        raise OutputError(
            f"the format of -o {path} is not known: end it in {', '.join(SUFFIXES[1:])} or "
            f"{SUFFIXES[0]}"
        )
    check_writable(path)
    if suffix == ".onnx":
        _need("onnx", "onnxscript", "onnxruntime")
    if suffix == ".aoti.pt2" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise OutputError("writing .aoti.pt2 needs a C++ compiler, and none is on the PATH")
    return Output(Path(path), suffix)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise OutputError when a file at `path` could not be created or replaced."""
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    if os.path.isdir(target):
        raise OutputError(f"{path} is a directory, where a file is to be written")
    if not os.path.isdir(folder):
        raise OutputError(f"{path} cannot be written: there is no directory {folder}")
    if os.path.exists(target) and not os.path.isfile(target):
        if os.access(target, os.W_OK):
            return  # a device or pipe, which is written directly
        raise OutputError(f"{path} cannot be written: permission denied")
    probe = f"{target}.{secrets.token_hex(6)}.tmp"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(probe)


def check_space(path: str | os.PathLike[str], nbytes: int) -> None:
    """Raise OutputError when the disk of `path` has less than `nbytes` free."""
    folder = os.path.dirname(os.path.realpath(path))
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise OutputError(
            f"{path} cannot be written: it needs about {nbytes / 1e6:.0f} MB and the disk has "
            f"{free / 1e6:.0f} MB free"
        )


def write_output(model: Model, output: Output, inputs: Batch | None) -> list[str]:
    """Write the model; the file is there whole or not at all.

    Args:
        model: what to write. Files other than `.esper` hold it in evaluation mode.
        output: from `prepare`.
        inputs: example inputs, needed unless the format is `.esper`.

    Returns:
        Sentences about what was written.

    Raises:
        OutputError: in one sentence; an older file at that path is then as it was.
    """
    if output.suffix == ".esper":
        from esper.ir.artifact import save

        save(model, output.path)
        return []
    if inputs is None:
        raise OutputError(f"writing {output.suffix} needs example inputs: give --inputs")
    data, notes = _WRITERS[output.suffix](model, inputs)
    write_bytes(output.path, data)
    return notes


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole or not at all. Raises OutputError."""
    with atomic_write(path) as stream:
        stream.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file (UTF-8) whole or not at all. Raises OutputError."""
    write_bytes(path, text.encode("utf-8"))


def _pt2(model: Model, inputs: Batch) -> tuple[bytes, list[str]]:
    program, notes = export_program(model, inputs)
    buffer = io.BytesIO()
    try:
        with quiet_torch(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch 2.11 warns of how it reads its own files
            torch.export.save(program, buffer)
            buffer.seek(0)
            loaded = torch.export.load(buffer).module()
    except Exception as error:
        raise OutputError(f"the result cannot be saved as .pt2: {first_line(error)}") from error
    compare(model, inputs, loaded, "the .pt2 file")
    kernels = modules(model.graph)
    if kernels:
        notes.append(f"import {', '.join(kernels)} before torch.export.load")
    custom = custom_ops(model)
    if custom:
        notes.append(
            f"the file uses the operators {', '.join(custom)}: import the package that defines "
            "them before torch.export.load"
        )
    # Not `getbuffer`: Python 3.12 crashes where an error leaves its view and the buffer in a cycle.
    return buffer.getvalue(), notes


def _onnx(model: Model, inputs: Batch) -> tuple[bytes, list[str]]:
    if model.kernel_ops:
        raise OutputError(
            f"ONNX has no {', '.join(model.kernel_ops)}: write .pt2 or .esper, or unpack the "
            "weights first with --passes=raise-kernels --no-gate"
        )
    program, notes = export_program(model, inputs)
    converted = _to_onnx(program)
    data = converted.SerializeToString()
    names = [value.name for value in converted.graph.input]
    compare(model, inputs, _onnx_runner(data, names), "the .onnx file in onnxruntime")
    return data, notes


def _to_onnx(program: torch.export.ExportedProgram) -> Any:
    try:
        with quiet_converter(), quiet_torch():
            # As it was exported: with gradients, attention has other strides, and views fail.
            with torch.no_grad():
                respell(program)
                found = torch.onnx.export(
                    program, dynamo=True, verbose=False, custom_translation_table=translations()
                )
            if found is None:
                raise OutputError("the result cannot be converted to ONNX")
            model = found.model_proto
    except OutputError:
        raise
    except Exception as error:
        reason = first_line(_innermost(error))
        raise OutputError(f"the result cannot be converted to ONNX: {reason}") from error
    if model.ByteSize() >= 2**31:
        raise OutputError("the result is larger than 2 GB, the limit of one .onnx file: write .pt2")
    return model


def _innermost(error: BaseException) -> BaseException:
    """What went wrong first: PyTorch's converter wraps it in advice on how to report it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _onnx_runner(data: bytes, names: list[str]) -> Callable[..., Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no common base class for its errors
        raise OutputError(f"onnxruntime cannot load the result: {first_line(error)}") from error
    taken = [value.name for value in session.get_inputs()]

    def run(*args: Any, **kwargs: Any) -> Any:
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if torch.is_tensor(leaf)]
        if len(given) != len(names) or taken != names:
            raise OutputError(
                f"the .onnx file takes {len(taken)} tensors ({', '.join(taken)}) where the model "
                f"takes {len(given)}: an input that the model never reads was dropped"
            )
        feed = {n: t.detach().cpu().numpy() for n, t in zip(names, given, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, feed)]

    return run


def _aoti(model: Model, inputs: Batch) -> tuple[bytes, list[str]]:
    program, notes = export_program(model, inputs)
    with tempfile.TemporaryDirectory(prefix="esper-aoti-") as folder:
        package = os.path.join(folder, "model.pt2")
        try:
            with quiet_torch(), torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch._inductor.aoti_compile_and_package(program, package_path=package)
                loaded = torch._inductor.aoti_load_package(package)
        except Exception as error:
            raise OutputError(f"AOTInductor cannot compile it: {first_line(error)}") from error
        compare(model, inputs, loaded, "the compiled .aoti.pt2 file")
        data = Path(package).read_bytes()
    notes.append("the .aoti.pt2 file holds machine code for this kind of processor")
    notes += [f"import {name} before the file is loaded" for name in modules(model.graph)]
    return data, notes


_WRITERS: dict[str, Callable[[Model, Batch], tuple[Any, list[str]]]] = {
    ".pt2": _pt2,
    ".onnx": _onnx,
    ".aoti.pt2": _aoti,
}


def compare(model: Model, inputs: Batch, loaded: Callable[..., Any], what: str) -> None:
    """Run both on the inputs. Raises OutputError unless shapes, dtypes and values agree."""
    args, kwargs = inputs
    training = model.training
    try:
        with torch.no_grad():
            wanted = _tensors(model.eval()(*args, **kwargs))
            found = _tensors(loaded(*args, **kwargs))
    except OutputError:
        raise
    except Exception as error:
        raise OutputError(f"{what} does not run: {first_line(error)}") from error
    finally:
        model.train(training)
    if len(wanted) != len(found):
        raise OutputError(f"{what} returns {len(found)} tensors where the model has {len(wanted)}")
    for index, (mine, other) in enumerate(zip(wanted, found, strict=True)):
        if mine.shape != other.shape or mine.dtype != other.dtype:
            raise OutputError(
                f"output {index} of {what} is {_form(other)} where the model has {_form(mine)}"
            )
        distance = _distance(mine, other)
        if not distance <= _TOLERANCE.get(mine.dtype, _DEFAULT_TOLERANCE):
            raise OutputError(
                f"output {index} of {what} differs from the model by {distance:.2g} relative to "
                "its norm, which is too much for rounding: nothing was written"
            )


def custom_ops(model: Model) -> list[str]:
    """Names of operators that come neither with PyTorch nor with a library of kernels."""
    builtin = ("aten", "prims", "prim", "higher_order")
    found = {
        str(node.target)
        for node in model.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
        and node.target.namespace not in builtin
        and kernel(node.target) is None
    }
    return sorted(found)


def _distance(wanted: torch.Tensor, found: torch.Tensor) -> float:
    if not wanted.is_floating_point():
        return float((wanted != found.to(wanted.device)).double().mean()) if wanted.numel() else 0.0
    a, b = wanted.detach().double().cpu(), found.detach().double().cpu()
    same = (a == b) | (a.isnan() & b.isnan())  # infinities and undefined values at the same places
    difference = torch.where(same, torch.zeros_like(a), a - b)
    norm = float(torch.where(a.isfinite(), a, torch.zeros_like(a)).norm())
    return float(difference.norm()) / (norm or 1.0)


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _form(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _need(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise OutputError(f"writing .onnx needs {', '.join(missing)}: pip install 'esper-opt[cpu]'")
