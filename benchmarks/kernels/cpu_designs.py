"""Run-sparse layers on a CPU: what `esper_kernels` runs beside the ways that were tried.

    python benchmarks/kernels/cpu_designs.py [--rounds N] [--result NAME]

Each round runs every design once in random order, on one of several weights in turn, so that a
weight is not in a cache from the round before; processor time of one thread is counted. Figures are
medians over rounds of the time of the dense layer (`torch.nn.functional.linear`; for int8 a layer
whose inputs are rounded row by row, as the pass `quantize` makes) over that of the design.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.result_file import write
from esper_kernels import grouped_int8
from esper_kernels.gathering import gather_columns, gather_rows
from esper_kernels.int8 import quantize, rescaled
from esper_kernels.precision import has_products
from esper_kernels.vnm_dynamic_linear import cpu as dynamic
from esper_kernels.vnm_int8_linear import cpu as weight_only
from esper_kernels.vnm_linear import cpu

SHAPES = ((3072, 3072), (4096, 4096), (768, 3072), (1536, 384))  # outputs, inputs
PATTERNS = ((128, 16, 0.25), (128, 16, 0.5), (512, 16, 0.25), (512, 16, 0.5), (512, 1, 0.25))
SAMPLES = (1, 16, 64, 256)
WEIGHTS = 4
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sparse:
    """A random run-sparse weight whose groups of rows are whole."""

    values: Tensor
    index: Tensor
    rows: int
    run: int

    @classmethod
    def draw(
        cls, outputs: int, inputs: int, rows: int, run: int, density: float, dtype: torch.dtype
    ) -> Sparse:
        """Every group keeps its own random runs."""
        groups, runs = outputs // rows, inputs // run
        index = torch.rand(groups, runs).argsort(1)[:, : round(runs * density)].sort(1).values
        values = torch.randn(outputs, index.shape[1] * run) / inputs**0.5
        return cls(values.to(dtype), index.to(torch.int32), rows, run)

    @property
    def groups(self) -> Tensor:
        """The weight as (groups, rows, kept * run)."""
        return self.values.view(len(self.index), self.rows, -1)


# -- floating --------------------------------------------------------------------------------------


def ours(w: Sparse) -> Run:
    """What `vnm_linear` does with weights that do not train."""
    return lambda x: cpu.forward(x, w.values, w.index, None, w.rows, w.run)


def training(w: Sparse) -> Run:
    """What it does with weights that train: no layout of theirs is kept."""
    values = w.values.clone().requires_grad_()
    return lambda x: cpu.forward(x, values, w.index, None, w.rows, w.run)


def one_by_one(w: Sparse) -> Run:
    """For each group: gather its inputs, multiply, write its outputs."""
    parts = list(zip(w.groups, torch.split(w.index, 1), strict=True))

    def run(x: Tensor) -> Tensor:
        products = (functional.linear(gather_rows(x, i, w.run)[0], v) for v, i in parts)
        return torch.cat(list(products), 1)

    return run


def packed_one_by_one(w: Sparse) -> Run:
    """The same with weights in the blocked layout of oneDNN, as Inductor freezes them."""
    pack, multiply = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
    weights = [pack(weight.contiguous(), None) for weight in w.groups]
    parts = list(zip(weights, torch.split(w.index, 1), strict=True))

    def run(x: Tensor) -> Tensor:
        products = (
            multiply(gather_rows(x, i, w.run)[0], v, None, "none", [], "") for v, i in parts
        )
        return torch.cat(list(products), 1)

    return run


def outputs_first(w: Sparse) -> Run:
    """One batch of products W_g x^T, gathered from x^T at once."""

    def run(x: Tensor) -> Tensor:
        turned = torch.bmm(w.groups, gather_columns(x.t().contiguous(), w.index, w.run))
        return turned.flatten(0, 1).t().contiguous()

    return run


def samples_first(w: Sparse) -> Run:
    """One batch of products x W_g^T, gathered at once, the weight transposed beforehand."""
    turned = w.groups.transpose(1, 2).contiguous()

    def run(x: Tensor) -> Tensor:
        return torch.bmm(gather_rows(x, w.index, w.run), turned).transpose(0, 1).flatten(1)

    return run


def convolution(w: Sparse) -> Run:
    """What ours does, with the layout for 16 samples whatever their number."""
    groups, width = len(w.index), w.values.shape[1]
    pack = torch.ops.mkldnn._reorder_convolution_weight
    convolve = torch.ops.mkldnn._convolution_pointwise
    where: list[Any] = [[0, 0], [1, 1], [1, 1], groups]
    weight = pack(w.values[:, :, None, None].contiguous(), *where, [1, groups * width, 16, 1])

    def run(x: Tensor) -> Tensor:
        runs = x if w.run == 1 else x.view(len(x), -1, w.run)
        gathered = runs.index_select(1, w.index.flatten()).view(1, len(x), 1, -1)
        image = gathered.permute(0, 3, 1, 2)
        out: Tensor = convolve(image, weight, None, *where, "none", [], "")
        return out.permute(0, 2, 3, 1).reshape(len(x), -1)

    return run


FLOATING = {
    "ours": ours,
    "ours, training": training,
    "samples first, at once": samples_first,
    "outputs first, at once": outputs_first,
    "group by group": one_by_one,
    "group by group, packed": packed_one_by_one,
    "packed for 16 samples": convolution,
}


# -- integers --------------------------------------------------------------------------------------


def dense_int8(weight: Tensor) -> Run:
    """Inputs rounded row by row times the weight's integers, and two scales."""
    values, scale = quantize(weight)

    def run(x: Tensor) -> Tensor:
        integers, own = quantize(x)
        product = torch._int_mm(integers, values.t()).float().mul_(own[:, None])
        return rescaled(product, scale, None, x.dtype)

    return run


