"""The storyboards' tables over paired seeds: every seed of every arm, the losing ones included.

    python benchmarks/live/stages.py [--seeds 10] [--stages stage1 stage2 stage3] [--long]

Short forms of `esper demo`, or long ones. Stage 0 compares nothing over seeds and is not among
them. Rules and margins were settled on other seeds (`esper demo stage2 --first-seed 100`).
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
from esper.demo.page import Page, Table
from esper.demo.paired import quartiles
from esper.demo.stages import Setting, stages

_STAGES = ("stage1", "stage2", "stage3")


def comparisons(page: Page) -> Iterator[dict[str, Any]]:
    """One row for each comparison between arms."""
    for pair in page.pairs:
        yield {
            "stage": page.stage,
            "comparison": pair.name,
            "median": round(pair.median, 4),
            "q25": round(quartiles(pair.differences)[1], 4),
            "95% interval": [round(end, 4) for end in pair.interval],
            "better": pair.won,
            "worse": pair.lost,
            "stage holds": page.holds,
        }


def every_seed(page: Page) -> Iterator[dict[str, Any]]:
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
    """What the page says over seeds, with its own tables."""
    return {
        "stage": page.stage,
        "claim": page.claim,
        "holds": page.holds,
        "finding": page.finding,
        "failures": {arm.name: arm.failures for arm in page.arms},
        "sign tests": {pair.name: round(pair.p, 5) for pair in page.pairs},
        "tables": {table.title: _rows(table) for table in page.tables},
        "notes": list(page.notes),
        "seconds": round(seconds),
    }


def _rows(table: Table) -> list[dict[str, str]]:
    return [dict(zip(table.heads, row, strict=True)) for row in table.rows]


def main() -> None:
    """Run the stages one after the other and write the result file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--stages", nargs="+", choices=_STAGES, default=_STAGES)
    parser.add_argument("--long", action="store_true", help="long forms")
    options = parser.parse_args()
    table: list[dict[str, Any]] = []
    seeds: list[dict[str, Any]] = []
    summaries = []
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(Path(folder), not options.long, options.seeds)
        for name in options.stages:
            started = time.monotonic()
            page = stages()[name](setting)
            summaries.append(summary(page, time.monotonic() - started))
            table += comparisons(page)
            seeds += every_seed(page)
            print(page.text(), flush=True)
    form = "long" if options.long else "short"
    result_file.write(
        "stages_long" if options.long else "stages",
        "Growth, decay and regrowth over paired seeds",
        table,
        command="python -m benchmarks stages" + ("_long" if options.long else ""),
        notes=[
            f"{form} forms; differences of test accuracy, percentile bootstrap of their median",
            *(f"{s['stage']}, {s['seconds']} s: {s['finding']}" for s in summaries),
        ],
        seeds=seeds,
        summaries=summaries,
    )


if __name__ == "__main__":
    main()
