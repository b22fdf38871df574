"""Stage 2: modules leave a model while it trains, on evidence, and the loss hardly notices."""

from __future__ import annotations

from statistics import median
from typing import Any

from esper.demo.figures import arm, curve, marks
from esper.demo.page import Page, Table
from esper.demo.paired import Paired
from esper.demo.runs import Run
from esper.demo.stages import Setting
from esper.demo.training import train
from esper.ir.ecology import Terms
from esper.recorder.decisions import Mask
from esper.recorder.log import Log

_SEEDS = {True: 2, False: 5}
_STEPS = {True: 240, False: 600}
_DEPTH = {True: 4, False: 6}
_NEAR = 10  # ticks on either side of a removal that are compared
_MARGIN = 0.015  # of the loss: what a probe calls harm
_LASTING = 0.05  # a relative rise of the loss that counts as a lasting spike
_LASTS = (
    f"a spike lasts if {_NEAR} steps after a removal the median loss of {_NEAR} steps is still "
    f"{_LASTING:.0%} above what it was before"
)
_HOLDS = 0.03  # accuracy that may be lost against the control


def run(setting: Setting) -> Page:
    """A transformer that is deeper than it need be; Emrakul probes and removes while it trains."""
    seeds = setting.seeds or _SEEDS[setting.short]
    steps = setting.steps or _STEPS[setting.short]
    options: dict[str, Any] = {
        "host": "text",
        "steps": steps,
        "model": {"depth": _DEPTH[setting.short], "width": 32},
    }
    decaying = {"emrakul": {"every": max(2, steps // 40), "warm": 16, "spike": 0.1}}
    terms = {"lock": float(steps // 4), "quarantine": float(steps), "evidence_batches": 4.0}
    cut: list[Run] = []
    whole: list[Run] = []
    logs = []
    for seed in range(seeds):
        setting.progress(seed, seeds, f"seed {seed}")
        logs.append(setting.log(f"stage2-seed{seed}"))
        cut.append(
            train(logs[-1], seed=seed, agents=decaying, terms=terms, margin=_MARGIN, **options)
        )
        whole.append(train(None, seed=seed, **options))
    removals = [_spikes(run) for run in cut]
    lasting = sum(spike > _LASTING for spikes in removals for spike in spikes)
    count = sum(map(len, removals))
    blocked = [_blocked(Log(path)) for path in logs]
    rents = [_rent(c, w) for c, w in zip(cut, whole, strict=True)]
    change = Paired(
        "accuracy with removals minus without",
        tuple(c.accuracy - w.accuracy for c, w in zip(cut, whole, strict=True)),
    )
    rows = tuple(
        (f"{seed}", f"{len(spikes)}", f"{max(spikes, default=0.0):+.3f}", f"{locked}",
         f"{w.parameters:,}", f"{c.parameters:,}", f"{rent:.0%}")
        for seed, (spikes, locked, w, c, rent) in enumerate(
            zip(removals, blocked, whole, cut, rents, strict=True)
        )
    )  # fmt: skip
    heads = (
        "seed", "removed", "worst change of loss", "probes locked out", "parameters before",
        "after", "rent left",
    )  # fmt: skip
    falls = all(rent < 1 for rent in rents)
    return Page(
        stage="stage2",
        claim="modules leave a model in training without a lasting spike, and rent falls",
        holds=count > 0 and not lasting and falls and change.median > -_HOLDS,
        finding=(
            f"{count} modules were removed over {seeds} seeds, {lasting} with a lasting rise of "
            f"the loss; accuracy changes by {change.median:+.4f} (median); locks kept agents from "
            f"{sum(blocked)} probes of what was found critical"
        ),
        metric="accuracy",
        arms=(arm("Emrakul removes", cut), arm("nothing removed", whole)),
        pairs=(change,),
        tables=(Table("Every seed", heads, rows),),
        curves=(curve("Emrakul removes", cut), curve("nothing removed", whole)),
        marks=marks(Log(logs[0])),
        notes=(
            _LASTS,
            "rent left: of parameters and work, as a share of the whole model's, at list prices",
            f"the marks are those of seed 0: {logs[0].name}",
        ),
        command="esper demo stage2" + (" --short" if setting.short else ""),
    )


def _spikes(run: Run) -> list[float]:
    """Relative change of the loss around each removal, once the shock is over."""
    losses = {int(tick): loss for tick, loss in run.losses}
    found = []
    for change in run.changes:
        if change.type != "lyse" or change.kind != "passed":
            continue
        before = [losses[t] for t in range(change.tick - _NEAR, change.tick) if t in losses]
        start = change.tick + 1 + _NEAR
        after = [losses[t] for t in range(start, start + _NEAR) if t in losses]
        if before and after:
            found.append(median(after) / median(before) - 1)
    return found


def _rent(cut: Run, whole: Run) -> float:
    """Rent of what is left as a share of that of the model as it was."""
    terms = Terms()
    parts = (cut.parameters / whole.parameters, cut.per_step / whole.per_step)
    prices = (terms.parameter_price, terms.flop_price)
    return sum(s * p for s, p in zip(parts, prices, strict=True)) / sum(prices)


def _blocked(log: Log) -> int:
    """How often a mask kept a target that a probe had found critical from being probed again."""
    masks = [event.payload for event in log if isinstance(event.payload, Mask)]
    heads = [mask.heads.get("target|act=probe") for mask in masks]
    return sum(head.rules.count("critical") for head in heads if head is not None)
