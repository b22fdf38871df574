"""Transformers of real shapes and random weights through `esper-opt`, gate and all.

    python benchmarks/end_to_end/random_transformers.py                       # needs CUDA
    python benchmarks/end_to_end/random_transformers.py --device cpu          # one thread
    python benchmarks/end_to_end/random_transformers.py --device cpu --dtype bfloat16
    python benchmarks/end_to_end/random_transformers.py --device cpu --small  # rehearsal

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn

from benchmarks.result_file import write
from esper.passbase import passes

LENGTH = 128
# Seconds for one comparison, of which most runs have a single one: a share of the run's, or fewer.
GATE_SHARE, GATE_MOST = 0.6, 120.0
PIPELINES = {
    "a quarter in runs": "sparsify{pattern=128:1:4x16},lower-kernels",
    "half the neurons": "prune{axes=neurons ratio=0.5 align=64}",
    "int8": "quantize",
    "a quarter in runs, int8": "sparsify{pattern=128:1:4x16},quantize,lower-kernels",
}


@dataclass(frozen=True)
class Cell:
    """What one row measures."""

    model: str
    passes: str
    batch: int
    backend: str


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


def optimise(directory: Path, cell: Cell, device: str, seconds: float) -> dict[str, Any]:
    """What `esper-opt` says of a model, as columns of a row."""
    pipeline = PIPELINES[cell.passes]
    names = [part.partition("{")[0] for part in pipeline.split(",")]
    if unknown := [name for name in names if name not in passes()]:
        return {"outcome": f"there is no pass {unknown[0]}"}
    command = [
        sys.executable, "-m", "esper.cli.opt", str(directory), "--passes", pipeline,
        "--inputs", f"input_ids=int64[{cell.batch},{LENGTH}]:1000", "--device", device,
        "--backend", cell.backend, "--json",
        "--threads", str(torch.get_num_threads()),
        "--budget-seconds", f"{min(GATE_SHARE * seconds, GATE_MOST):.0f}",
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
        return {"outcome": f"failed: {said['error']}".replace(str(directory), directory.name)}
    return outcome(said)


def outcome(said: dict[str, Any]) -> dict[str, Any]:
    """Columns of a row: the measurement of all that was kept, else of what was refused first."""
    if not said["judgements"]:
        return {"outcome": "nothing was proposed"}
    verdict = said["verdict"]
    if verdict is None:
        first = said["judgements"][0]
        measured = "milliseconds_before" in first["figures"]
        found = first["code"] if measured else f"{first['code']}: {first['reason']}"
        figures = first["figures"]
    else:
        found = "accepted"
        figures = {
            "milliseconds_before": verdict["baseline"]["milliseconds"],
            "milliseconds_after": verdict["candidate"]["milliseconds"],
            **verdict,
        }
    return {
        "outcome": found,
        "ms before": figures.get("milliseconds_before"),
        "ms after": figures.get("milliseconds_after"),
        "speed-up": figures.get("speedup"),
        "lower": figures.get("lower"),
        "upper": figures.get("upper"),
        "kept": said["committed"],
        "MB before": said["bytes"][0] / 1e6,
        "MB after": said["bytes"][1] / 1e6,
    }


def cuda_cells() -> list[Cell]:
    """What matters most comes first, since time may end."""
    return [
        Cell(name, what, batch, backend)
        for backend in ("eager", "inductor")
        for batch in (1, 16)
        for what in list(PIPELINES)[:2]
        for name in MODELS
    ]


def cpu_cells(dtype: str) -> list[Cell]:
    """BERT on every backend that can run the result; in bfloat16 where kernels are."""
    runs, neurons, int8, runs_int8 = PIPELINES
    wanted: dict[str, tuple[str, ...]] = {
        "eager": (runs, neurons, int8, runs_int8),
        "inductor": (runs, neurons),
    }
    if dtype == "float32":
        wanted |= {"onnxruntime": (neurons, int8), "openvino": (neurons, int8)}
    return [Cell("BERT-base", what, 1, backend) for backend in wanted for what in wanted[backend]]


def measure(
    cells: Sequence[Cell], device: str, dtype: str, small: bool, longest: float, budget: float
) -> list[dict[str, Any]]:
    """One row for each cell; those that time does not reach say so."""
    end = time.monotonic() + budget
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        models = dict.fromkeys(cell.model for cell in cells)
        stored = getattr(torch, dtype)
        saved = {name: save(name, Path(scratch), small, stored) for name in models}
        for cell in cells:
            left = min(longest, end - time.monotonic())
            row: dict[str, Any] = vars(cell).copy()
            if left < longest / 2:
                row |= {"outcome": "no time left"}
            else:
                row |= optimise(saved[cell.model], cell, device, left)
            rows.append(row)
            print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="bfloat16 with CUDA")
    parser.add_argument("--result", metavar="NAME", help="of the file; else by device and type")
    parser.add_argument("--small", action="store_true", help="toy sizes; leaves no result")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--longest", type=float, default=480.0, help="seconds of one run")
    parser.add_argument("--budget-seconds", type=float, default=7200.0, help="in all")
    options = parser.parse_args()
    cpu = options.device == "cpu"
    if cpu:
        torch.set_num_threads(options.threads)
    dtype = options.dtype or ("float32" if cpu else "bfloat16")
    cells = cpu_cells(dtype) if cpu else cuda_cells()
    limits = (options.longest, options.budget_seconds)
    rows = measure(cells, options.device, dtype, options.small, *limits)
    if options.small:
        return
    more: dict[str, Any] = {} if cpu else {"device": torch.cuda.get_device_name()}
    used = dict.fromkeys(cell.passes for cell in cells)
    usual = "gpu_end_to_end"
    if cpu:
        usual = "cpu_end_to_end" if dtype == "float32" else f"cpu_end_to_end_{dtype}"
    result = options.result or usual
    write(
        result,
        f"Transformers of random weights through esper-opt on {options.device}, "
        f"{dtype}, {LENGTH} tokens",
        rows,
        command=f"python -m benchmarks {result}" if cpu else "benchmarks/gpu_suite.sh",
        notes=[
            *(f"{what}: `{PIPELINES[what]}`." for what in used),
            "Before and after are on the same backend. Bounds are one-sided at 99%.",
            "Weights are random and no quality was judged: this is about time alone.",
        ],
        **more,
    )


if __name__ == "__main__":
    main()
