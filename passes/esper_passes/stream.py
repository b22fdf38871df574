"""Two models in step: the uncut one and the present one, batch by batch, layer by layer.

Every calibration batch waits, in both models, at the layer that is being fitted, with only the
values that later nodes need. Each node runs once per batch, so the cost grows linearly with
depth although every fit sees the effect of all fits before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from esper.passbase import Batch
from esper_passes.capture import Frame, Runner
from esper_passes.consumers import Goal, norm_scale
from esper_passes.least_squares import Moments

if TYPE_CHECKING:
    from esper.ir.model import Model

_CHUNK_BYTES = 32 << 20  # of float64 rows converted at once
_DEAD = 1e-6  # a batch norm that scales an output by less than this leaves nothing to solve for


@dataclass
class Moment:
    """Moments of the batches to fit on and of those held out, and how outputs weigh."""

    fit: Moments
    held: Moments
    weights: Tensor


class Stream:
    """Calibration batches on their way through both models.

    Args:
        baseline, model: the uncut and the present model.
        goals: what will be asked for, in graph order.
        batches: calibration data.
        held: how many batches, the last ones, are held out.
        max_rows: rows used per layer at most, drawn evenly from all batches.
        seed: of that draw.
    """

    def __init__(
        self,
        baseline: Model,
        model: Model,
        goals: Sequence[Goal],
        batches: Sequence[Batch],
        *,
        held: int,
        max_rows: int,
        seed: int,
    ) -> None:
        self._old = Runner(baseline, [goal.source for goal in goals])
        self._new = Runner(model)
        self._model = model
        self._pending = [goal.source for goal in goals]
        self._frames = [(self._old.start(b), self._new.start(b)) for b in batches]
        self._held = held
        self._max_rows = max_rows
        self._seed = seed
        self._masks = [attention_mask(self._new, frame) for _, frame in self._frames]
        self._last: tuple[Any, Moment] | None = None

    def moments(self, goal: Goal, progress: Callable[[int], None]) -> Moment:
        """Advance every batch to a layer and sum up its rows.

        Goals come in the order given before, each once. `progress` hears how many batches are done.
        """
        nodes = self._model.nodes
        layer = goal.layer
        tensor = self._model.tensor(layer.weight)
        assert tensor is not None
        weight = layer.matrix(tensor.detach()).to(torch.float64)
        bias = None if layer.bias is None else self._model.tensor(layer.bias)
        scale, offset = (t.to(tensor.device) for t in norm_scale(self._model, nodes, goal))
        operand: Any = nodes[layer.node].args[layer.operand]
        key = (
            operand.name,
            layer.form,
            tensor.shape[2:],
            layer.stride,
            layer.padding,
            layer.dilation,
        )
        shared = self._last[1] if self._last is not None and self._last[0] == key else None
        self._last = None
        kernel = tuple(tensor.shape[2:])
        self._pending.remove(goal.source)
        fit: Moments | None = None
        held: Moments | None = None
        for number, (old, new) in enumerate(self._frames):
            self._new.before(new, layer.node)
            value = self._old.through(old, goal.source)
            if goal.source not in self._pending:
                self._old.release(old, goal.source)
            dim = layer.channel
            wanted = layer.outputs(value.index_select(dim, goal.columns.to(value.device)))
            wanted = wanted.to(torch.float64)
            if goal.shortcut is not None:
                wanted = wanted - layer.outputs(self._new.value(new, nodes[goal.shortcut]))
                wanted = (wanted - offset) / scale
            read = self._new.value(new, operand)
            rows = self._rows(read, len(wanted), number)
            for x, t in _chunks(goal, read, wanted, rows, kernel):
                if fit is None or held is None:
                    shift = x.mean(0) if shared is None else shared.fit.shift
                    fit = Moments(shift, t.shape[1], None if shared is None else shared.fit)
                    held = Moments(shift, t.shape[1], None if shared is None else shared.held)
                given = x @ weight.T
                given = given if bias is None else given + bias.detach()
                part = fit if number < len(self._frames) - self._held else held
                part.add(x, t - given, t)
            progress(number + 1)
        assert fit is not None
        assert held is not None
        moment = Moment(fit, held, scale.square())
        self._last = (key, moment)
        return moment

    def _rows(self, x: Tensor, count: int, number: int) -> Tensor:
        """Rows of a batch that are used: none that are padding, no more than the limit."""
        rows, mask = torch.arange(count), self._masks[number]
        if mask is not None and mask.numel() == count and x.shape[:-1] in (mask.shape, (count,)):
            rows = mask.flatten().nonzero().flatten().cpu()
        limit = max(1, self._max_rows // len(self._frames))
        if len(rows) <= limit:
            return rows
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + number)
        drawn = torch.randperm(len(rows), generator=generator)[:limit]
        return rows[drawn.sort().values]


def _chunks(
    goal: Goal, x: Tensor, wanted: Tensor, rows: Tensor, kernel: tuple[int, ...]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Float64 (inputs, goals) of the chosen rows, a bounded number at a time."""
    layer = goal.layer
    x = x if layer.form == "convolution" else layer.rows(x, kernel)
    per_item = len(wanted) // x.shape[0]
    width = x.shape[1] * (torch.Size(kernel).numel() if kernel else 1)
    items = max(1, _CHUNK_BYTES // (8 * width * per_item))
    for start in range(0, x.shape[0], items):
        low, high = start * per_item, min(start + items, x.shape[0]) * per_item
        inside = rows[(rows >= low) & (rows < high)].to(x.device)
        if len(inside):
            part = layer.rows(x[start : start + items], kernel)[inside - low]
            yield part.to(torch.float64), wanted[inside]


def peak_bytes(baseline: Model, model: Model, goals: Sequence[Goal], batch: Batch) -> int:
    """Bytes that one batch holds, at most, while it waits at these layers in both models."""
    pending = [goal.source for goal in goals]
    old, new = Runner(baseline, pending), Runner(model)
    frames: tuple[Frame, Frame] = (old.start(batch), new.start(batch))
    peak = 0
    for goal in goals:
        new.before(frames[1], goal.layer.node)
        old.through(frames[0], goal.source)
        peak = max(peak, frames[0].nbytes() + frames[1].nbytes())
        pending.remove(goal.source)
        if goal.source not in pending:
            old.release(frames[0], goal.source)
    return peak


def attention_mask(runner: Runner, frame: Frame) -> Tensor | None:
    """Which tokens are real: the input `attention_mask`, int or bool, batch x tokens; or None."""
    for node in runner.model.graph.find_nodes(op="placeholder"):
        value = frame.values.get(node.name)
        if not str(node.target).endswith("attention_mask") or not isinstance(value, Tensor):
            continue
        if value.ndim == 2 and not value.dtype.is_floating_point:
            return value != 0
    return None


def dead_outputs(model: Model, nodes: dict[str, fx.Node], goal: Goal) -> bool:
    """Whether a batch norm after the layer silences some outputs, so that the sum says nothing."""
    scale, _ = norm_scale(model, nodes, goal)
    return bool((scale.abs() < _DEAD).any())
