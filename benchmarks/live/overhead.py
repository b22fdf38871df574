"""What a session and its flight record cost where nothing is proposed.

    python benchmarks/live/overhead.py

The same model, optimizer and batch: blocks of steps as a plain loop and blocks of steps with a
boundary after each, in pairs of random order, so that what else the machine does hits both alike.
Times are of the processor, which other processes hardly touch. What a sync waits for the disk is
given apart: one comes every two seconds where nothing is proposed.
The recorder is timed by itself: events as sessions and agents write them, and one sync of all.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn

import esper
from benchmarks.live.forks import spread
from benchmarks.result_file import write
from esper.recorder import policy
from esper.recorder.decisions import HeadMask, Mask, Observation
from esper.recorder.generators import Generators
from esper.recorder.happenings import Tick
from esper.recorder.writer import Recorder

PAIRS, STEPS = 60, 5
HOWS = ("session", "session and record", "record, governor and batches")
EVENTS = 4000


class Net(nn.Module):
    """A perceptron whose training step takes some ten milliseconds on one core."""

    def __init__(self) -> None:
        super().__init__()
        widths = (256, 768, 768, 768, 768, 10)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def measure(how: str, folder: Path) -> dict[str, Any]:
    """Pairs of blocks without and with a session."""
    torch.manual_seed(0)
    model = esper.trace(Net(), (torch.randn(4, 256),))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, y = torch.randn(128, 256), torch.randint(0, 10, (128,))
    session = esper.Session(
        model,
        optimizer,
        recorder=None if how == "session" else folder / f"{how.replace(' ', '-')}.esperlog",
        governor=esper.Governor() if "governor" in how else None,
    )
    batch = x if "batches" in how else None

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        torch.autograd.backward(loss)
        optimizer.step()
        return loss

    boundaries = []

    def plain() -> None:
        for _ in range(STEPS):
            float(
                step().detach()
            )  # a loop that looks at its loss, as the governor and the record do

    def live() -> None:
        for _ in range(STEPS):
            loss = float(step().detach())
            started = time.process_time()
            with session.boundary(loss, batch=batch):
                pass
            boundaries.append(time.process_time() - started)

    for _ in range(5):
        plain()
        live()
    boundaries.clear()
    order = random.Random(0)
    ratios, plains = [], []
    for _ in range(PAIRS):
        blocks = [plain, live]
        order.shuffle(blocks)
        seconds = {block: _seconds(block) for block in blocks}
        ratios.append(seconds[live] / seconds[plain])
        plains.append(seconds[plain] / STEPS)
    session.close()
    low, high = _interval(ratios)
    typical = statistics.median(plains)
    return {
        "with": how,
        "step ms": round(1e3 * typical, 2),
        "time ratio": round(statistics.median(ratios), 4),
        "lower": round(low, 4),
        "upper": round(high, 4),
        "boundary us": round(1e6 * statistics.median(boundaries), 1),
        "mean us": round(1e6 * statistics.fmean(boundaries), 1),
        "rate of step": round(statistics.fmean(boundaries) / typical, 5),
    }


def _seconds(block: Callable[[], None]) -> float:
    started = time.process_time()
    block()
    return time.process_time() - started


def _interval(values: list[float]) -> tuple[float, float]:
    """95% bounds of the median by bootstrap."""
    source = random.Random(1)
    medians = sorted(statistics.median(source.choices(values, k=len(values))) for _ in range(1000))
    return medians[25], medians[974]


def record(folder: Path) -> list[dict[str, Any]]:
    """Microseconds an event, by kind."""
    head = HeadMask(tuple("abcdefgh"), (True,) * 7 + (False,), ("",) * 7 + ("cooldown",))
    mask = Mask({f"head{i}": head for i in range(8)}, {"cooldown": "changed three ticks ago"})
    sample = policy.sample("head0", [0.1 * i for i in range(8)], head, Generators(0), stream="a")
    seen = Observation("0" * 32, {f"feature{i}": i / 7 for i in range(32)})
    kinds: dict[str, Any] = {
        "tick": Tick(loss=0.25),
        "observation of 32 features": seen,
        "mask of 8 heads": mask,
        "head-sample of 8 choices": sample,
    }
    rows = []
    for name, payload in kinds.items():
        times = []
        with Recorder(folder / f"{name.split()[0]}.esperlog") as recorder:
            for _ in range(EVENTS):
                before = time.process_time()
                recorder.event(payload.kind, payload, agent="tamiyo", target="slot:stem.out")
                times.append(time.process_time() - before)
            middle = time.perf_counter()
            recorder.sync()
            ended = time.perf_counter()
        rows.append(
            {
                "event": name,
                "bytes": round((folder / f"{name.split()[0]}.esperlog").stat().st_size / EVENTS),
                "median us": round(1e6 * statistics.median(times), 1),
                "mean us": round(1e6 * statistics.fmean(times), 1),
                "sync ms": round(1e3 * (ended - middle), 2),
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=1)
    workers = parser.parse_args().workers
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        events = record(Path(folder))
        rows = spread(lambda how: measure(how, Path(folder)), HOWS, workers)
    rows.sort(key=lambda row: HOWS.index(row["with"]))
    write(
        "overhead",
        "Cost of a session and its flight record without proposals",
        rows,
        command="python benchmarks/live/overhead.py",
        notes=[
            f"Medians of {PAIRS} pairs of {STEPS} steps each, with 95% bounds.",
            "Processor time. rate of step: mean of a boundary against a step.",
            "The goals are 1% of a step of at least 5 ms, and 50 us an event.",
            "A governor copies the training state every 100 boundaries; batches are hashed whole.",
        ],
        events=events,
    )


if __name__ == "__main__":
    main()
