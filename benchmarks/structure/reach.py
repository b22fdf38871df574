"""How far cuts reach over the zoo, beside Torch-Pruning: both get a model and inputs, no more.

    pip install torch-pruning==1.6.1
    python benchmarks/structure/reach.py

Esper loses 30% of the units of every axis that may be cut, in float64, and must pass the masked
oracle: outputs, gradients, buffers, NaN poison. Torch-Pruning (`BasePruner`, group magnitude,
`pruning_ratio=0.3`, nothing ignored) must run forward and backward with finite outputs of the
shapes that they had; whether they are right is not asked of it. An entry counts where at least 5%
of the parameters went. Each entry runs in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn
from torch.utils import _pytree as pytree

import esper
from benchmarks.result_file import write
from tests import oracle, zoo
from tests.zoo.catalogue import ENTRIES
from tests.zoo.entry import Entry

SHARE, ENOUGH = 0.3, 0.05
TIMEOUT = 600


def size(module: nn.Module) -> int:
    """Parameter values, tied ones once."""
    return sum(p.numel() for p in module.parameters())


def with_esper(entry: Entry) -> dict[str, Any]:
    """Cut what may be cut and hold it against the oracle."""
    module, args, kwargs = entry.build(torch.float64)
    model = oracle.as_float64(esper.trace(module, args, kwargs))
    axes = zoo.cuttable(model)
    held = {member for axis in axes.values() for member, _ in axis.members}
    reached = sum(p.numel() for name, p in model.named_parameters() if name in held)
    frozen = Counter(
        axis.frozen_reason
        for axis in model.anatomy.axes.values()
        if axis.frozen_reason and "(contract)" not in axis.frozen_reason
    )
    found: dict[str, Any] = {
        "axes": len(axes),
        "in reach": round(reached / size(model), 3),
        "stopped by": [reason for reason, _ in frozen.most_common(3)],
    }
    removed = zoo.joint_cut(list(axes.values()), SHARE)
    if removed:
        cut = oracle.assert_exact_cut(model, removed, args, kwargs, train=entry.trains)
        found["removed"] = round(1 - size(cut) / size(model), 3)
    return found


def with_torch_pruning(entry: Entry) -> dict[str, Any]:
    """Prune, then run forward and backward."""
    import torch_pruning

    module, args, kwargs = entry.build(torch.float32)
    before, whole = [t.shape for t in tensors(module(*args, **kwargs))], size(module)
    pruner = torch_pruning.pruner.BasePruner(
        module,
        example_inputs=args,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=SHARE,
    )
    pruner.step()
    outputs = tensors(module(*args, **kwargs))
    assert [t.shape for t in outputs] == before, "outputs have other shapes"
    assert all(bool(torch.isfinite(t).all()) for t in outputs), "outputs are not finite"
    torch.stack([t.sum() for t in outputs if t.requires_grad]).sum().backward()
    return {"removed": round(1 - size(module) / whole, 3)}


def tensors(outputs: Any) -> list[torch.Tensor]:
    return [t for t in pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor)]


TOOLS: dict[str, Callable[[Entry], dict[str, Any]]] = {
    "esper": with_esper,
    "torch-pruning": with_torch_pruning,
}


def one(tool: str, name: str) -> None:
    """Run one tool on one entry and print what came out as the last line."""
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    try:
        found = TOOLS[tool](ENTRIES[name])
    except BaseException as error:  # noqa: BLE001 - whatever a tool raises is its result here
        first = (str(error).strip() or "no message").splitlines()[0]
        found = {"error": f"{type(error).__name__}: {first[:160]}"}
    found["seconds"] = round(time.perf_counter() - started, 1)
    print("\n" + json.dumps(found), flush=True)


def apart(tool: str, name: str) -> dict[str, Any]:
    """`one` in a process of its own."""
    command = [sys.executable, __file__, "--tool", tool, "--entry", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {TIMEOUT} s"}
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"error": f"died with exit status {done.returncode}"}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Reach of cuts over the zoo.")
    parser.add_argument("--tool", choices=TOOLS)
    parser.add_argument("--entry", choices=ENTRIES)
    options = parser.parse_args()
    if options.tool:
        one(options.tool, options.entry)
        return
    rows = []
    for name, entry in ENTRIES.items():
        mine, theirs = (apart(tool, name) for tool in TOOLS)
        rows.append(
            {
                "entry": name,
                "family": entry.family,
                "axes": mine.get("axes", 0),
                "in reach": mine.get("in reach", 0.0),
                "removed": mine.get("removed", 0.0),
                "failure": mine.get("error", ""),
                "stopped by": "; ".join(mine.get("stopped by", [])),
                "torch-pruning removed": theirs.get("removed", 0.0),
                "torch-pruning failure": theirs.get("error", ""),
            }
        )
        print(rows[-1], flush=True)
    some = [r for r in rows if r["axes"] or r["torch-pruning removed"] >= ENOUGH]
    ours = sum(r["removed"] >= ENOUGH for r in some)
    peers = sum(r["torch-pruning removed"] >= ENOUGH for r in some)
    median = statistics.median(r["in reach"] for r in rows)
    write(
        "reach",
        "How far cuts reach",
        rows,
        command="python benchmarks/structure/reach.py",
        versions={
            name: importlib.metadata.version(name) for name in ("transformers", "torch-pruning")
        },
        notes=[
            f"{len(rows)} entries, {len(some)} with something to cut.",
            f"Esper removes at least {ENOUGH:.0%}, exactly, in {ours} ({ours / len(some):.1%}).",
            f"Torch-Pruning does in {peers} ({peers / len(some):.1%}), not asked to be exact.",
            f"Share of parameters on at least one axis that may be cut: median {median:.3f}.",
            f"{sum('AssertionError' in r['failure'] for r in rows)} wrong results of Esper.",
        ],
    )


if __name__ == "__main__":
    main()
