"""The pass that widens: more room for training to use."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar, Literal

from esper.passbase import Context, Pass, Proposals, Remark
from esper.propose import WidenUnits
from esper_passes.choice import chosen_axes

if TYPE_CHECKING:
    from esper.ir.model import Model


@dataclass(frozen=True)
class Widen(Pass):
    """Add units to axes without changing the function: room for training, not speed."""

    name: ClassVar[str] = "widen"
    aim: ClassVar[Literal["speed", "repair", "cleanup"]] = "cleanup"

    axes: str = field(
        default="any",
        metadata={"doc": "any, a kind (heads, neurons, channels, ...), or a glob over axis IDs"},
    )
    only: str = field(default="*", metadata={"doc": "glob over axis IDs, beside `axes`"})
    ratio: float = field(default=1.25, metadata={"doc": "new size over present size, above 1"})
    align: int = field(default=1, metadata={"doc": "new sizes are rounded up to multiples of this"})
    init: Literal["zero", "net2net", "masked", "rms", "random"] = field(
        default="zero",
        metadata={"doc": "zero, net2net and masked keep the function, rms and random do not"},
    )
    lossy: bool = field(
        default=False,
        metadata={"doc": "also widen axes that share statistics where that changes the function"},
    )

    def __post_init__(self) -> None:
        if not self.ratio > 1:
            raise ValueError("ratio must be above 1")
        if self.align < 1:
            raise ValueError("align must be at least 1")

    def propose(self, model: Model, context: Context) -> Proposals:
        """One proposal for each axis."""
        axes = [a for a in chosen_axes(model, self.axes) if fnmatchcase(a.id, self.only)]
        if not axes:
            yield Remark(
                "missed",
                "no-axis",
                f"no axis that may change size matches {self.axes!r} and {self.only!r}",
                remedy="see `esper inspect` for axes and what freezes them",
            )
        for axis in axes:
            size = -(-round(axis.size * self.ratio) // self.align) * self.align
            if size <= axis.size:
                yield Remark(
                    "missed",
                    "nothing-to-add",
                    f"{axis.id} keeps its {axis.size} units at ratio {self.ratio:g}",
                    axis.id,
                    "a larger ratio or alignment widens it",
                )
                continue
            yield WidenUnits(
                axis=axis.id,
                count=size - axis.size,
                init=self.init,
                lossy=self.lossy,
                seed=context.seed,
                proposer=self.name,
            )
