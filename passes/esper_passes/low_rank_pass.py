"""The `low-rank` pass: layers become two thinner ones, best for calibration data if given."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from esper.passbase import Batch, Context, Pass, Proposals, Remark
from esper.propose import LowRankSwap
from esper_passes.affine import Affine, affine
from esper_passes.capture import Runner
from esper_passes.editing import weight_of
from esper_passes.low_rank import moment_digest, most, pairs

if TYPE_CHECKING:
    from esper.ir.model import Model


@dataclass(frozen=True)
class LowRank(Pass):
    """Split layers into two of low rank, best for what they read on calibration data.

    Linear layers and convolutions in one group. Without data the weights themselves are
    approximated. Layers that are halves of such a pair are left alone.
    """

    name: ClassVar[str] = "low-rank"

    ratio: float | None = field(
        default=None, metadata={"doc": "share of each layer's weights that goes; 0.5 by default"}
    )
    energy: float | None = field(
        default=None, metadata={"doc": "instead: share of the squared singular values that stays"}
    )
    rank: int | None = field(default=None, metadata={"doc": "instead: the rank"})
    only: str = field(default="*", metadata={"doc": "glob over names of weights"})
    align: int = field(
        default=8, metadata={"doc": "ranks that follow from a ratio are multiples of this"}
    )
    data: Literal["auto", "never"] = field(
        default="auto", metadata={"doc": "auto: use calibration data where it is given"}
    )
    moment_mib: int = field(
        default=512, metadata={"doc": "memory for one layer's second moment, in MiB"}
    )

    def __post_init__(self) -> None:
        given = [n for n in ("ratio", "energy", "rank") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"low-rank takes one of ratio, energy and rank, not {given}")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ValueError(f"ratio must lie between 0 and 1, not {self.ratio}")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"energy must lie between 0 and 1, not {self.energy}")
        for name in ("rank", "align", "moment_mib"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name.replace('_', '-')} must be at least 1, not {value}")

    def propose(self, model: Model, context: Context) -> Proposals:
        """One proposal for each layer, in graph order; moments are of the model as it was."""
        halves = pairs(model)
        known = {*halves, *halves.values()}
        layers = [layer for layer in self._layers(model) if layer.node not in known]
        if not layers:
            yield Remark(
                "missed" if not known else "analysis",
                "already-low-rank" if known else "no-layer",
                f"no layer whose weight matches {self.only!r} is left to split",
                remedy="see `esper inspect` for the names of weights",
            )
            return
        if self.data == "never" or not context.data:
            for layer in layers:
                yield self._proposal(model, layer, "")
            return
        batches = context.batches(self.name)
        for done, (layer, moment) in enumerate(self._moments(model, layers, batches)):
            context.progress(done, len(layers), self.name)
            if moment is None:
                yield self._too_large(model, layer)
                continue
            # It stays at hand: whoever runs the pass may apply the proposal again, and clears it.
            digest, payload = moment_digest(moment)
            model.payloads[digest] = dict(payload)
            yield self._proposal(model, layer, digest)

    def _layers(self, model: Model) -> Iterator[Affine]:
        for node in model.graph.nodes:
            layer = affine(model, node)
            if isinstance(layer, Affine) and fnmatch.fnmatchcase(layer.weight, self.only):
                yield layer

    def _proposal(self, model: Model, layer: Affine, moment: str) -> LowRankSwap:
        outputs, inputs = layer.matrix(weight_of(model, layer)).shape
        rank = self.rank
        if self.energy is None and rank is None:
            share = 1 - (0.5 if self.ratio is None else self.ratio)
            wanted = max(1, int(share * outputs * inputs / (outputs + inputs)))
            rank = min(-(-wanted // self.align) * self.align, max(wanted, most(outputs, inputs)))
        return LowRankSwap(
            node=layer.node,
            rank=rank,
            energy=self.energy,
            moment=moment,
            proposer=self.name,
            evidence={"outputs": outputs, "inputs": inputs, "weight": layer.weight},
        )

    def _moments(
        self, model: Model, layers: Sequence[Affine], batches: Sequence[Batch]
    ) -> Iterator[tuple[Affine, Tensor | None]]:
        """Mean outer product of the rows that each layer reads, batch after batch in step."""
        frozen = copy.deepcopy(model)
        runner = Runner(frozen)
        frames = [runner.start(batch) for batch in batches]
        nodes = frozen.nodes
        last: tuple[Any, Tensor] | None = None
        for layer in layers:
            weight = weight_of(frozen, layer)
            inputs = layer.matrix(weight).shape[1]
            if 8 * inputs * inputs > self.moment_mib << 20:
                yield layer, None
                continue
            operand: Any = nodes[layer.node].args[layer.operand]
            key = (
                operand.name,
                layer.form,
                *weight.shape[2:],
                layer.stride,
                layer.padding,
                layer.dilation,
            )
            total, rows = weight.new_zeros(inputs, inputs, dtype=torch.float64), 0
            for frame in frames:
                runner.before(frame, layer.node)
                if last is not None and last[0] == key:
                    continue
                read = layer.rows(runner.value(frame, operand), tuple(weight.shape[2:])).double()
                total.addmm_(read.T, read)
                rows += len(read)
            moment = last[1] if last is not None and last[0] == key else total / max(rows, 1)
            last = (key, moment)
            yield layer, moment

    def _too_large(self, model: Model, layer: Affine) -> Remark:
        inputs = layer.matrix(weight_of(model, layer)).shape[1]
        need = -(-8 * inputs * inputs >> 20)
        return Remark(
            "missed",
            "memory-limit",
            f"the second moment of {inputs} inputs of %{layer.node} takes {need} MiB, more than "
            f"the {self.moment_mib} MiB allowed",
            layer.node,
            f"allow it with moment-mib={need}, or split without data: data=never",
            {"inputs": inputs},
        )
