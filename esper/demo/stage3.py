"""Stage 3: what is cut by mistake grows back on its scar; a scar that stays bare was not needed."""

from __future__ import annotations

from statistics import median
from typing import Any

from esper.demo.figures import arm, curve, marks
from esper.demo.page import Page, Table
from esper.demo.paired import Paired
from esper.demo.stages import Setting
from esper.demo.training import Run, train
from esper.recorder.log import Log

_SEEDS = {True: 3, False: 5}
_STEPS = {True: 320, False: 800}
_HOST = {"width": 8, "depth": 4}
_NEEDLESS = 0.02  # accuracy that may go with a module that was not needed


def run(setting: Setting) -> Page:
    """Four arms: nothing cut; the most missed region cut and regrown, or left; the least one."""
    seeds = setting.seeds or _SEEDS[setting.short]
    steps = setting.steps or _STEPS[setting.short]
    middle = steps // 2
    rest = max(2, steps // 32)
    terms = {"quarantine": float(rest), "evidence_batches": 4.0}
    rash = {"cut_at": middle, "terms": terms}
    growing = {"tamiyo": {"every": max(2, steps // 40), "warm": 8, "plateau": 9.0}}
    regrown = {"cut": "most", "agents": growing, "agents_from": middle + rest, **rash}
    arms: dict[str, dict[str, Any]] = {
        "nothing cut": {},
        "most missed, regrown": regrown,
        "most missed, left": {"cut": "most", **rash},
        "least missed, left": {"cut": "least", **rash},
    }
    path = setting.log("stage3")
    runs: dict[str, list[Run]] = {name: [] for name in arms}
    for seed in range(seeds):
        for number, (name, options) in enumerate(arms.items()):
            setting.progress(len(arms) * seed + number, len(arms) * seeds, f"seed {seed}: {name}")
            log = path if seed == 0 and "agents" in options else None
            runs[name].append(
                train(log, seed=seed, steps=steps, data=setting.data, model=_HOST, **options)
            )
    whole, grown, left, least = runs.values()
    lost = median(w.accuracy - x.accuracy for w, x in zip(whole, left, strict=True))
    still = median(w.accuracy - x.accuracy for w, x in zip(whole, grown, strict=True))
    spare = Paired(
        "accuracy without the least missed region minus with it",
        tuple(x.accuracy - w.accuracy for x, w in zip(least, whole, strict=True)),
    )
    gain = Paired(
        "accuracy regrown minus left as a scar",
        tuple(g.accuracy - x.accuracy for g, x in zip(grown, left, strict=True)),
    )
    recovered = gain.median > 0 or lost <= _NEEDLESS
    rows = tuple(
        (name, f"{seed}", _cut(run), _planted(run), f"{run.accuracy:.4f}")
        for name, made in runs.items()
        for seed, run in enumerate(made)
    )
    return Page(
        stage="stage3",
        claim="a cut leaves a scar on which the lost metric grows back, or which proves a module "
        "needless",
        holds=recovered and spare.median > -_NEEDLESS,
        finding=(
            f"the most missed region costs {lost:+.4f} accuracy (median) when its scar stays bare "
            f"and {still:+.4f} when a seed grows on it; the least missed one costs "
            f"{-spare.median:+.4f}"
        ),
        metric="accuracy",
        arms=tuple(arm(name, made) for name, made in runs.items()),
        pairs=(gain, spare),
        tables=(Table("Every seed", ("arm", "seed", "cut", "regrown", "accuracy"), rows, words=4),),
        curves=tuple(curve(name, made) for name, made in runs.items()),
        marks=marks(Log(path)),
        notes=(
            f"regions are cut at tick {middle} of {steps}, ranked by a sweep over held-out batches",
            "evidence for the rash cut is a probe with a margin that no sane person would set",
            f"the log is that of seed 0, regrown: {path.name}",
        ),
        command="esper demo stage3" + (" --short" if setting.short else ""),
    )


def _cut(run: Run) -> str:
    cut = [c.target for c in run.changes if c.type == "lyse" and c.kind == "passed"]
    return ", ".join(cut) or "nothing"


def _planted(run: Run) -> str:
    made = [c.target for c in run.changes if c.type == "plant-seed" and c.kind == "passed"]
    return ", ".join(made) or "nothing"
