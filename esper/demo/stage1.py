"""Stage 1: growth where the gradient asks for it, against the same host at the same cost."""

from __future__ import annotations

from typing import Any

from esper.demo.figures import arm, curve, marks
from esper.demo.page import Page, Table
from esper.demo.paired import Paired
from esper.demo.runs import Run
from esper.demo.stages import Setting
from esper.demo.training import train
from esper.recorder.log import Log

_SEEDS = 10
_STEPS = {True: 240, False: 600}
_HOST = {"width": 8, "depth": 0}
_RATE = 5e-3
_BUDGET = 2000  # parameters from which on nothing grows
_MORE = 8  # the control may take this many times as many steps, until the cost is the same
_LEAST = 5  # seeds below which a sign test can say nothing


def run(setting: Setting) -> Page:
    """Paired seeds: Tamiyo grows a small host; the control trains on until it has cost as much."""
    seeds = setting.seeds or _SEEDS
    steps = setting.steps or _STEPS[setting.short]
    options: dict[str, Any] = {"data": setting.data, "model": _HOST, "rate": _RATE}
    growing = {
        "tamiyo": {
            "every": max(2, steps // 15),
            "warm": min(60, steps // 5),
            "plateau": 0.3,
            "budget": _BUDGET,
        }
    }
    path = setting.log("stage1")
    grown: list[Run] = []
    plain: list[Run] = []
    for number, seed in enumerate(setting.numbers(seeds)):
        setting.progress(number, seeds, f"seed {seed}")
        log = None if number else path
        grown.append(train(log, seed=seed, steps=steps, agents=growing, **options))
        plain.append(train(None, seed=seed, steps=_MORE * steps, budget=grown[-1].cost, **options))
    gain = Paired(
        "accuracy with growth minus without, at equal cost",
        tuple(g.accuracy - p.accuracy for g, p in zip(grown, plain, strict=True)),
    )
    rows = tuple(
        (f"{setting.first + i}", f"{g.accuracy:.4f}", f"{p.accuracy:.4f}",
         f"{g.accuracy - p.accuracy:+.4f}", f"{g.cost:.3g}", f"{p.cost:.3g}", f"{len(p.losses)}")
        for i, (g, p) in enumerate(zip(grown, plain, strict=True))
    )  # fmt: skip
    heads = ("seed", "grown", "plain", "difference", "cost grown", "cost plain", "steps plain")
    low, _ = gain.interval
    better = gain.median > 0 and (low > 0 or seeds < _LEAST)
    return Page(
        stage="stage1",
        claim="growth improves the median of paired seeds at the same training cost",
        holds=better,
        finding=(
            f"{gain.won} of {seeds} seeds gain by growth, {gain.lost} lose; the median difference "
            f"in test accuracy is {gain.median:+.4f}"
        ),
        metric="accuracy",
        arms=(arm("grown by Tamiyo", grown), arm("the same host", plain)),
        pairs=(gain,),
        tables=(Table("Every seed", heads, rows),),
        curves=(curve("grown", grown), curve("the same host", plain)),
        marks=marks(Log(path)),
        notes=(
            "cost is training's, in 1e9 multiply-accumulates, seeds behind the host included",
            f"the control trains on until it has cost as much, at most {_MORE} times as long",
            f"the log is that of seed {setting.first}: {path.name}",
        ),
        command="esper demo stage1" + (" --short" if setting.short else ""),
    )
