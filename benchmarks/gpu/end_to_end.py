"""Transformers through `esper-opt` with the gate on a CUDA device.

    python benchmarks/gpu/end_to_end.py                       # needs CUDA
    python benchmarks/gpu/end_to_end.py --device cpu --small  # rehearsal

Weights are random, since only time is asked: of the model as it was, and of what the passes left.
Rows that lose, fail or find no time are printed beside those that win.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn

from benchmarks.result_file import write
from esper.passbase import passes

LENGTH = 128
LONGEST = 60.0  # seconds of one run
PIPELINES = {
    "half the neurons": "prune{axes=neurons ratio=0.5 align=64}",
    "a quarter of the weights, in runs": "sparsify{pattern=128:1:4x16},lower-kernels",
}


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
    module: nn.Module = BertModel(config)
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


MODELS: dict[str, Callable[[bool], nn.Module]] = {"Llama-shaped": llama, "BERT-base": bert}


def save(name: str, folder: Path, small: bool, dtype: torch.dtype) -> Path:
    """A directory as Hugging Face lays it out, with random weights."""
    torch.manual_seed(0)
    module: Any = MODELS[name](small).to(dtype)
    place = folder / name.lower()
    module.save_pretrained(place)
    return place


def optimise(
    model: Path, pipeline: str, batch: int, backend: str, device: str, seconds: float
) -> dict[str, Any]:
    """What `esper-opt` says of a model, as columns of a row."""
    unknown = [
        name
        for name in (part.partition("{")[0] for part in pipeline.split(","))
        if name not in passes()
    ]
    if unknown:
        return {"outcome": f"there is no pass {unknown[0]}"}
    command = [
        sys.executable, "-m", "esper.cli.opt", str(model), "--passes", pipeline,
        "--inputs", f"input_ids=int64[{batch},{LENGTH}]:1000", "--device", device,
        "--backend", backend, "--budget-seconds", f"{seconds / 4:.0f}", "--json",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"outcome": f"no result in {seconds:.0f} s"}
    try:
        said = json.loads(done.stdout)
    except ValueError:
        return {"outcome": f"failed with exit code {done.returncode}"}
    if done.returncode:
        return {"outcome": f"failed: {said['error']}".replace(str(model), model.name)}
    if not said["judgements"]:
        return {"outcome": "nothing was proposed"}
    judged = said["judgements"][-1]
    figures = judged["figures"]
    return {
        "outcome": "accepted" if judged["accepted"] else judged["code"],
        "ms before": figures.get("milliseconds_before"),
        "ms after": figures.get("milliseconds_after"),
        "speed-up": figures.get("speedup"),
        "lower": figures.get("lower"),
        "upper": figures.get("upper"),
        "committed": said["committed"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="toy sizes")
    parser.add_argument("--budget-seconds", type=float, default=600.0, help="in all")
    options = parser.parse_args()
    end = time.monotonic() + options.budget_seconds
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    cells = [
        (name, what, batch, backend)
        for backend in ("eager", "inductor")
        for batch in (1, 16)
        for what in PIPELINES
        for name in MODELS
    ]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        saved = {name: save(name, Path(scratch), options.small, dtype) for name in MODELS}
        for name, what, batch, backend in cells:
            left = min(LONGEST, end - time.monotonic())
            row = {"model": name, "passes": what, "batch": batch, "backend": backend}
            if left < LONGEST / 4:
                row |= {"outcome": "no time left"}
            else:
                row |= optimise(saved[name], PIPELINES[what], batch, backend, options.device, left)
            rows.append(row)
            print(row, flush=True)
    if options.device == "cpu" or options.small:
        return  # a rehearsal leaves no result
    write(
        "gpu_end_to_end",
        f"Transformers through esper-opt on {options.device}, {dtype}, {LENGTH} tokens",
        rows,
        command="benchmarks/gpu_suite.sh",
        notes=[
            *(f"{what}: `{pipeline}`." for what, pipeline in PIPELINES.items()),
            "Bounds are one-sided at 99%. Weights are random.",
        ],
        device=torch.cuda.get_device_name(),
    )


if __name__ == "__main__":
    main()
