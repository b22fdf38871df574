"""Models made ready for measuring, and the choice of a backend by measuring."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from torch import nn

from esper.errors import BackendError
from esper.gate.backends import NAMES, backend, lacking, usable
from esper.gate.backends.base import Call, Context, tensor_leaves
from esper.gate.calls_file import load_calls, save_calls
from esper.gate.environment import directory_bytes, last_level_cache
from esper.gate.fidelity import check_fidelity
from esper.gate.launcher import Launcher
from esper.gate.sampling import Effort, Sampler, settles
from esper.gate.transport import ARTIFACT, file_digest, on_device, save_model
from esper.gate.worker import Contender

PROBE_PROCESSES = 2
"""Fresh processes used to choose a backend. Their samples are not used for the verdict."""

KEPT = 8
"""Prepared models that a launcher keeps."""


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
    """Prepares the models of one comparison.

    What was prepared is kept for as long as the launcher lives, by content, up to `KEPT` models: in
    a search the baseline of one comparison is the accepted candidate of an earlier one, and some
    backends compile for a minute.
    """

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
        self._store = self._launcher.directory / "prepared"
        self._store.mkdir(exist_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.cleanup()
        by_age = sorted(self._store.iterdir(), key=lambda d: d.stat().st_mtime, reverse=True)
        for old in by_age[KEPT:]:
            shutil.rmtree(old)

    @property
    def shapes(self) -> list[list[list[int]]]:
        """Shapes of the tensors of each call."""
        return [[list(t.shape) for t in tensor_leaves(call)] for call in self._calls]

    def prepare(self, model: nn.Module, name: str) -> Prepared:
        """Convert `model` for backend `name`. Raises BackendError when that cannot be."""
        if (reason := usable(name, self._context) or lacking(name, model)) is not None:
            raise BackendError(reason)
        self._count += 1
        artifact = Path(self._files.name) / f"{self._count}.esper"
        save_model(model, self._calls, artifact)
        key = [name, file_digest(artifact), repr(self._context)]
        if name != "eager":
            key.append(file_digest(self._inputs))
        directory = self._store / hashlib.blake2b("/".join(key).encode()).hexdigest()[:32]
        if directory.exists():
            artifact.unlink()
            os.utime(directory)
        else:
            # Prepared aside and moved, so that a directory that exists is complete.
            aside = Path(self._files.name) / f"{self._count}-{name}"
            aside.mkdir()
            if name == "eager":
                artifact.rename(aside / ARTIFACT)
            else:
                artifact.unlink()
                self._convert(model, name, aside)
            aside.rename(directory)
        return Prepared(name, directory, directory_bytes(directory))

    def _convert(self, model: nn.Module, name: str, directory: Path) -> None:
        found = backend(name)
        found.prepare(model, self._calls, directory, self._context)
        if self._context.objective == "inference":
            device = self._context.device
            calls = load_calls(self._inputs, device)
            runner = found.load(directory, calls, self._context)
            check_fidelity(name, on_device(model, device), runner, calls)

    def sampler(self, prepared: Sequence[Prepared], seed: int) -> Sampler:
        settle = self._effort.settle
        if settle is None:
            smallest = min(p.bytes for p in prepared)
            settle = settles([p.backend for p in prepared], smallest, last_level_cache())
        return Sampler(
            launcher=self._launcher,
            contenders=[p.contender for p in prepared],
            inputs=self._inputs,
            context=self._context,
            effort=self._effort,
            weights=self._weights,
            seed=seed,
            settle=settle,
            modules=self._modules,
        )

    def fastest(
        self,
        model: nn.Module,
        label: str,
        tried: dict[str, str],
        seed: int,
        say: Callable[[str], None],
        seconds: float,
    ) -> Prepared:
        """The model on its fastest usable backend.

        `tried` receives, for every backend, its median time or why it was left out; `seconds` is
        the time that measuring aims at.
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
        deadline = time.monotonic() + seconds / PROBE_PROCESSES
        blocks = [sampler.draw(deadline=deadline) for _ in range(PROBE_PROCESSES)]
        medians = np.median(np.concatenate(blocks), axis=0)
        for prepared, median in zip(ready, medians, strict=True):
            tried[f"{label}/{prepared.backend}"] = f"{np.exp(median) * 1e3:.4g} ms"
        return ready[int(np.argmin(medians))]
