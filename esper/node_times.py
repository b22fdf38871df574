"""Where the time of a step goes, node by node, as the graph is interpreted eagerly.

A profile to look at, not a measurement to decide by: the interpreter adds some microseconds to
every node, and compilers fuse what is timed apart here. `esper.gate` decides.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from esper.ir.binder import binder

if TYPE_CHECKING:
    from esper.ir.model import Model


class _Timed(fx.Interpreter):
    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.seconds: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        started = time.perf_counter()
        result = super().run_node(n)
        if n.op == "call_function":
            self.seconds[n.name] = time.perf_counter() - started
        return result


def node_seconds(
    model: Model, args: tuple[Any, ...], kwargs: Mapping[str, Any], repeats: int = 5
) -> dict[str, float]:
    """Median seconds of every computing node, in graph order, in the model's present mode.

    Args:
        model: on the CPU; other devices compute asynchronously and would be timed wrongly.
        args, kwargs: one batch.
        repeats: timed runs, after one that is not.

    Raises:
        ValueError: for a model on another device.
    """
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        raise ValueError("node times are for models on the CPU")
    flat = binder(model)(*args, **kwargs)
    runs: list[dict[str, float]] = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            timed = _Timed(model)
            timed.run(*flat, enable_io_processing=False)
            runs.append(timed.seconds)
    return {name: statistics.median(run[name] for run in runs[1:]) for name in runs[0]}
