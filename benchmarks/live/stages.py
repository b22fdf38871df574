"""The storyboards' tables over paired seeds: every seed of every arm, the losing ones included.

    python benchmarks/live/stages.py [--seeds 10] [--stages stage1 stage2 stage3]

Short forms of `esper demo`. Stage 0 compares nothing over seeds and is not among them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import result_file
from esper.demo.page import Page
from esper.demo.stages import Setting, stages

_STAGES = ("stage1", "stage2", "stage3")


def rows(page: Page) -> Iterator[dict[str, Any]]:
    """One row for each arm and seed."""
    for arm in page.arms:
        figures = zip(arm.metric, arm.cost, arm.parameters, arm.churn, strict=True)
        for seed, (metric, cost, parameters, churn) in enumerate(figures):
            yield {
                "stage": page.stage,
                "arm": arm.name,
                "seed": seed,
                page.metric: round(metric, 4),
                "cost (1e9 MACs)": round(cost, 3),
                "parameters": parameters,
                "changes": churn,
            }


def summary(page: Page, seconds: float) -> dict[str, Any]:
    """What the page says over seeds."""
    pairs = [
        {
            "comparison": pair.name,
            "median": round(pair.median, 4),
            "interval": [round(end, 4) for end in pair.interval],
            "better": pair.won,
            "worse": pair.lost,
            "sign test p": round(pair.p, 5),
        }
        for pair in page.pairs
    ]
    failures = {arm.name: arm.failures for arm in page.arms}
    return {
        "stage": page.stage,
        "claim": page.claim,
        "holds": page.holds,
        "finding": page.finding,
        "failures": failures,
        "pairs": pairs,
        "seconds": round(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--stages", nargs="+", choices=_STAGES, default=_STAGES)
    options = parser.parse_args()
    table: list[dict[str, Any]] = []
    summaries = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.stages:
            started = time.monotonic()
            page = stages()[name](Setting(Path(folder), short=True, seeds=options.seeds))
            summaries.append(summary(page, time.monotonic() - started))
            table += rows(page)
            print(page.text(), flush=True)
    result_file.write(
        "stages",
        "Growth, decay and regrowth over paired seeds",
        table,
        command="python -m benchmarks stages",
        notes=["intervals: percentile bootstrap of the median difference at 95%"],
        summaries=summaries,
    )


if __name__ == "__main__":
    main()
