"""Models made ready for measuring, and the choice of a backend by measuring."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from torch import nn

from esper.errors import BackendError
from esper.gate.backends import NAMES, backend, usable
from esper.gate.backends.base import Call, Context, tensor_leaves
from esper.gate.calls_file import load_calls, save_calls
from esper.gate.environment import directory_bytes
from esper.gate.fidelity import check_fidelity
from esper.gate.launcher import Launcher
from esper.gate.sampling import Effort, Sampler
from esper.gate.transport import on_device
from esper.gate.worker import Contender

PROBE_PROCESSES = 2
"""Fresh processes used to choose a backend. Their samples are not used for the verdict."""


@dataclass(frozen=True)
class Prepared:
    """A model ready to be loaded by a backend; `bytes` is the size of its files."""

    backend: str
    directory: Path
    bytes: int

    @property
    def contender(self) -> Contender:
        return Contender(self.backend, str(self.directory))


class Workshop:
    """Holds the files of one comparison; leaving it removes them."""

    def __init__(
        self,
        launcher: Launcher,
        calls: Sequence[Call],
        weights: Sequence[float],
        context: Context,
        effort: Effort,
        modules: tuple[str, ...],
    ) -> None:
        self._launcher, self._calls, self._weights = launcher, calls, weights
        self._context, self._effort, self._modules = context, effort, modules
        self._count = 0

    def __enter__(self) -> Self:
        self._files = tempfile.TemporaryDirectory(dir=self._launcher.directory, prefix="files-")
        self._inputs = Path(self._files.name) / "inputs.safetensors"
        save_calls(self._calls, self._inputs)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.cleanup()

    @property
    def shapes(self) -> list[list[list[int]]]:
        """Shapes of the tensors of each call."""
        return [[list(t.shape) for t in tensor_leaves(call)] for call in self._calls]

    def prepare(self, model: nn.Module, name: str) -> Prepared:
        """Convert `model` for backend `name`. Raises BackendError when that cannot be."""
        if (reason := usable(name, self._context)) is not None:
            raise BackendError(reason)
        self._count += 1
        directory = Path(self._files.name) / f"{self._count}-{name}"
        directory.mkdir()
        found = backend(name)
        found.prepare(model, self._calls, directory, self._context)
        if name != "eager" and self._context.objective == "inference":
            device = self._context.device
            calls = load_calls(self._inputs, device)
            runner = found.load(directory, calls, self._context)
            check_fidelity(name, on_device(model, device), runner, calls)
        return Prepared(name, directory, directory_bytes(directory))

    def sampler(self, prepared: Sequence[Prepared], seed: int) -> Sampler:
        return Sampler(
            launcher=self._launcher,
            contenders=[p.contender for p in prepared],
            inputs=self._inputs,
            context=self._context,
            effort=self._effort,
            weights=self._weights,
            seed=seed,
            modules=self._modules,
        )

    def fastest(
        self,
        model: nn.Module,
        label: str,
        tried: dict[str, str],
        seed: int,
        say: Callable[[str], None],
    ) -> Prepared:
        """The model on its fastest usable backend.

        `tried` receives, for every backend, its median time or why it was left out.
        """
        ready: list[Prepared] = []
        for name in NAMES:
            try:
                say(f"{label}: preparing {name}")
                ready.append(self.prepare(model, name))
            except BackendError as error:
                tried[f"{label}/{name}"] = str(error)
        if not ready:
            raise BackendError(f"no backend can run the {label}: {'; '.join(tried.values())}")
        sampler = self.sampler(ready, seed + 1)
        say(f"{label}: measuring {', '.join(p.backend for p in ready)}")
        blocks = [sampler.draw() for _ in range(PROBE_PROCESSES)]
        medians = np.median(np.concatenate(blocks), axis=0)
        for prepared, median in zip(ready, medians, strict=True):
            tried[f"{label}/{prepared.backend}"] = f"{np.exp(median) * 1e3:.4g} ms"
        return ready[int(np.argmin(medians))]
