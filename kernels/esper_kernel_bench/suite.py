"""The suite: which panels are measured in which order, within a budget of time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from esper.errors import UsageError
from esper_kernel_bench import cpu_peers, cuda_peers, esper_ops
from esper_kernel_bench.calibration import calibrate, raised
from esper_kernel_bench.cells import Cell, Panel, cells, finished, typical
from esper_kernel_bench.compiled_peer import inductor
from esper_kernel_bench.compression import Compression
from esper_kernel_bench.contender import Contender
from esper_kernel_bench.cpu_clock import CpuClock
from esper_kernel_bench.cuda_clock import CudaClock
from esper_kernel_bench.layers import Layer, merged
from esper_kernel_bench.problem import Problem
from esper_kernel_bench.sampling import Effort, Group, Rows
from esper_kernel_bench.timing import Clock
from esper_kernels.roofline import Device, Work, specification

Said = Callable[[int, int, str], None]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Selection:
    """What is measured, how long, and from which seed.

    Attributes:
        budget: seconds for everything; what no longer fits is listed as skipped.
        compiled: whether Inductor takes part, and with how much search.
    """

    layers: Sequence[Layer]
    rows: Sequence[int]
    compressions: Sequence[Compression]
    dtypes: Sequence[str]
    device: str = "cpu"
    effort: Effort = field(default_factory=Effort)
    budget: float = float("inf")
    seed: int = 0
    compiled: bool = True
    tuned: bool = False


@dataclass
class Findings:
    """What came out.

    Attributes:
        clock: what was read.
        rotated: bytes of weights that pass before a copy is read again.
        skipped: what was not measured, as `layer dtype M: why`.
    """

    specification: Device | None
    calibrated: Device
    clock: str
    rotated: int
    panels: list[Panel] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def cells(self) -> list[Cell]:
        """Every op of ours in every panel."""
        found = (cells(panel, self.specification, self.roof()) for panel in self.panels)
        return [cell for some in found for cell in some]

    def roof(self) -> Device:
        """The measured roofs, raised by what dense layers reached."""
        return raised(self.calibrated, [pair for p in self.panels for pair in _reached(p)])


def clock(device: str) -> Clock:
    """The clock of a device. Raises UsageError for CUDA where there is none."""
    if device == "cpu":
        return CpuClock()
    if not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no CUDA device here")
    return CudaClock()


def contenders(layer: Layer, dtype: str, selection: Selection) -> list[Contender]:
    """Peers first, then ours."""
    peers = cpu_peers.peers if selection.device == "cpu" else cuda_peers.peers
    found = peers(layer, selection.compressions, DTYPES[dtype])
    # A dense linear layer alone compiles to the library call that is there already, unless
    # templates are searched.
    if selection.compiled and (layer.kind != "linear" or selection.tuned):
        found.append(inductor(layer, DTYPES[dtype], selection.tuned))
    ours = esper_ops.contenders(layer, selection.compressions, DTYPES[dtype], selection.device)
    return found + ours


def run(selection: Selection, said: Said) -> Findings:
    """Measure. `said(done, total, what)` hears of every step."""
    deadline = time.monotonic() + selection.budget
    watch = clock(selection.device)
    wanted = [DTYPES[name] for name in selection.dtypes]
    said(0, 1, "calibrating")
    name = torch.cuda.get_device_name() if selection.device == "cuda" else ""
    roofs = calibrate(watch, wanted, selection.seed)
    findings = Findings(specification(name), roofs, watch.kind, watch.rotated)
    rng = random.Random(selection.seed)
    groups = [
        (layer, stands_for, dtype)
        for layer, stands_for in merged(selection.layers).items()
        for dtype in selection.dtypes
    ]
    rng.shuffle(groups)  # a budget that ends early leaves a fair sample
    for number, (layer, stands_for, dtype) in enumerate(groups):
        what = f"{layer.id} {dtype}"
        if time.monotonic() >= deadline:
            findings.skipped += [f"{what} {m}: no time left" for m in selection.rows]
            continue
        problem = Problem(
            layer, selection.rows, DTYPES[dtype], selection.device, rng.getrandbits(32)
        )
        group = Group(
            problem, contenders(layer, dtype, selection), watch, selection.effort, rng, deadline
        )
        say = partial(_say, said, number, len(groups), what)
        for rows in group.measure(say):
            panel = None if rows.skipped else finished(layer, stands_for, dtype, rows)
            if panel is None:
                findings.skipped.append(f"{what} {rows.m}: {_why(rows)}")
            else:
                findings.panels.append(panel)
    return findings


def _reached(panel: Panel) -> list[tuple[Work, float]]:
    """Work and seconds of layers on the whole weight."""
    return [
        (track.work, typical(track.samples))
        for track in panel.timed
        if track.work is not None and track.contender.compression in ("dense", "int8")
    ]


def _say(said: Said, done: int, total: int, what: str, step: str) -> None:
    said(done, total, f"{what}, {step}")


def _why(rows: Rows) -> str:
    """Why there is no panel."""
    if rows.skipped:
        return rows.skipped
    dense = next(t for t in rows.tracks.values() if t.contender.role == "dense")
    return f"the dense layer takes no part: {dense.reason}"
