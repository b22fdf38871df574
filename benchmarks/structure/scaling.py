"""How analysis, planning and applying scale with depth, and what they cost in memory.

    python benchmarks/structure/scaling.py

Each row is a fresh process: a BERT is traced (not timed), then every head axis and every neuron
axis loses 30% of its units, one proposal each, verified. The first row is BERT-base itself.
Memory is the peak resident set of that work over the resident set before it, as a share of the
model's bytes, so 1.0 means that nothing was needed beyond the model.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

LAYERS = (6, 12, 24, 48, 96)


def measure(layers: int, hidden: int) -> dict[str, Any]:
    """One model in this process."""
    import torch
    from transformers import BertConfig, BertModel

    import esper

    config = BertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        vocab_size=30522 if hidden == 768 else 1000,
    )
    module = BertModel(config, add_pooling_layer=False).eval()
    ids = torch.randint(0, 1000, (2, 64))
    model = esper.trace(module, (), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    parameters = sum(p.numel() for p in module.parameters())
    del module
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    start = time.perf_counter()
    axes = [a for a in model.anatomy.axes.values() if a.kind in ("heads", "neurons")]
    analysed = time.perf_counter()
    manager = esper.PassManager(model)
    with manager.batch():
        for axis in axes:
            if not axis.cuttable:
                continue
            units = axis.unit_ids[: int(axis.size * 0.3)]
            record = manager.apply(esper.propose.PruneUnits(axis=axis.id, units=units))
            assert record.kind == "passed", record.line()
    applied = time.perf_counter()
    peak = _status("VmHWM")
    return {
        "model": f"BERT, {layers} layers of width {hidden}",
        "layers": layers,
        "nodes": len(model.graph.nodes),
        "parameters": parameters,
        "analysis seconds": round(analysed - start, 4),
        "plan, apply and verify seconds": round(applied - analysed, 4),
        "peak memory over model": round(1 + (peak - before) / (4 * parameters), 3),
    }


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return float(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def main() -> None:
    """Run every row and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, type=int, metavar=("LAYERS", "HIDDEN"))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    from benchmarks.result_file import write

    rows = [_best(12, 768, options.repeats)]
    rows += [_best(layers, 256, options.repeats) for layers in LAYERS]
    small = rows[1:]
    exponent = _slope(
        [math.log(row["layers"]) for row in small],
        [
            math.log(row["analysis seconds"] + row["plan, apply and verify seconds"])
            for row in small
        ],
    )
    path = write(
        "scaling",
        "Analysis, planning and applying against depth",
        rows,
        command="python benchmarks/structure/scaling.py",
        notes=[
            f"At width 256, seconds grow as layers to the power {exponent:.2f} (1 is linear).",
            f"Each row is the median of {options.repeats} fresh processes by total seconds.",
        ],
        exponent=exponent,
    )
    print(path.read_text())


def _best(layers: int, hidden: int, repeats: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", str(layers), str(hidden)]
    rows: list[dict[str, Any]] = []
    for _ in range(repeats):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    rows.sort(key=lambda r: r["analysis seconds"] + r["plan, apply and verify seconds"])
    print(rows[len(rows) // 2], flush=True)
    return rows[len(rows) // 2]


def _slope(x: list[float], y: list[float]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    over = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return over / sum((a - mean_x) ** 2 for a in x)


if __name__ == "__main__":
    main()
