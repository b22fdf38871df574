"""How far the axis analysis scales, on models without weights (the meta device).

    python benchmarks/structure/scale.py

A transformer block is traced once and repeated in the graph, so that the export of a deep model is
not what is measured. Then come a Llama of 70 billion parameters, traced whole, and the work after
one local cut in a model of 100 blocks. Each row is a fresh process. The plot is
docs/scale.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

BLOCKS = (100, 1_000, 10_000)


def block_model(count: int) -> Any:
    """`count` pre-norm transformer blocks of width 64 in one graph, on the meta device."""
    import torch
    from torch import fx, nn

    import esper
    from esper.ir.model import Model
    from esper.ir.module_tree import adopt, owner_of
    from esper.ir.ports import read_ports

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(64), nn.LayerNorm(64)
            self.q, self.k, self.v, self.o = (nn.Linear(64, 64) for _ in range(4))
            self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)

        def heads(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(x.shape[0], x.shape[1], 4, 16).transpose(1, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm1(x)
            q, k, v = self.heads(self.q(y)), self.heads(self.k(y)), self.heads(self.v(y))
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            x = x + self.o(mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], 64))
            out: torch.Tensor = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
            return out

    with torch.device("meta"):
        one = esper.trace(Block(), (torch.empty(2, 8, 64),))
    graph, holder = fx.Graph(), torch.nn.Module()
    (entry,) = one.graph.find_nodes(op="placeholder")
    value = graph.placeholder("x")
    value.meta = dict(entry.meta)
    for i in range(count):
        known: dict[fx.Node, fx.Node] = {entry: value}
        for node in one.graph.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                value = known[node.args[0][0]]
                continue
            copied = graph.node_copy(node, known.__getitem__)
            if node.op == "get_attr":
                name = f"{i}.{node.target}"
                tensor = one.tensor(str(node.target))
                assert tensor is not None
                parameter = nn.Parameter(torch.empty_like(tensor))
                owner_of(holder, name).register_parameter(name.rpartition(".")[2], parameter)
                copied.target = name
            copied.meta = dict(node.meta)
            known[node] = copied
    graph.output((value,))
    model = Model(holder, graph)
    adopt(model, holder)
    model.ports = read_ports(model)
    return model


def llama_70b() -> Any:
    """Llama-3-70B as its configuration describes it, without weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import esper

    class Logits(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(input_ids=input_ids).logits
            return logits

    config = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        use_cache=False,
    )
    with torch.device("meta"):
        module = Logits(LlamaForCausalLM(config).eval())
        ids = torch.zeros((2, 64), dtype=torch.int64)
    return esper.trace(module, (ids,))


def measure(what: str) -> dict[str, Any]:
    """One model in this process."""
    import torch

    import esper
    from esper.plan import Plan

    torch.set_num_threads(1)
    base = _peak()
    started = time.perf_counter()
    model = llama_70b() if what == "llama" else block_model(int(what))
    built = time.perf_counter()
    model.invalidate()
    axes = list(model.anatomy.axes.values())
    analysed = time.perf_counter()
    regions = len(model.anatomy.phages)
    regions_found = time.perf_counter()
    cuttable = [axis for axis in axes if axis.cuttable]
    for axis in cuttable:
        units = axis.unit_ids[: max(1, int(axis.size * 0.3))]
        plan = model.plan(esper.propose.PruneUnits(axis=axis.id, units=units))
        assert isinstance(plan, Plan), plan
    planned = time.perf_counter()
    return {
        "model": "Llama-3-70B" if what == "llama" else f"{int(what):,} transformer blocks",
        "nodes": len(model.graph.nodes),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tracing or building s": round(built - started, 2),
        "analysis s": round(analysed - built, 2),
        "regions s": round(regions_found - analysed, 2),
        "planning s": round(planned - regions_found, 2),
        "cuttable axes": len(cuttable),
        "regions": regions,
        "peak GB": round((_peak() - base) / 1e9, 2),
    }


def after_a_cut() -> dict[str, float]:
    """Milliseconds of a full analysis of 100 blocks and of what follows one local cut.

    `cut ms` is all of it: contract, plan, new tensors, shapes and the anatomy as it then is, with
    nothing verified. `anatomy ms` is the last part: it was kept up to date, not made anew.
    """
    import esper
    from esper.manager import PassManager

    model = block_model(100)
    full = []
    for _ in range(5):
        model.invalidate()
        started = time.perf_counter()
        axes = [a for a in model.anatomy.axes.values() if a.cuttable and a.kind == "neurons"]
        full.append(time.perf_counter() - started)
    manager = PassManager(model, verify="none")
    whole, anatomy = [], []
    with manager.batch():
        for axis in axes[:9]:
            proposal = esper.propose.PruneUnits(axis=axis.id, units=axis.unit_ids[:8])
            started = time.perf_counter()
            record = manager.apply(proposal)
            applied = time.perf_counter()
            size = model.anatomy.axes[axis.id].size
            anatomy.append(time.perf_counter() - applied)
            whole.append(time.perf_counter() - started)
            assert record.kind == "passed", record.line()
            assert size == axis.size - 8
    kept = {name: axis.size for name, axis in model.anatomy.axes.items()}
    model.invalidate()
    assert kept == {name: axis.size for name, axis in model.anatomy.axes.items()}
    median = statistics.median
    return {
        "full ms": 1e3 * median(full),
        "cut ms": 1e3 * median(whole),
        "anatomy ms": 1e3 * median(anatomy),
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _slope(rows: list[dict[str, Any]], field: str) -> float:
    first, last = rows[0], rows[-1]
    return math.log(last[field] / first[field]) / math.log(last["nodes"] / first["nodes"])


def main() -> None:
    """Run every row and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", metavar="BLOCKS|llama|cut")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(after_a_cut() if options.one == "cut" else measure(options.one)))
        return
    from benchmarks.result_file import write
    from benchmarks.structure.scale_plot import PLOT, plot

    rows = []
    for what in (*map(str, BLOCKS), "llama"):
        rows.append(_fresh(what))
        print(rows[-1], flush=True)
    cut = _fresh("cut")
    blocks = rows[: len(BLOCKS)]
    analysis, planning = (_slope(blocks, f"{what} s") for what in ("analysis", "planning"))
    growth = (
        f"From {BLOCKS[0]:,} to {BLOCKS[-1]:,} blocks, analysis time grows as nodes to the power "
        f"{analysis:.2f}, planning {planning:.2f} (1 is linear)."
    )
    local = (
        f"100 blocks: a full analysis takes {cut['full ms']:.1f} ms. One local cut takes "
        f"{cut['cut ms']:.1f} ms in all ({cut['cut ms'] / cut['full ms']:.1%}), of which the "
        f"anatomy as it then is takes {cut['anatomy ms']:.3f} ms; it equals a full analysis."
    )
    all_axes = "Every cuttable axis is planned to lose 30% of its units. One thread."
    PLOT.write_text(plot(blocks))
    write(
        "scale",
        "The axis analysis on models without weights",
        rows,
        command="python benchmarks/structure/scale.py",
        notes=[growth, local, all_axes],
        cut=cut,
    )


def _fresh(what: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


if __name__ == "__main__":
    main()
