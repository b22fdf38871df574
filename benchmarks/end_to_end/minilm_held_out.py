"""What the pruned MiniLM has forgotten: each judgement, and texts that nothing was fitted to.

    python benchmarks/end_to_end/minilm_held_out.py [--keep DIRECTORY]

`minilm.py` searches within a budget for the mean of three judgements. Here each is shown, and
agreement with the original encoder on news items that neither calibration nor judgement read.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import esper
from benchmarks.end_to_end.minilm import MAX_LOSS, PASSES, optimised
from benchmarks.result_file import write
from examples import minilm

BATCHES = 16


def main() -> None:
    """Optimise (or reuse `--keep`), judge, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="as of minilm.py")
    options = parser.parse_args()
    args, kwargs = minilm.inputs()
    dynamic = {"input_ids": (1,), "attention_mask": (1,)}
    model = esper.trace(minilm.factory(), args, kwargs, dynamic=dynamic)
    found = optimised(model, PASSES, MAX_LOSS, BATCHES, options.keep)
    texts = minilm.held_out(BATCHES)
    models = {
        "float32": model,
        "bfloat16": esper.optimize(model, "cast{dtype=bfloat16}").model,
        "Esper": found["model"],
    }
    rows: list[dict[str, Any]] = []
    for name, each in models.items():
        metrics = minilm.metrics(each)
        pairs, same = minilm.agreement(model, each, texts)
        rows.append(
            {
                "model": name,
                "WordSim-353": round(metrics.wordsim, 4),
                "SimLex-999": round(metrics.simlex, 4),
                "Lee": round(metrics.lee, 4),
                "mean": round(metrics.mean, 4),
                "held-out pairs, correlation with float32": round(pairs, 4),
                "held-out texts, cosine to float32": round(same, 4),
            }
        )
        print(rows[-1], flush=True)
    write(
        "minilm_held_out",
        "MiniLM: each judgement, and agreement with the original on texts that nothing was fitted "
        "to",
        rows,
        command="python benchmarks/end_to_end/minilm_held_out.py",
        notes=[
            f"{len(texts)} held-out news items of at most {minilm.LENGTH} tokens, all their pairs.",
            f"Passes: `{PASSES}`, largest loss {MAX_LOSS} of the mean.",
        ],
    )


if __name__ == "__main__":
    main()
