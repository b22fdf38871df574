"""TorchInductor: compiled ahead of time for inference, by `torch.compile` for training."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils import _pytree as pytree

from esper.errors import BackendError
from esper.gate.backends.base import Call, Context, Runner, export
from esper.ir.kernels import library

_LIBRARIES = "libraries.json"  # names of the kernel libraries that a package calls


class Inductor:
    """AOTInductor package (`.pt2` holding compiled code), compiled once and loaded everywhere.

    Source: PyTorch documentation, "AOTInductor: Ahead-Of-Time Compilation for torch.export-ed
    models". A training step cannot be packaged so, and is compiled in each process from the
    shared on-disk cache of Inductor.
    """

    name = "inductor"
    objectives = frozenset({"inference", "training"})
    devices = frozenset({"cpu", "cuda"})
    custom_ops = True

    def available(self) -> str | None:
        from torch._inductor import config, exc

        if torch.cuda.is_available():
            return None
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except exc.InvalidCxxCompiler:
            wanted = config.cpp.cxx[1]
            return (
                f"inductor needs a C++ compiler ({wanted}) and found none; install one, "
                "for example with `apt-get install g++`."
            )
        return None

    def versions(self) -> dict[str, str]:
        return {"torch": str(torch.__version__)}

    def prepare(
        self, model: nn.Module, calls: Sequence[Call], directory: Path, context: Context
    ) -> None:
        if context.objective == "training":
            from esper.gate.transport import ARTIFACT, save_model

            save_model(model, calls, directory / ARTIFACT)
            return
        # A package calls kernels by name, and a fresh process must define them first.
        used: tuple[str, ...] = getattr(model, "kernel_ops", ())
        libraries = sorted({name.partition("::")[0] for name in used})
        (directory / _LIBRARIES).write_text(json.dumps(libraries))
        model = copy.deepcopy(model).to(context.device).eval()
        # Inductor tunes the number of parallel chunks to the threads it sees while compiling.
        with _threads(context.threads), _quiet(), torch.no_grad():
            try:
                program = _plain_outputs(export(model, calls))
                torch._inductor.aoti_compile_and_package(
                    program, package_path=str(directory / "model.pt2")
                )
            except BackendError:
                raise
            except Exception as error:  # the compiler may raise anything
                raise BackendError(
                    f"inductor cannot compile the model: {type(error).__name__}: "
                    f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
                ) from error

    def load(self, directory: Path, calls: Sequence[Call], context: Context) -> Runner:
        if context.objective == "training":
            from esper.gate.transport import ARTIFACT, load_model

            model = load_model(directory / ARTIFACT).to(context.device).train()
            return cast(nn.Module, torch.compile(model, dynamic=len(calls) > 1))
        for name in json.loads((directory / _LIBRARIES).read_text()):
            library(name)
        package: Any = torch._inductor.aoti_load_package(str(directory / "model.pt2"))
        return cast(Runner, package)


def _plain_outputs(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with its outputs as a tuple of leaves, changed in place.

    A package names the class of its output (a `ModelOutput`, say), and a process that has not
    imported the library of that class cannot load it.
    """
    signature: Any = program.module_call_graph[0].signature
    signature.out_spec = pytree.tree_structure(tuple(range(signature.out_spec.num_leaves)))
    return program


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Inductor warns about its own parts and about tuning that is not asked for."""
    logger = logging.getLogger("torch._inductor")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