def ours_int8(w: Sparse) -> Run:
    """What `vnm_dynamic_linear` does."""
    values, scale = quantize(w.values)
    return lambda x: dynamic.forward(x, values, scale, w.index, None, w.rows, w.run)


def samples_first_int8(w: Sparse) -> Run:
    """The same with the inputs as the first operand."""
    values, scale = quantize(w.values)
    parts = list(zip(torch.split(values, w.rows), torch.split(w.index, 1), strict=True))

    def run(x: Tensor) -> Tensor:
        integers, own = quantize(x)
        products = [torch._int_mm(gather_rows(integers, i, w.run)[0], v.t()) for v, i in parts]
        product = torch.cat(products, 1).float().mul_(own[:, None])
        return rescaled(product, scale, None, x.dtype)

    return run


def weight_only_int8(w: Sparse) -> Run:
    """What `vnm_int8_linear` does: inputs stay floating."""
    values, scale = quantize(w.values)
    return lambda x: weight_only.forward(x, values, scale, w.index, None, w.rows, w.run)


INTEGERS = {
    "ours": ours_int8,
    "samples first, at once": samples_first_int8,
    "weight-only": weight_only_int8,
}


# -- measuring -------------------------------------------------------------------------------------


def speedups(designs: dict[str, list[Run]], x: Tensor, rounds: int) -> dict[str, float]:
    """Median seconds of the first design, and how many times faster each other is."""
    times: dict[str, list[float]] = {name: [] for name in designs}
    for number in range(-WEIGHTS, rounds):
        for name in random.sample(list(designs), len(designs)):
            run = designs[name][number % WEIGHTS]
            start = time.thread_time()
            run(x)
            if number >= 0:
                times[name].append(time.thread_time() - start)
    first, *others = times
    paired = {
        name: statistics.median(d / t for d, t in zip(times[first], times[name], strict=True))
        for name in others
    }
    return {first: statistics.median(times[first]), **paired}


def dense(weight: Tensor) -> Run:
    """The layer that is not sparse."""
    return lambda x: functional.linear(x, weight)


