"""What is timed: a way to compute a layer, ours or a peer's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from esper_kernels.roofline import Work

if TYPE_CHECKING:
    from esper_kernel_bench.problem import Problem

Call = Callable[[Tensor], Any]
"""From the input to the output of a layer, with weights of its own."""


@dataclass(frozen=True)
class Built:
    """A contender for one layer, packed and ready to be copied.

    Attributes:
        make: a call with a fresh copy of the packed weights, so that calls can rotate through
            more memory than the cache holds.
        bytes: of such a copy.
        reference: what the outputs at `Problem.checked` must be, float32.
        tolerance: of the relative error of outputs, in the Frobenius norm.
        work: what a call on that many rows has to do.
    """

    make: Callable[[], Call]
    bytes: int
    reference: Tensor
    tolerance: float
    work: Callable[[int], Work]


class AbsentError(Exception):
    """A contender cannot take part; the text says why."""


@dataclass(frozen=True)
class Contender:
    """A way to compute a layer, not built yet.

    Attributes:
        name: `esper NAME` for ops of ours, the library's name for peers.
        role: `again` is a second copy of the baseline, which shows what noise looks like.
        compression: of the weights; a peer stands beside all ours when it is `dense` or `int8`,
            otherwise beside those of equal density.
        build: packs the weights. Whatever it raises keeps the contender out, with that reason.
    """

    name: str
    role: Literal["esper", "peer", "dense", "again"]
    compression: str
    density: float
    build: Callable[[Problem], Built]

    @property
    def key(self) -> str:
        """Unlike that of every other contender of a panel."""
        if self.role != "esper" and self.compression in ("dense", "int8"):
            return self.name
        return f"{self.name} | {self.compression}"


def copying(run: Callable[..., Any], weights: Sequence[Tensor | None]) -> Callable[[], Call]:
    """Calls `run(x, *weights)`, each with copies of the weights of its own."""

    def make() -> Call:
        own = [None if w is None else w.clone() for w in weights]
        return lambda x: run(x, *own)

    return make


def sides(weight: Tensor) -> tuple[int, int]:
    """Outputs and inputs of a weight, sparse ones too."""
    outputs, inputs = weight.shape
    return outputs, inputs


def nbytes(weights: Sequence[Tensor | None]) -> int:
    """Bytes of all tensors."""
    return sum(w.nbytes for w in weights if w is not None)
