"""What a backend is: how a model is prepared once and loaded in every fresh process."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import nn
from torch.utils import _pytree as pytree

from esper.errors import BackendError

Objective = Literal["inference", "training"]
Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one model call."""
Runner: TypeAlias = Callable[..., Any]
"""Called as `runner(*args, **kwargs)`; returns the model's outputs."""


@dataclass(frozen=True)
class Context:
    """What holds for a whole comparison: `threads` intra-op threads, device `cpu` or `cuda`."""

    objective: Objective = "inference"
    threads: int = 1
    device: str = "cpu"


class Backend(Protocol):
    """One way to execute a model. Instances hold no state."""

    @property
    def name(self) -> str:
        """The name used by `--backend`."""

    @property
    def objectives(self) -> frozenset[str]:
        """The objectives it can run."""

    @property
    def devices(self) -> frozenset[str]:
        """The devices it can run on."""

    @property
    def custom_ops(self) -> bool:
        """Whether it runs ops that other packages define, such as kernels."""

    def available(self) -> str | None:
        """None when usable, else one sentence that says what is missing and how to install it."""

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that determine its speed."""

    def prepare(
        self, model: nn.Module, calls: Sequence[Call], directory: Path, context: Context
    ) -> None:
        """Write what `load` needs into `directory`; the slow part, done once.

        Raises BackendError when the model cannot be converted.
        """

    def load(self, directory: Path, calls: Sequence[Call], context: Context) -> Runner:
        """A callable with the model's own signature, in a fresh process.

        For the training objective the runner is an `nn.Module` in training mode.
        """


def tensor_leaves(value: Any) -> list[torch.Tensor]:
    """The tensors inside nested containers, in order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def varying_dimensions(calls: Sequence[Call]) -> list[set[int]]:
    """For each tensor leaf of a call, the dimensions whose size differs between the calls."""
    shapes = [[tuple(t.shape) for t in tensor_leaves(call)] for call in calls]
    return [
        {d for d in range(len(same[0])) if len({s[d] for s in same}) > 1}
        for same in zip(*shapes, strict=True)
    ]


def dynamic_shapes(calls: Sequence[Call]) -> tuple[Any, Any]:
    """`dynamic_shapes` for torch.export as (args, kwargs): a dimension that varies among the given
    calls is dynamic, every other one is static, so a single shape is compiled for that shape.
    """
    varying = iter(varying_dimensions(calls))

    def spec(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return None
        dynamic = next(varying)
        return dict.fromkeys(sorted(dynamic), torch.export.Dim.AUTO)

    args, kwargs = pytree.tree_map(spec, calls[0])
    return args, kwargs


def dynamic_arguments(model: nn.Module, calls: Sequence[Call]) -> dict[str, list[int]]:
    """Names of arguments that are tensors and vary in dimensions beyond the batch, with those."""
    args, kwargs = calls[0]
    varying = iter(varying_dimensions(calls))
    named = [
        *zip(_parameter_names(model, len(args)), args, strict=True),
        *kwargs.items(),
    ]
    found: dict[str, list[int]] = {}
    for name, value in named:
        dims = set().union(*(next(varying) for _ in tensor_leaves(value)))
        if isinstance(value, torch.Tensor) and dims - {0}:
            found[name] = sorted(dims - {0})
    return found


def export(model: nn.Module, calls: Sequence[Call]) -> torch.export.ExportedProgram:
    """The model as an exported program for exactly the given shapes, in evaluation mode."""
    args, kwargs = calls[-1] if len(calls) > 1 else calls[0]
    args_spec, kwargs_spec = dynamic_shapes(calls)
    # torch.export wants one mapping over the parameters of `forward` once keywords are involved.
    names = _parameter_names(model, len(args))
    spec = {**dict(zip(names, args_spec, strict=True)), **kwargs_spec}
    return torch.export.export(model, args, kwargs, dynamic_shapes=spec, strict=False)


def _parameter_names(model: nn.Module, count: int) -> list[str]:
    parameters = list(inspect.signature(model.forward).parameters.values())
    positional = [
        p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(positional) < count:
        raise BackendError(
            f"{type(model).__name__} takes {len(positional)} named positional arguments "
            f"but the inputs give {count}."
        )
    return positional[:count]
