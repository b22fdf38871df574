"""Stage 2: modules leave a model while it trains, on evidence, and the loss hardly notices."""

from __future__ import annotations

from typing import Any

from esper.demo.decay_figures import (
    LASTING,
    NEAR,
    SHOCK,
    bad,
    modules,
    rent,
    repeated,
    rises,
    units,
)
from esper.demo.figures import arm, curve, marks
from esper.demo.page import Page, Table
from esper.demo.paired import Paired
from esper.demo.runs import Run
from esper.demo.stages import Setting
from esper.demo.training import train
from esper.recorder.log import Log

_SEEDS = {True: 5, False: 10}
_UNLOCKED = 3  # seeds that also run without locks
_STEPS = {True: 300, False: 600}
_DEPTH = {True: 6, False: 8}
_DROP = 0.3
_MARGIN = 0.003  # of the loss: what a probe calls harm
_SEVERAL = 2  # modules that must go in every seed
_INFERIOR = 0.01  # accuracy: the interval of what removals change must lie above its negative


def run(setting: Setting) -> Page:
    """A transformer whose depth is redundant; Emrakul probes and removes while it trains."""
    seeds = setting.seeds or _SEEDS[setting.short]
    steps = setting.steps or _STEPS[setting.short]
    lock = steps // 4
    options: dict[str, Any] = {
        "host": "text",
        "steps": steps,
        "size": 16,
        "rate": 5e-3,
        "cool": 2 * steps // 5,
        "model": {"depth": _DEPTH[setting.short], "width": 32, "drop": _DROP},
    }
    terms = {"quarantine": float(steps), "evidence_batches": 4.0}
    decaying: dict[str, Any] = {
        "agents": {"emrakul": {"every": max(2, steps // 75), "warm": 16, "fresh": steps // 10}},
        "agents_from": steps // 4,
        "agents_until": 7 * steps // 10,  # what was cut heals while the rate falls
        "margin": _MARGIN,
    }
    path = setting.log("stage2")
    whole: list[Run] = []
    cut: list[Run] = []
    unlocked: list[Run] = []
    locked, free = ({**terms, "lock": length} for length in (float(lock), 0.0))
    for number, seed in enumerate(setting.numbers(seeds)):
        setting.progress(number, seeds, f"seed {seed}")
        log = None if number else path
        whole.append(train(None, seed=seed, **options))
        cut.append(train(log, seed=seed, terms=locked, **options, **decaying))
        if number < _UNLOCKED:
            unlocked.append(train(None, seed=seed, terms=free, **options, **decaying))
    pairs = list(zip(cut, whole, strict=True))
    change = Paired(
        "accuracy with removals minus without", tuple(c.accuracy - w.accuracy for c, w in pairs)
    )
    lasting = [rises(c, w) for c, w in pairs]
    rents = [rent(c, w) for c, w in pairs]
    gone = [modules(c) for c in cut]
    again = sum(repeated(run, lock) for run in cut)
    again_free = sum(repeated(run, lock) for run in unlocked)
    rows = tuple(
        (f"{setting.first + i}", f"{gone[i]}", f"{units(c)}",
         f"{max(lasting[i], default=0.0):+.3f}", f"{c.accuracy - w.accuracy:+.4f}",
         f"{w.parameters:,}", f"{c.parameters:,}", f"{rents[i]:.0%}", f"{bad(c)}")
        for i, (c, w) in enumerate(pairs)
    )  # fmt: skip
    heads = (
        "seed", "modules removed", "units cut", "worst lasting rise", "accuracy change",
        "parameters before", "after", "rent left", "bad probes",
    )  # fmt: skip
    locks = tuple(
        (f"{setting.first + i}", f"{bad(c)}", f"{repeated(c, lock)}", f"{bad(u)}",
         f"{repeated(u, lock)}")
        for i, (c, u) in enumerate(zip(cut, unlocked, strict=False))
    )  # fmt: skip
    lock_heads = ("seed", "bad probes", "repeated", "bad without locks", "repeated without locks")
    spikes = sum(rise > LASTING for found in lasting for rise in found)
    low, _ = change.interval
    return Page(
        stage="stage2",
        claim="modules leave a model in training without a lasting spike; locks stop repeated "
        "bad probes, rent falls, accuracy holds",
        holds=all(
            (
                min(gone) >= _SEVERAL,
                spikes == 0,
                max(rents) < 1,
                low > -_INFERIOR,
                again == 0 < again_free,
            )
        ),
        finding=(
            f"{sum(gone)} modules and {sum(map(units, cut))} units were removed over {seeds} "
            f"seeds, at least {min(gone)} modules in each, {spikes} with a lasting rise of the "
            f"loss; accuracy changes by {change.median:+.4f} (median); {again} bad probes were "
            f"repeated while a lock held, {again_free} in {len(unlocked)} seeds without locks"
        ),
        metric="accuracy",
        arms=(
            arm("Emrakul removes", cut),
            arm("nothing removed", whole),
            arm("Emrakul without locks", unlocked),
        ),
        pairs=(change,),
        tables=(Table("Every seed", heads, rows), Table("Locks", lock_heads, locks)),
        curves=(curve("Emrakul removes", cut), curve("nothing removed", whole)),
        marks=marks(Log(path)),
        notes=(
            f"accuracy holds if the whole 95% interval of its change lies above -{_INFERIOR:g}",
            (
                f"a rise lasts if the median loss of {NEAR} steps, {SHOCK} steps after a removal, "
                f"is {LASTING:g} above what it was before, less the same in the run without"
            ),
            f"a bad probe is repeated if it comes less than {lock} ticks after the one before",
            "rent left: of parameters and work, as a share of the whole model's, at list prices",
            f"the log is that of seed {setting.first}: {path.name}",
        ),
        command="esper demo stage2" + (" --short" if setting.short else ""),
    )
