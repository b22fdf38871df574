"""MiniLM on this CPU: what Esper's passes give within 1% of quality, beside every backend alone.

    python benchmarks/end_to_end/minilm.py [--passes PIPELINE] [--max-loss 1%]

Batch 8 of 64 tokens. Quality is the mean of three agreements with human judgement (WordSim-353,
SimLex-999, Lee; `examples/minilm.py`). All rows are timed in the same rounds of the same fresh
processes; ratios are paired against eager float32. Rows that lose are printed with the rest.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

import esper
from benchmarks.result_file import write
from esper.errors import BackendError
from esper.gate.backends.base import Context
from esper.gate.gate import Gate, usable_backends
from examples import minilm

MAX_LOSS = "1%"
PASSES = "search{steps=6 high=0.85}(prune{saliency=taylor scope=global},reconstruct)"


def main() -> None:
    """Optimise, time every row, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passes", default=PASSES)
    parser.add_argument("--max-loss", default=MAX_LOSS)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument(
        "--keep", type=Path, help="directory that holds the optimised model; reused if there"
    )
    options = parser.parse_args()
    args, kwargs = minilm.inputs()
    dynamic = {"input_ids": (1,), "attention_mask": (1,)}
    model = esper.trace(minilm.factory(), args, kwargs, dynamic=dynamic)
    found = optimised(model, options.passes, options.max_loss, options.batches, options.keep)
    print(found["summary"], flush=True)
    models = {"float32": model, "Esper": found["model"]}
    for name in list(models):
        cast = esper.optimize(models[name], "cast{dtype=bfloat16}")
        models[f"{name}, bfloat16" if name != "float32" else "bfloat16"] = cast.model
    quality = {name: minilm.evaluate(m) for name, m in models.items()}
    rows, refused = _measure(models, quality, (args, kwargs), options.processes)
    best = max(rows, key=lambda row: row["speed over eager float32"] * row["within budget"])
    write(
        "minilm",
        "MiniLM, batch 8 of 64 tokens, CPU: speed and quality of every model and backend",
        rows,
        command="python benchmarks/end_to_end/minilm.py",
        notes=[
            f"Passes: `{found['pipeline']}`, largest loss {options.max_loss}.",
            f"They took {found['seconds']:.0f} s.",
            f"Best within the budget: {best['model']} on {best['backend']}.",
            "The search judges quality on the same three judgements that are reported here.",
            *refused,
        ],
        records=found["records"],
    )


def optimised(
    model: esper.Model, passes: str, max_loss: str, batches: int, keep: Path | None
) -> dict[str, Any]:
    """Run the passes; with `keep`, a directory, the outcome is remembered there and reused."""
    if keep and (keep / "minilm.json").exists():
        found: dict[str, Any] = json.loads((keep / "minilm.json").read_text())
        return {**found, "model": esper.load(keep / "minilm.esper")}
    start = time.perf_counter()
    result = esper.optimize(
        model,
        passes,
        data=minilm.calibration(batches),
        evaluate=minilm.evaluate,
        max_loss=max_loss,
    )
    found = {
        "pipeline": result.pipeline,
        "seconds": time.perf_counter() - start,
        "summary": result.summary(),
        "records": [r.model_dump(mode="json") for r in result.records if r.kind != "analysis"],
    }
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        esper.save(result.model, keep / "minilm.esper")
        (keep / "minilm.json").write_text(json.dumps(found))
    return {**found, "model": result.model}


def _measure(
    models: dict[str, Any], quality: dict[str, float], inputs: Any, processes: int
) -> tuple[list[dict[str, Any]], list[str]]:
    gate = Gate(budget_seconds=3600)
    wanted = {
        f"{name} | {backend}": (model, backend)
        for backend, missing in usable_backends(Context(threads=torch.get_num_threads())).items()
        for name, model in models.items()
        if missing is None
    }
    refused: list[str] = []
    ready: dict[str, Any] = {}
    first = "float32 | eager"
    for name, pair in wanted.items():
        try:
            gate.measure({first: wanted[first], name: pair}, inputs, processes=2)
            ready[name] = pair
        except BackendError as error:
            refused.append(f"{name}: {error}")
    table = gate.measure(ready, inputs, processes=processes)
    budget = quality["float32"] * 0.99
    rows = []
    for row in table.rows:
        name, backend = row.name.split(" | ")
        rows.append(
            {
                "model": name,
                "backend": backend,
                "milliseconds": round(row.milliseconds, 2),
                "speed over eager float32": round(row.ratio, 3),
                "lower": round(row.lower, 3),
                "upper": round(row.upper, 3),
                "quality": round(quality[name], 4),
                "within budget": quality[name] >= budget,
                "MB": round(row.parameter_bytes / 1e6, 1),
            }
        )
        print(rows[-1], flush=True)
    return rows, refused


if __name__ == "__main__":
    main()
