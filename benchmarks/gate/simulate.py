"""Error rates of the gate's decision rule under simulated noise: no clock, no torch.

    python benchmarks/gate/simulate.py --trials 400 -o benchmarks/results/gate_simulation.json

Per process every contender gets its own lasting offset (placement of its memory); per round the
three share a drift, and each has its own AR(1) noise with heavy right tails. A trial follows the
same sequence of looks as the product. `rate_accepted` is the share of trials that were accepted.
Rounds per process are those of `Effort`: `min_rounds`, and `least_rounds`, to which long steps may
bring them down.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esper.errors import GateError
from esper.gate.sampling import Effort
from esper.gate.sequential import Draw, advance
from esper.gate.statistics import Rule, Samples


@dataclass(frozen=True)
class Noise:
    """Standard deviations in log units; `rho` is the AR(1) coefficient of a contender's own noise,
    `spikes` the share of visits slowed by an exponential of mean `spike`.
    """

    name: str
    process: float
    round: float
    rho: float = 0.0
    drift: float = 0.05
    spikes: float = 0.0
    spike: float = 0.5


MODELS = (
    Noise("calm", process=0.001, round=0.01),
    Noise("spiky", process=0.002, round=0.01, spikes=0.15, spike=0.3),
    Noise("drifting", process=0.002, round=0.02, rho=0.6, drift=0.2),
    Noise("placement", process=0.006, round=0.01),
    Noise(
        "shared VM",
        process=0.004,
        round=0.025,
        rho=0.4,
        drift=0.1,
        spikes=0.1,
        spike=0.3,
    ),
    Noise("bad placement", process=0.015, round=0.01, spikes=0.05),
    Noise("storm", process=0.01, round=0.08, rho=0.5, drift=0.3, spikes=0.3, spike=1.0),
)


def correlated(
    rng: np.random.Generator, shape: tuple[int, int], rho: float
) -> npt.NDArray[np.float64]:
    """AR(1) along the first axis with unit marginal variance."""
    white = rng.standard_normal(shape)
    out = np.empty(shape)
    out[0] = white[0]
    for i in range(1, shape[0]):
        out[i] = rho * out[i - 1] + np.sqrt(1 - rho**2) * white[i]
    return out


def process(
    rng: np.random.Generator, noise: Noise, rounds: int, effect: float
) -> npt.NDArray[np.float64]:
    offsets = rng.normal(0.0, noise.process, 3)
    common = correlated(rng, (rounds, 1), 0.95) * noise.drift
    own = correlated(rng, (rounds, 3), noise.rho) * noise.round
    hit = rng.random((rounds, 3)) < noise.spikes
    spikes = hit * np.log1p(rng.exponential(noise.spike, (rounds, 3)))
    faster = np.array([0.0, 0.0, np.log1p(effect)])
    times: npt.NDArray[np.float64] = np.log(0.02) + offsets + common + own + spikes - faster
    return times


def trial(
    noise: Noise, effect: float, rounds: int, rule: Rule, seed: int
) -> tuple[str, int, float]:
    """Outcome, number of processes spent, and the reported speed-up."""
    rng = np.random.default_rng([seed, int(effect * 1e4)])
    stages = {"search": Samples(), "confirm": Samples()}
    while isinstance(step := advance(stages["search"], stages["confirm"], rule), Draw):
        fresh = tuple(process(rng, noise, rounds, effect) for _ in range(step.count))
        stages[step.stage] = stages[step.stage] + Samples(fresh)
    spent = len(stages["search"]) + len(stages["confirm"])
    return step.outcome, spent, step.decision.speedup


def cell(job: tuple[Noise, float, int, Rule, int]) -> dict[str, object]:
    noise, effect, rounds, rule, trials = job
    runs = [trial(noise, effect, rounds, rule, seed) for seed in range(trials)]
    accepted = [r for r in runs if r[0] == "accept"]
    bias = float(np.mean([np.log(r[2]) for r in accepted]) - np.log1p(effect)) if accepted else None
    return {
        "noise": noise.name,
        "rounds": rounds,
        "true_speedup": 1 + effect,
        "trials": trials,
        "rate_accepted": len(accepted) / trials,
        "rate_ambiguous": sum(r[0] == "ambiguous" for r in runs) / trials,
        "processes_mean": float(np.mean([r[1] for r in runs])),
        "processes_p95": float(np.quantile([r[1] for r in runs], 0.95)),
        "log_bias_of_accepted": bias,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument(
        "--rounds",
        type=int,
        action="append",
        help=f"per process (repeatable; default: {Effort.least_rounds}, {Effort.min_rounds})",
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--noise", action="append", help="only this noise model (repeatable)")
    parser.add_argument("--resamples", type=int, default=Rule.resamples)
    parser.add_argument("--looks", default=",".join(map(str, Rule.looks)))
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    try:
        looks = tuple(int(n) for n in options.looks.split(","))
        rule = Rule(looks=looks, resamples=options.resamples)
    except (ValueError, GateError) as error:
        parser.error(str(error))
    jobs = [
        (noise, effect, rounds, rule, options.trials)
        for rounds in options.rounds or (Effort.least_rounds, Effort.min_rounds)
        for noise in MODELS
        if not options.noise or noise.name in options.noise
        for effect in (0.0, 0.01, 0.03, 0.05)
    ]
    result: dict[str, Any] = {
        "title": "What the rule accepts under simulated noise",
        "command": "python -m benchmarks gate_simulation",
        "rule": asdict(rule) | {"looks": list(looks)},
        "trials_per_cell": options.trials,
        "noise_models": [asdict(m) for m in MODELS],
        "versions": {"numpy": np.__version__},
        "rows": [],
    }
    if options.output and options.output.exists():
        before = json.loads(options.output.read_text())
        if all(before[key] == result[key] for key in result if key != "rows"):
            result["rows"] = before["rows"]  # goes on where it was stopped
    done = {(row["noise"], row["rounds"], row["true_speedup"]) for row in result["rows"]}
    jobs = [job for job in jobs if (job[0].name, job[2], 1 + job[1]) not in done]
    with ProcessPoolExecutor(options.workers) as pool:
        for row in pool.map(cell, jobs):
            result["rows"].append(row)
            bias = row["log_bias_of_accepted"]
            print(
                f"{row['noise']:14s} {row['rounds']:2d} rounds {row['true_speedup']:.2f}x "
                f"accepted {row['rate_accepted']:6.1%} "
                f"ambiguous {row['rate_ambiguous']:6.1%} processes {row['processes_mean']:5.1f} "
                f"(p95 {row['processes_p95']:.0f}) bias "
                + ("-" if bias is None else f"{bias:+.4f}"),
                flush=True,
            )
            if options.output:
                options.output.parent.mkdir(parents=True, exist_ok=True)
                options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
