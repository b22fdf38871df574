"""What boundary signals cost: steps that are sampled against steps of a session without signals.

    python benchmarks/live/signals_cost.py [--pairs N]

Two copies of one training run, one with every step sampled and one with no signals at all, step in
turn, in random order within each pair; processor time of one thread is counted. The cost at the
default is that of a sampled step divided by the steps from one sample to the next. Intervals are
bootstrap intervals of the median over pairs.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import esper
from benchmarks.result_file import write
from esper.live.signals import EVERY

WARM_UP = 5
SECONDS = 4  # of measuring at least, for small models


class Block(nn.Module):
    """Pre-norm transformer block with written-out causal attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Values [batch, length, width]."""
        size, length, width = x.shape
        parts = self.qkv(self.norm1(x)).view(size, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(size, length, width))
        feed: Tensor = self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return x + feed


class Characters(nn.Module):
    """Characters [batch, length] to logits."""

    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.head = nn.Linear(width, 64)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [batch, length, 64]."""
        logits: Tensor = self.head(self.blocks(self.embed(ids)))
        return logits


class Residual(nn.Module):
    """Two convolutions with batch norms beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Images [batch, width, height, width]."""
        return torch.relu(x + self.body(x))


Made = tuple[nn.Module, Tensor, Tensor]


def mlp() -> Made:
    hidden = [layer for _ in range(3) for layer in (nn.Linear(256, 256), nn.ReLU())]
    module = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), *hidden, nn.Linear(256, 10))
    return module, torch.randn(256, 784), torch.randint(10, (256,))


def convolutions() -> Made:
    body = [Residual(32) for _ in range(4)]
    module = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 10),
    )  # fmt: skip
    return module, torch.randn(32, 1, 28, 28), torch.randint(10, (32,))


def characters(layers: int, width: int, batch: int) -> Callable[[], Made]:
    def make() -> Made:
        ids = torch.randint(64, (batch, 64))
        return Characters(layers, width, width // 32), ids, ids

    return make


def tiny() -> Made:
    module = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
    return module.append(nn.Linear(32, 10)), torch.randn(64, 64), torch.randint(10, (64,))


MODELS: dict[str, Callable[[], Made]] = {
    "perceptron, 3 x 32, batch 64": tiny,
    "perceptron, 5 x 256, batch 256": mlp,
    "residual network, 4 x 32 channels, batch 32 of 28 x 28": convolutions,
    "transformer, 4 x 128, batch 32 of 64": characters(4, 128, 32),
    "transformer, 6 x 384, batch 8 of 64": characters(6, 384, 8),
}


def stepper(model: esper.Model, inputs: Tensor, labels: Tensor, every: int) -> Callable[[], float]:
    """One training step with its boundary; returns its seconds of processor time."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    session = esper.Session(model, optimizer, signals_every=every)

    def step() -> float:
        started = time.process_time()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs).flatten(0, -2), labels.flatten())
        torch.autograd.backward(loss)
        optimizer.step()
        with session.boundary():
            pass
        return time.process_time() - started

    return step


def measure(name: str, pairs: int) -> dict[str, float | str]:
    torch.manual_seed(0)
    module, inputs, labels = MODELS[name]()
    model = esper.trace(module, (inputs,)).train()
    steps = [stepper(copy.deepcopy(model), inputs, labels, every) for every in (0, 1)]
    warm = [step() for step in steps * WARM_UP]
    pairs = max(pairs, round(SECONDS / float(np.median(warm)) / 2))
    order = random.Random(0)
    times = np.zeros((pairs, 2))
    for pair in times:
        for which in order.sample((0, 1), 2):
            pair[which] = steps[which]()
    ratios = times[:, 1] / times[:, 0] - 1
    draws = np.random.default_rng(0).choice(ratios, (2000, pairs))
    low, high = np.quantile(np.median(draws, 1), [0.005, 0.995])
    middle = float(np.median(ratios))
    return {
        "model": name,
        "parts": len(model.anatomy.axes) + len(model.anatomy.phages) + len(model.anatomy.slots),
        "step ms": round(1e3 * float(np.median(times[:, 0])), 2),
        "sampled step": f"{100 * middle:+.1f}%",
        "cost at the default": f"{100 * middle / EVERY:.2f}%",
        "99% interval": f"{100 * low / EVERY:.2f}% to {100 * high / EVERY:.2f}%",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in MODELS:
        rows.append(measure(name, options.pairs))
        print(rows[-1])
    write(
        "signals_cost",
        "Cost of boundary signals in training steps",
        rows,
        command=f"python benchmarks/live/signals_cost.py --pairs {options.pairs}",
        notes=[
            f"by default every {EVERY}th step is sampled",
            f"at least {options.pairs} pairs of steps, processor time of one thread",
        ],
    )


if __name__ == "__main__":
    main()
