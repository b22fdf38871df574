"""How fast an op can be at all: the roofline of its arithmetic and of the bytes that it must move.

    limit = max(F / P, B / BW, floor)        fraction = limit / measured seconds

F are multiplications and additions, P what a device does of them in a second, B the bytes that have
to cross the memory bus once, BW the bandwidth, and `floor` the time of a launch that does nothing
(Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009). Every op reads its input and weight
once and writes its output once; a bias, of N numbers, is left out.

Letters: x is (M, K) with numbers of `size` bytes, W is (N, K), and a share `density` of W is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import torch

INDEX = 4  # bytes of an index of a run
SCALE = 4  # bytes of the scale of an output
METADATA = 1 / 8  # bytes a weight in 2:4: two bits for each that is kept

UNITS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int8: "int8"}


@dataclass(frozen=True)
class Work:
    """What a call has to do at least.

    Attributes:
        flops: multiplications and additions.
        bytes: read from and written to memory.
        unit: the arithmetic, as `Device.peaks` calls it.
    """

    flops: float
    bytes: float
    unit: str

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.flops / self.bytes


@dataclass(frozen=True)
class Device:
    """The roofs of a device.

    Attributes:
        name: of the device or of the measurement.
        peaks: operations a second, by unit.
        bandwidth: bytes a second.
        floor: seconds of a launch that does nothing.
        source: where the figures are from.
    """

    name: str
    peaks: Mapping[str, float]
    bandwidth: float
    floor: float = 0.0
    source: str = ""

    def limit(self, work: Work) -> float:
        """The least seconds for that work. Raises KeyError for a unit without a peak."""
        compute = work.flops / self.peaks[work.unit]
        return max(compute, work.bytes / self.bandwidth, self.floor)

    def fraction(self, work: Work, seconds: float) -> float:
        """The share of the limit that was reached, 1 at best."""
        return self.limit(work) / seconds

    def ridge(self, unit: str) -> float:
        """The intensity from which on arithmetic limits, in operations a byte."""
        return self.peaks[unit] / self.bandwidth


# -- weights as they lie in memory -----------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """A weight (outputs, inputs) in some format.

    Attributes:
        bytes: of numbers, indices and scales.
        density: share of the dense multiplications that is done.
    """

    outputs: int
    inputs: int
    bytes: float
    density: float = 1.0


def dense(outputs: int, inputs: int, size: int) -> Stored:
    """Every number, `size` bytes each."""
    return Stored(outputs, inputs, outputs * inputs * size)


def int8(outputs: int, inputs: int) -> Stored:
    """A byte for each number and a scale for each output."""
    return Stored(outputs, inputs, outputs * inputs + SCALE * outputs)


def run_sparse(
    outputs: int, inputs: int, size: int, kept: int, rows: int, run: int, scales: bool = False
) -> Stored:
    """`kept` runs of `run` numbers in each row, alike for `rows` rows; with a scale a row or not.

    The numbers of a padded last run count as they are stored. Of blocks, `kept` is the most that
    any group of rows has, so that unequal groups are paid for.
    """
    values = outputs * kept * run
    index = INDEX * ceil(outputs / rows) * kept
    scale = SCALE * outputs if scales else 0
    return Stored(outputs, inputs, values * size + index + scale, kept * run / inputs)


def sparse24(outputs: int, inputs: int, size: int) -> Stored:
    """Two of four numbers and their metadata, multiplied by sparse instructions.

    The dense peak is that of all products, so the half that is left counts: sparse tensor cores do
    it at the dense rate.
    """
    return Stored(outputs, inputs, outputs * inputs * (size / 2 + METADATA), 0.5)


def compressed(outputs: int, inputs: int, size: int, nonzeros: int, block: int = 1) -> Stored:
    """CSR (`block` 1) or BSR of square blocks: a column for each block, an offset for each row."""
    blocks = nonzeros / block**2
    rows = outputs / block + 1
    return Stored(
        outputs,
        inputs,
        nonzeros * size + INDEX * (blocks + rows),
        nonzeros / (outputs * inputs),
    )


# -- ops -------------------------------------------------------------------------------------------


def linear(m: int, weight: Stored, size: int, unit: str, used: float = 1.0) -> Work:
    """x W^T. `used`: the share of the columns of x that any row of W reads."""
    n, k = weight.outputs, weight.inputs
    flops = 2.0 * m * n * k * weight.density
    return Work(flops, size * (m * k * used + m * n) + weight.bytes, unit)


def gated_linear(m: int, gate: Stored, up: Stored, size: int, unit: str) -> Work:
    """act(x G^T) * (x U^T), one output written; the activation is not counted."""
    n, k = gate.outputs, gate.inputs
    flops = 2.0 * m * n * k * (gate.density + up.density)
    return Work(flops, size * (m * k + m * n) + gate.bytes + up.bytes, unit)


def low_rank_linear(m: int, n: int, k: int, rank: int, size: int, unit: str) -> Work:
    """x D^T U^T with D (rank, K) and U (N, rank); what is between them is not written."""
    return Work(2.0 * m * rank * (n + k), size * (m * k + m * n + rank * (n + k)), unit)


# -- devices ---------------------------------------------------------------------------------------

_HOPPER = {"fp32": 66.9e12, "fp16": 989.4e12, "bf16": 989.4e12, "int8": 1978.9e12}
_AMPERE = {"fp32": 19.5e12, "fp16": 312e12, "bf16": 312e12, "int8": 624e12}
_PCIE = {"fp32": 51.2e12, "fp16": 756e12, "bf16": 756e12, "int8": 1513e12}
_NVL = {"fp32": 60.0e12, "fp16": 835.5e12, "bf16": 835.5e12, "int8": 1670.5e12}
_SHEET = "NVIDIA data sheet, without sparsity"

# By words that all occur in the name that CUDA gives the device; the first that fits counts.
SPECIFICATIONS: tuple[tuple[tuple[str, ...], Device], ...] = (
    (("H200", "NVL"), Device("H200 NVL", _NVL, 4.8e12, source=_SHEET)),
    (("H100", "NVL"), Device("H100 NVL", _NVL, 3.9e12, source=_SHEET)),
    (("H200",), Device("H200 SXM", _HOPPER, 4.8e12, source=_SHEET)),
    (("H100", "PCIe"), Device("H100 PCIe", _PCIE, 2.0e12, source=_SHEET)),
    (("H100", "HBM3"), Device("H100 SXM", _HOPPER, 3.35e12, source=_SHEET)),
    (("A100", "SXM4", "80GB"), Device("A100 SXM 80 GB", _AMPERE, 2.039e12, source=_SHEET)),
    (("A100", "80GB"), Device("A100 PCIe 80 GB", _AMPERE, 1.935e12, source=_SHEET)),
    (("A100", "40GB"), Device("A100 40 GB", _AMPERE, 1.555e12, source=_SHEET)),
)


def specification(device_name: str) -> Device | None:
    """The data sheet of a GPU by the name that CUDA gives it; None where none is known.

    Processors have none here: what they reach depends on clocks, cores and licences, and is
    measured instead.
    """
    for words, device in SPECIFICATIONS:
        if all(word in device_name for word in words):
            return device
    return None
