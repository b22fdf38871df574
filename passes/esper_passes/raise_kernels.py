"""The pass that takes custom kernels out again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from esper.passbase import Context, Pass, Proposals, Remark
from esper.propose import RaiseKernel
from esper_passes.raise_kernel import lowered

if TYPE_CHECKING:
    from esper.ir.model import Model


@dataclass(frozen=True)
class RaiseKernels(Pass):
    """Unpack what lower-kernels packed: dense weights and plain ops, which every format can hold.

    The model computes the same and gets no faster: run it with --no-gate.
    """

    name: ClassVar[str] = "raise-kernels"
    aim: ClassVar[Literal["speed", "repair", "cleanup"]] = "cleanup"

    def propose(self, model: Model, context: Context) -> Proposals:
        """One proposal for each kernel, in graph order."""
        names = lowered(model)
        for name in names:
            yield RaiseKernel(node=name, proposer=self.name)
        if not names:
            yield Remark("analysis", "no-kernel", "no node calls a kernel of esper_kernels")
