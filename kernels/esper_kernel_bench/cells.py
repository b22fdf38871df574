"""From samples to cells: one for each op of ours in each panel, against dense and the best peer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from esper_kernel_bench.layers import Layer
from esper_kernel_bench.sampling import Rows, Track
from esper_kernel_bench.verdicts import Samples, Verdict, judge, noise
from esper_kernels.roofline import Device


@dataclass(frozen=True)
class Panel:
    """All contenders on one layer, dtype and number of rows.

    Attributes:
        layers: IDs of the layers that this one stands for, itself first.
        noise: log units, of the baseline against its second copy.
    """

    layer: Layer
    layers: Sequence[str]
    dtype: str
    rows: Rows
    noise: float

    @property
    def timed(self) -> list[Track]:
        """Contenders with samples."""
        return [track for track in self.rows.tracks.values() if track.samples]


def finished(layer: Layer, layers: Sequence[str], dtype: str, rows: Rows) -> Panel | None:
    """The panel of these rows; None where there is nothing to compare with."""
    roles = {t.contender.role: t for t in rows.tracks.values() if t.samples}
    if "dense" not in roles:
        return None
    base = roles["dense"].samples
    stray = noise(base, roles["again"].samples) if "again" in roles else 0.0
    return Panel(layer, layers, dtype, rows, stray)


@dataclass(frozen=True)
class Cell:
    """One op of ours beside its peers.

    Attributes:
        op, compression: what is judged.
        microseconds: its median call.
        dense: against the dense layer of the same dtype, as PyTorch calls it.
        peer, best: the fastest of all peers by its median, and how we compare with it.
        fraction_specification: share of the limit by data sheet; None without one.
        fraction_calibrated: share of the limit by measured roofs; None where one is missing.
    """

    layer: str
    n: int
    k: int
    m: int
    dtype: str
    compression: str
    op: str
    microseconds: float
    dense: Verdict
    peer: str
    best: Verdict
    fraction_specification: float | None
    fraction_calibrated: float | None

    def row(self) -> dict[str, Any]:
        """Flat, for JSON and tables."""
        flat = {k: v for k, v in asdict(self).items() if k not in ("dense", "best")}
        for name, verdict in (("dense", self.dense), ("best", self.best)):
            flat |= {f"{name}_{key}": value for key, value in asdict(verdict).items()}
        return flat


def cells(panel: Panel, specification: Device | None, calibrated: Device) -> list[Cell]:
    """The cells of a panel."""
    timed = panel.timed
    (dense,) = [t for t in timed if t.contender.role == "dense"]
    found = []
    for own in timed:
        if own.contender.role != "esper":
            continue
        best = min(rivals(own, timed), key=lambda t: typical(t.samples))
        seconds = typical(own.samples)
        found.append(
            Cell(
                layer=panel.layer.id,
                n=panel.layer.outputs,
                k=panel.layer.inputs,
                m=panel.rows.m,
                dtype=panel.dtype,
                compression=own.contender.compression,
                op=own.contender.name.removeprefix("esper "),
                microseconds=seconds * 1e6,
                dense=judge(dense.samples, own.samples, panel.noise),
                peer=best.contender.key,
                best=judge(best.samples, own.samples, panel.noise),
                fraction_specification=fraction(own, specification),
                fraction_calibrated=fraction(own, calibrated),
            )
        )
    return found


def rivals(own: Track, timed: Sequence[Track]) -> list[Track]:
    """Peers of an op: those on the whole weight, and those of its density and kind."""
    mine = own.contender
    low_rank = mine.compression.startswith("low-rank")

    def stands(track: Track) -> bool:
        other = track.contender
        if other.role not in ("peer", "dense"):
            return False
        if other.compression in ("dense", "int8"):
            return True
        if low_rank or other.compression.startswith("low-rank"):
            return other.compression == mine.compression
        return other.density == mine.density

    return [track for track in timed if stands(track)]


def typical(samples: Samples) -> float:
    """The median second of all rounds."""
    return median(second for placement in samples for second in placement)


def fraction(track: Track, device: Device | None) -> float | None:
    """The share of the device's limit that a contender reaches; None without a roof for it."""
    if device is None or track.work is None or track.work.unit not in device.peaks:
        return None
    return device.fraction(track.work, typical(track.samples))
