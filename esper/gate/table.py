"""Side-by-side tables: several models and backends timed in the same rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import exp
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict
from torch import nn

from esper.errors import GateError
from esper.gate.environment import environment, parameter_bytes
from esper.gate.inputs import Inputs, normalise
from esper.gate.launcher import Launcher
from esper.gate.prepared import Workshop
from esper.gate.statistics import bootstrap
from esper.gate.verdict import Environment

if TYPE_CHECKING:
    from esper.gate.gate import Gate


class Row(BaseModel):
    """One row. `milliseconds` is the median weighted step; `ratio` the paired speed-up over the
    baseline row with one-sided bounds; 1 for the baseline itself.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    backend: str
    milliseconds: float
    p10: float
    p90: float
    ratio: float
    lower: float
    upper: float
    parameter_bytes: int
    artifact_bytes: int


class Table(BaseModel):
    """Rows in the order given; the first is the baseline."""

    model_config = ConfigDict(frozen=True)

    rows: list[Row]
    processes: int
    rounds: int
    confidence: float
    weights: list[float]
    shapes: list[list[list[int]]]
    environment: Environment

    def row(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise GateError(f"the table has no row {name!r}.")


def measure_rows(
    gate: Gate,
    models: Mapping[str, tuple[nn.Module, str]],
    inputs: Inputs,
    processes: int,
    launcher: Launcher,
    say: Callable[[str], None],
) -> Table:
    """See `Gate.measure`."""
    if not models or processes < 2:
        raise GateError("a table needs at least one row and two processes.")
    calls, weights = normalise(inputs)
    shop = Workshop(launcher, calls, weights, gate.context, gate.effort, gate.modules)
    with shop:
        ready = []
        for name, (model, backend_name) in models.items():
            say(f"preparing {name}")
            ready.append(shop.prepare(model, backend_name))
        sampler = shop.sampler(ready, gate.seed)
        blocks = []
        for number in range(processes):
            say(f"process {number + 1} of {processes}")
            blocks.append(sampler.draw())
    logs = np.concatenate(blocks)
    rows = []
    for index, (name, (model, backend_name)) in enumerate(models.items()):
        contrasts = [block[:, :1] - block[:, index : index + 1] for block in blocks]
        boot = bootstrap(contrasts, gate.rule, gate.rule.alpha, seed=1)
        bounds = np.quantile(boot.replicates, [gate.rule.alpha, gate.confidence])
        p10, p50, p90 = np.exp(np.quantile(logs[:, index], [0.1, 0.5, 0.9])) * 1e3
        rows.append(
            Row(
                name=name,
                backend=backend_name,
                milliseconds=float(p50),
                p10=float(p10),
                p90=float(p90),
                ratio=exp(boot.estimate),
                lower=float(np.exp(bounds[0])),
                upper=float(np.exp(bounds[1])),
                parameter_bytes=parameter_bytes(model),
                artifact_bytes=ready[index].bytes,
            )
        )
    return Table(
        rows=rows,
        processes=processes,
        rounds=int(logs.shape[0]),
        confidence=gate.confidence,
        weights=weights,
        shapes=shop.shapes,
        environment=environment(gate.context, [p.backend for p in ready]),
    )
