"""How far cuts reach over the zoo, beside Torch-Pruning: both get a model and inputs, no more.

    pip install --no-deps torch-pruning==1.6.1
    python benchmarks/structure/reach.py [--peer benchmarks/results/reach.json]

Esper loses 30% of the units of every axis that may be cut, in float64, and must pass the masked
oracle: outputs, gradients, buffers, NaN poison. Torch-Pruning (`BasePruner`, group magnitude,
`pruning_ratio=0.3`) must run forward and backward with finite outputs of the shapes that they had;
whether they are right is not asked of it. It would shrink the model's outputs too, so the layers
that return them are found by hooks and ignored. An entry counts where at least 5% of the
parameters went. Each tool has ten minutes for an entry, in a process of its own. As nothing of
Torch-Pruning changes when Esper does, `--peer` takes its columns from an earlier result and the
new one says so.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import inspect
import json
import multiprocessing
import os
import statistics
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
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
PEER = "torch-pruning"
TIMEOUT = 600
FORK = multiprocessing.get_context("fork")  # what is imported need not be imported again


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
    names = list(inspect.signature(module.forward).parameters)
    returning = layers_that_return(module, args, kwargs)
    before, whole = [t.shape for t in tensors(module(*args, **kwargs))], size(module)
    pruner = torch_pruning.pruner.BasePruner(
        module,
        example_inputs={**dict(zip(names, args, strict=False)), **kwargs} if kwargs else args,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=SHARE,
        ignored_layers=returning,
    )
    pruner.step()
    outputs = tensors(module(*args, **kwargs))
    assert [t.shape for t in outputs] == before, "outputs have other shapes"
    assert all(bool(torch.isfinite(t).all()) for t in outputs), "outputs are not finite"
    torch.autograd.backward([t.sum() for t in outputs if t.requires_grad])
    return {"removed": round(1 - size(module) / whole, 3)}


def layers_that_return(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[nn.Module]:
    """Layers with parameters whose outputs the module returns, as they are or viewed."""
    made: list[tuple[nn.Module, torch.Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda m, _, out: made.extend((m, t) for t in tensors(out)))
        for layer in module.modules()
        if any(True for _ in layer.parameters(recurse=False))
    ]
    returned = {t.untyped_storage().data_ptr() for t in tensors(module(*args, **kwargs))}
    for hook in hooks:
        hook.remove()
    return [layer for layer, out in made if out.untyped_storage().data_ptr() in returned]


def tensors(outputs: Any) -> list[torch.Tensor]:
    return [t for t in pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor)]


TOOLS: dict[str, Callable[[Entry], dict[str, Any]]] = {
    "esper": with_esper,
    PEER: with_torch_pruning,
}


def one(tool: str, name: str, found: Connection) -> None:
    """Run one tool on one entry and send what came out."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        result = TOOLS[tool](ENTRIES[name])
    except BaseException as error:  # noqa: BLE001 - whatever a tool raises is its result here
        first = (str(error).strip() or "no message").splitlines()[0]
        result = {"error": f"{type(error).__name__}: {first[:160]}"}
    found.send(result)


def apart(tool: str, name: str) -> dict[str, Any]:
    """`one` in a process of its own."""
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=one, args=(tool, name, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(TIMEOUT):
            return {"error": f"took longer than {TIMEOUT} s"}
        found: dict[str, Any] = receiver.recv()
        return found
    except EOFError:
        process.join()
        return {"error": f"died with exit status {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def row(name: str, earlier: dict[str, Any] | None) -> dict[str, Any]:
    """What both tools make of an entry; of Torch-Pruning what an earlier row says, if given."""
    mine = apart("esper", name)
    if earlier is None:
        theirs = apart(PEER, name)
    else:
        theirs = {"removed": earlier[f"{PEER} removed"], "error": earlier[f"{PEER} failure"]}
    found = {
        "entry": name,
        "family": ENTRIES[name].family,
        "axes": mine.get("axes", 0),
        "in reach": mine.get("in reach", 0.0),
        "removed": mine.get("removed", 0.0),
        "failure": mine.get("error", ""),
        "stopped by": "; ".join(mine.get("stopped by", [])),
        f"{PEER} removed": theirs.get("removed", 0.0),
        f"{PEER} failure": theirs.get("error", ""),
    }
    print(json.dumps(found), flush=True)
    return found


def summary(family: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over the entries of one family."""
    some = [r for r in rows if r["axes"] or r[f"{PEER} removed"] >= ENOUGH]
    ours = sum(r["removed"] >= ENOUGH for r in some)
    peers = sum(r[f"{PEER} removed"] >= ENOUGH for r in some)
    return {
        "family": family,
        "entries": len(rows),
        "something to cut": len(some),
        "Esper, exact": ours,
        "rate Esper": ours / len(some),
        "Torch-Pruning, runs": peers,
        "rate Torch-Pruning": peers / len(some),
        "rate of parameters in reach, median": statistics.median(r["in reach"] for r in rows),
        "wrong results of Esper": sum("AssertionError" in r["failure"] for r in rows),
    }


def stated(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def main() -> None:
    parser = argparse.ArgumentParser(description="Reach of cuts over the zoo.")
    parser.add_argument(
        "--entry", choices=ENTRIES, metavar="NAME", help="print this one and write nothing"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--rows", type=Path, help="lines printed by a run that was cut off")
    parser.add_argument("--peer", type=Path, help=f"earlier result with {PEER}'s columns")
    options = parser.parse_args()
    packages = ("transformers", PEER)
    versions = {name: importlib.metadata.version(name) for name in packages}  # or says what lacks
    if options.entry:
        row(options.entry, None)
        return
    lines = options.rows.read_text().splitlines() if options.rows else []
    known = {found["entry"]: found for found in map(json.loads, lines)}
    earlier = json.loads(options.peer.read_text()) if options.peer else {"entries": []}
    peer = {found["entry"]: found for found in earlier["entries"]}
    with ThreadPoolExecutor(options.workers) as pool:
        rows = list(pool.map(lambda name: known.get(name) or row(name, peer.get(name)), ENTRIES))
    families = sorted({r["family"] for r in rows})
    summaries = [summary(f, [r for r in rows if r["family"] == f]) for f in families]
    late = sum("took longer" in r[f"{PEER} failure"] for r in rows)
    write(
        "reach",
        f"Entries of the zoo that lose at least {ENOUGH:.0%} of their parameters",
        [*summaries, summary("all", rows)],
        notes=[
            "Both get a model and inputs, and aim at 30% of the units of whatever they can cut.",
            "Esper's results pass the masked oracle; Torch-Pruning's must run, right or not.",
            f"{late} of Torch-Pruning's failures are runs that took too long, as their rows say.",
            *([f"{PEER} ran earlier, with {stated(earlier['versions'])}."] if peer else []),
            "Esper's failures: " + (", ".join(r["entry"] for r in rows if r["failure"]) or "none"),
        ],
        command="python benchmarks/structure/reach.py",
        versions=versions,
        entries=rows,
    )


if __name__ == "__main__":
    main()
