"""The `reconstruct` pass: least-squares refit of the layers that read a cut axis.

After a cut, each layer that read the removed units is solved for again, in closed form, so that
on calibration data it computes what it computed before. Layers are refit in graph order and each
fit sees the inputs that all fits before it lead to (the asymmetric reconstruction of He, Zhang and
Sun, Channel Pruning for Accelerating Very Deep Neural Networks, 2017). A fit is proposed only
where it lowers the error on calibration batches that it was not solved on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from esper.passbase import Batch, Context, Pass, Proposals, Remark
from esper.propose import Refit
from esper_passes import least_squares
from esper_passes.affine import Affine
from esper_passes.consumers import Found, Goal, Scope, find
from esper_passes.least_squares import Moments, Solution, solve
from esper_passes.refit import digest
from esper_passes.stream import Moment, Stream, dead_outputs, peak_bytes

if TYPE_CHECKING:
    from esper.ir.model import Model

_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_ROUNDS = 8


@dataclass(frozen=True)
class _Fit:
    """A candidate and the relative errors on held-out data."""

    payload: dict[str, torch.Tensor]
    ridge: float
    after: float
    change: torch.Tensor


@dataclass(frozen=True)
class Reconstruct(Pass):
    """Refit by least squares the layers that read what was cut, on calibration data.

    The error of a layer is the norm of what it misses of its goal, over the norm of the goal
    about its mean. Padding (an `attention_mask` input) does not count.
    """

    name: ClassVar[str] = "reconstruct"
    aim: ClassVar[Literal["speed", "repair", "cleanup"]] = "repair"

    ridge: float | None = field(
        default=None,
        metadata={
            "doc": "pull towards present weights, relative to the mean squared input; "
            "none: the best of a few on held-out data"
        },
    )
    scope: Scope = field(
        default="cut",
        metadata={"doc": "cut: layers that read a cut axis; all: every layer from there on"},
    )
    goal: Literal["residual", "layer"] = field(
        default="residual",
        metadata={
            "doc": "residual: a layer added to a shortcut also makes up for the error of "
            "the shortcut; layer: its own former output"
        },
    )
    batches: int = field(default=0, metadata={"doc": "calibration batches used at most; 0: all"})
    held_out: float = field(
        default=0.25, metadata={"doc": "share of the batches, the last ones, that only judge"}
    )
    min_gain: float = field(
        default=0.01, metadata={"doc": "drop of the held-out error worth a refit (relative)"}
    )
    bias: Literal["auto", "keep"] = field(
        default="auto", metadata={"doc": "auto: a layer without a bias gets one where it pays"}
    )
    max_rows: int = field(
        default=131072, metadata={"doc": "rows (tokens, pixels) used per layer at most"}
    )
    gram_mib: int = field(
        default=2048, metadata={"doc": "memory for one layer's least squares, in MiB"}
    )
    cache_mib: int = field(
        default=4096, metadata={"doc": "memory for activations of waiting batches, in MiB"}
    )

    def __post_init__(self) -> None:
        if self.ridge is not None and not self.ridge >= 0:
            raise ValueError(f"ridge must be at least 0, not {self.ridge}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held-out must lie between 0 and 1, not {self.held_out}")
        if not 0 <= self.min_gain < 1:
            raise ValueError(f"min-gain must be at least 0 and less than 1, not {self.min_gain}")
        for name in ("max_rows", "gram_mib", "cache_mib"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name.replace('_', '-')} must be at least 1")
        if self.batches < 0:
            raise ValueError(f"batches must be at least 0, not {self.batches}")

    def propose(self, model: Model, context: Context) -> Proposals:
        baseline = context.baseline
        if baseline is None:
            yield Remark(
                "missed",
                "no-baseline",
                "there is no model from before the cut to compare with",
                remedy="run reconstruct in one pipeline with the pass that cuts",
            )
            return
        found = find(baseline, model, self.scope, self.goal == "residual")
        for name, unfit in found.unfit:
            yield Remark("missed", unfit.code, unfit.reason, name, unfit.remedy)
        goals, remarks = self._affordable(model, found)
        for beyond in remarks:  # noqa: UP028  (drivers may send something back)
            yield beyond
        if not goals:
            if not (found.unfit or remarks):
                yield _nothing(found)
            return
        batches, remark = self._batches(baseline, model, goals, context)
        if remark is not None:
            yield remark
        if not batches:
            return
        stream = Stream(
            baseline,
            model,
            goals,
            batches,
            held=min(len(batches) - 1, max(1, round(len(batches) * self.held_out))),
            max_rows=self.max_rows,
            seed=context.seed,
        )
        total = len(goals) * len(batches)
        for number, goal in enumerate(goals):
            done = number * len(batches)
            moment = stream.moments(
                goal,
                lambda n, done=done: context.progress(done + n, total, self.name),  # type: ignore[misc]
            )
            outcome = self._decide(model, goal, moment)
            if isinstance(outcome, Remark):
                yield outcome
                continue
            proposal, payload = outcome
            model.payloads[proposal.digest] = payload
            try:
                yield proposal
            finally:
                model.payloads.pop(proposal.digest, None)

    def _affordable(self, model: Model, found: Found) -> tuple[list[Goal], list[Remark]]:
        goals, remarks = [], []
        nodes = model.nodes
        for goal in found.goals:
            weight = model.tensor(goal.layer.weight)
            assert weight is not None
            outputs, inputs = goal.layer.matrix(weight).shape
            need = least_squares.workspace(inputs, outputs)
            if need > self.gram_mib << 20:
                remarks.append(
                    Remark(
                        "missed",
                        "memory-limit",
                        f"least squares for %{goal.layer.node} with {inputs} inputs needs "
                        f"{-(-need >> 20)} MiB, more than the {self.gram_mib} MiB allowed",
                        goal.layer.node,
                        f"allow it with gram-mib={-(-need >> 20)}",
                        {"bytes": need, "inputs": inputs},
                    )
                )
            elif goal.norms and dead_outputs(model, nodes, goal):
                goals.append(Goal(goal.layer, goal.layer.node, goal.columns))
            else:
                goals.append(goal)
        return goals, remarks

    def _batches(
        self, baseline: Model, model: Model, goals: Sequence[Goal], context: Context
    ) -> tuple[list[Batch], Remark | None]:
        every = list(context.batches(self.name))
        wanted = min(self.batches or len(every), len(every))
        if wanted < 2:
            return [], Remark(
                "missed",
                "too-little-data",
                "at least two calibration batches are needed, one of them to judge",
                remedy="give more data",
            )
        peak = peak_bytes(baseline, model, goals, every[0])
        room = (self.cache_mib << 20) // max(peak, 1)
        if room < 2:
            return [], Remark(
                "missed",
                "memory-limit",
                f"one batch holds {-(-peak >> 20)} MiB of activations, of which two do not fit "
                f"into {self.cache_mib} MiB",
                remedy=f"give smaller batches, or cache-mib={-(-peak * wanted >> 20)}",
                figures={"bytes": peak},
            )
        chosen = _spread(every, min(wanted, room))
        if room >= wanted:
            return chosen, None
        return chosen, Remark(
            "missed",
            "fewer-batches",
            f"{room} of {wanted} calibration batches are used: their activations take "
            f"{-(-peak >> 20)} MiB each, {self.cache_mib} MiB are allowed",
            remedy=f"allow all with cache-mib={-(-peak * wanted >> 20)}",
            figures={"bytes": peak, "batches": room},
        )

    def _decide(
        self, model: Model, goal: Goal, moment: Moment
    ) -> Remark | tuple[Refit, dict[str, torch.Tensor]]:
        node = goal.layer.node
        if not (moment.fit.finite() and moment.held.finite()):
            return Remark("missed", "not-finite", f"values at %{node} are not finite", node)
        if not (moment.fit.rows and moment.held.rows):
            return Remark("missed", "too-little-data", f"no rows reach %{node}", node)
        before = _relative(moment.held, None, moment.weights)
        weight = model.tensor(goal.layer.weight)
        assert weight is not None
        figures = {
            "error_before": before,
            "rows": moment.fit.rows,
            "rows_held_out": moment.held.rows,
        }
        if before <= 64 * torch.finfo(weight.dtype).eps:
            return Remark(
                "missed", "already-exact", f"%{node} computes what it did", node, figures=figures
            )
        best = self._best(model, goal.layer, moment)
        figures["error_after"] = best.after
        if not best.after < before * (1 - self.min_gain):
            return Remark(
                "missed",
                "no-gain",
                f"the held-out error of %{node} would go from {before:.4g} to {best.after:.4g}",
                node,
                "more calibration data may help",
                figures,
            )
        proposal = Refit(
            node=node,
            digest=digest(best.payload),
            proposer=self.name,
            evidence={**figures, "ridge": best.ridge},
        )
        return proposal, best.payload

    def _best(self, model: Model, layer: Affine, moment: Moment) -> _Fit:
        ridges = _RIDGES if self.ridge is None else (self.ridge,)
        has_bias = layer.bias is not None
        best = self._converged(model, layer, moment, ridges, has_bias)
        if has_bias or self.bias == "keep" or layer.new_bias is None:
            return best
        grown = self._converged(model, layer, moment, ridges, True)
        return grown if grown.after < best.after * (1 - self.min_gain) else best

    def _converged(
        self, model: Model, layer: Affine, moment: Moment, ridges: Sequence[float], bias: bool
    ) -> _Fit:
        """Fit, then fit again from there until it pays no more: a second run finds no gain."""
        best: _Fit | None = None
        for _ in range(_ROUNDS):
            start = None if best is None else best.change
            fits = [_fit(model, layer, moment, ridge, bias, start) for ridge in ridges]
            fit = min(fits, key=lambda fit: fit.after)
            if best is not None and not fit.after < best.after * (1 - self.min_gain):
                break
            best = fit
        assert best is not None
        return best


def _fit(
    model: Model,
    layer: Affine,
    moment: Moment,
    ridge: float,
    bias: bool,
    start: torch.Tensor | None,
) -> _Fit:
    solution = solve(moment.fit, ridge, bias=bias, start=start)
    weight = model.tensor(layer.weight)
    assert weight is not None
    old = layer.matrix(weight.detach()).to(torch.float64)
    payload = {"weight": layer.tensor(old + solution.weight, weight)}
    change = layer.matrix(payload["weight"]).to(torch.float64) - old  # as rounded to its dtype
    offset = solution.bias
    if bias:
        present = None if layer.bias is None else model.tensor(layer.bias)
        start = torch.zeros_like(offset) if present is None else present.detach().to(torch.float64)
        payload["bias"] = (start + offset).to(weight.dtype if present is None else present.dtype)
        offset = payload["bias"].to(torch.float64) - start
    after = _relative(moment.held, Solution(change, offset), moment.weights)
    return _Fit(payload, ridge, after, solution.weight)


def _relative(moments: Moments, solution: Solution | None, weights: torch.Tensor) -> float:
    error = float((moments.error(solution) * weights).sum())
    energy = float((moments.energy() * weights).sum())
    if energy == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return float((error / energy) ** 0.5)


def _spread(batches: Sequence[Batch], count: int) -> list[Batch]:
    """`count` batches, evenly spaced."""
    return [batches[i * len(batches) // count] for i in range(count)]


def _nothing(found: Found) -> Remark:
    if not found.axes:
        return Remark("analysis", "nothing-cut", "no axis has lost units since the start")
    return Remark(
        "missed",
        "no-consumer",
        f"{found.axes} cut axes are read by no layer with a weight of its own",
        figures={"axes": found.axes},
    )