def dense_packed(weight: Tensor) -> Run:
    """The same with the weight in the blocked layout of oneDNN, as Inductor freezes it."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda x: multiply(x, packed, None, "none", [], "")


def dense_outputs_first(weight: Tensor) -> Run:
    """The same with the weight as the first operand."""
    return lambda x: torch.mm(weight, x.t().contiguous()).t().contiguous()


DENSE = {"dense, packed": dense_packed, "dense, outputs first": dense_outputs_first}


def cells(rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each dtype, shape, pattern and number of samples."""
    kinds = ["float32", "bfloat16", *(["int8"] if grouped_int8.multiplies() else [])]
    for kind, (outputs, inputs) in itertools.product(kinds, SHAPES):
        dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
        weights = [torch.randn(outputs, inputs).to(dtype) for _ in range(WEIGHTS)]
        plain = dense_int8 if kind == "int8" else dense
        makers = dict(INTEGERS if kind == "int8" else FLOATING)
        others = {} if kind == "int8" else dict(DENSE)
        if kind == "float32":  # takes another layout for each number of samples
            del makers["packed for 16 samples"]
        if not has_products(dtype):  # all other designs multiply in that type
            makers, others = {name: makers[name] for name in ("ours", "ours, training")}, {}
        for rows, run, density in PATTERNS:
            if outputs % rows:
                continue
            sparse = [Sparse.draw(outputs, inputs, rows, run, density, dtype) for _ in weights]
            designs = {"dense": [plain(weight) for weight in weights]}
            designs |= {name: [make(weight) for weight in sparse] for name, make in makers.items()}
            designs |= {name: [make(w) for w in weights] for name, make in others.items()}
            for samples in SAMPLES:
                found = speedups(designs, torch.randn(samples, inputs).to(dtype), rounds)
                row = {
                    "dtype": kind,
                    "layer": f"{outputs}x{inputs}",
                    "pattern": f"{rows}:1:{round(1 / density)}x{run}",
                    "samples": samples,
                    "dense ms": round(1000 * found.pop("dense"), 3),
                    "share of limit": round(found["ours"] * density, 2),
                }
                yield row | {name: round(value, 2) for name, value in found.items()}


def by_pattern(rows: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """How much faster ours is than the dense layer: median over layers."""
    for kind, pattern in dict.fromkeys((row["dtype"], row["pattern"]) for row in rows):
        found = {"dtype": kind, "pattern": pattern}
        for samples in SAMPLES:
            ours = [
                row["ours"]
                for row in rows
                if (row["dtype"], row["pattern"], row["samples"]) == (kind, pattern, samples)
            ]
            found[f"M = {samples}"] = f"{statistics.median(ours):.2f}x"
        yield found


def by_design(rows: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """How much faster ours is than each other design: median over layers and patterns."""
    for kind in dict.fromkeys(row["dtype"] for row in rows):
        here = [row for row in rows if row["dtype"] == kind]
        for name in INTEGERS if kind == "int8" else FLOATING:
            if name == "ours" or name not in here[0]:  # the type lacks it, or this processor
                continue
            found = {"dtype": kind, "design": name}
            for samples in SAMPLES:
                ratios = [r["ours"] / r[name] for r in here if r["samples"] == samples]
                found[f"M = {samples}"] = (
                    f"{statistics.median(ratios):.2f}x, {max(ratios):.2f}x at most"
                )
            yield found


def odd_numbers(rounds: int) -> Iterator[dict[str, Any]]:
    """What a packed weight takes where its layout is not the one that samples ask for."""
    if not has_products(torch.bfloat16):
        return
    (outputs, inputs), (rows, run, density) = SHAPES[0], PATTERNS[2]
    sparse = [
        Sparse.draw(outputs, inputs, rows, run, density, torch.bfloat16) for _ in range(WEIGHTS)
    ]
    for samples in (16, 63, 64, 100):
        x = torch.randn(samples, inputs).bfloat16()
        designs = {
            name: [FLOATING[name](weight) for weight in sparse]
            for name in ("ours", "packed for 16 samples")
        }
        found = speedups(designs, x, rounds)
        ours = 1000 * found["ours"]
        yield {
            "samples": samples,
            "ours ms": round(ours, 2),
            "packed for 16 samples ms": round(ours / found["packed for 16 samples"], 2),
        }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--result", default="cpu_designs", metavar="NAME", help="of the file")
    options = parser.parse_args()
    rounds = options.rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    rows = []
    for row in cells(rounds):
        rows.append(row)
        print(*row.values(), flush=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    write(
        options.result,
        "Run-sparse layers on a CPU: times faster than the dense layer of the same type",
        [{name: row.get(name, "") for name in columns} for row in rows],
        patterns=list(by_pattern(rows)),
        designs=list(by_design(rows)),
        convolution=list(odd_numbers(rounds)),
        command=f"python benchmarks/kernels/cpu_designs.py --rounds {rounds}",
        notes=[
            "pattern V:1:MxC keeps every M-th run of C inputs, alike for V outputs",
            "share of limit: speedup of ours over that of doing only the products that are kept",
            "int8 takes a processor with VNNI: without, its products take seconds",
            f"medians of {rounds} rounds, processor time of one thread, {WEIGHTS} weights in turn",
        ],
    )


if __name__ == "__main__":
    main()
