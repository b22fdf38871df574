"""Transformers through the gate on a CUDA device: half the neurons and a quarter of the heads gone.

    python benchmarks/gpu/end_to_end.py                     # needs CUDA
    python benchmarks/gpu/end_to_end.py --device cpu --small   # rehearsal

Weights are random, since only time is asked. Rows that lose are printed beside those that win.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn

import esper
from benchmarks.result_file import write
from esper.errors import EsperError
from esper.gate.gate import Gate

# What heads are called depends on whether they share keys; a pass without work only says so.
PIPELINE = (
    "prune{axes=neurons ratio=0.5 align=64},prune{axes=heads ratio=0.25 align=1},"
    "prune{axes=kv-groups ratio=0.25 align=1}"
)


def bert(small: bool) -> nn.Module:
    """BERT-base, or a tenth of it."""
    from transformers import BertConfig, BertModel

    width = 128 if small else 768
    config = BertConfig(
        hidden_size=width,
        num_hidden_layers=2 if small else 12,
        num_attention_heads=width // 32 if small else 12,
        intermediate_size=4 * width,
    )
    module: nn.Module = BertModel(config, add_pooling_layer=False)
    return module.eval()


def llama(small: bool) -> nn.Module:
    """Four layers of the shape of Llama-3-8B (width 4096, 32 heads, 8 groups), or a toy."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        hidden_size=128 if small else 4096,
        intermediate_size=512 if small else 14336,
        num_hidden_layers=2 if small else 4,
        num_attention_heads=8 if small else 32,
        num_key_value_heads=4 if small else 8,
        vocab_size=1000,
        use_cache=False,
    )
    module: nn.Module = LlamaModel(config)
    return module.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="toy sizes")
    parser.add_argument("--budget-seconds", type=float, default=30.0, help="per comparison")
    options = parser.parse_args()
    builders: dict[str, Callable[[bool], nn.Module]] = {"BERT-base": bert, "Llama-shaped": llama}
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    rows: list[dict[str, Any]] = []
    for name, build in builders.items():
        torch.manual_seed(0)
        module = build(options.small).to(device=options.device, dtype=dtype)
        for batch, length in ((1, 128), (16, 128)):
            ids = torch.randint(0, 1000, (batch, length), device=options.device)
            model = esper.trace(module, (), {"input_ids": ids})
            pruned = esper.optimize(model, PIPELINE).model
            for backend in ("eager", "inductor"):
                gate = Gate(
                    backend=backend, device=options.device, budget_seconds=options.budget_seconds
                )
                row = {"model": name, "batch": batch, "length": length, "backend": backend}
                try:
                    verdict = gate.compare(model, pruned, ((), {"input_ids": ids}))
                except EsperError as error:
                    row |= {"outcome": f"failed: {error}"}
                else:
                    row |= {
                        "ms before": round(verdict.baseline.milliseconds, 4),
                        "ms after": round(verdict.candidate.milliseconds, 4),
                        "speed-up": round(verdict.speedup, 4),
                        "lower": round(verdict.lower, 4),
                        "upper": round(verdict.upper, 4),
                        "outcome": verdict.outcome,
                    }
                rows.append(row)
                print(row, flush=True)
    if options.device == "cpu" or options.small:
        return  # a rehearsal leaves no result
    write(
        "gpu_end_to_end",
        f"Pruned transformers on {options.device}, {dtype}",
        rows,
        command="benchmarks/gpu_suite.sh",
        notes=[f"Passes: {PIPELINE}. Bounds are one-sided at 99%."],
        device=torch.cuda.get_device_name(),
    )


if __name__ == "__main__":
    main()
