"""Proposals that grow: more units, more layers, larger kernels, parallel branches."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from esper.propose.base import ProposalBase, Tolerance

Init = Literal["zero", "net2net", "random", "masked", "rms", "gradmax"]
_PRESERVING = ("zero", "net2net", "masked", "gradmax")


class WidenUnits(ProposalBase):
    """Add units to an axis, in every tensor that holds it. They come last and get new numbers.

    Attributes:
        axis: axis ID.
        count: how many.
        init: `zero`: what comes into a unit is drawn with the spread of the units that are there,
            what goes out is zero, so the function stays. `net2net`: copies of units, whose outgoing
            weights are split unequally between original and copy, so the function stays and the
            two part ways (Chen, Goodfellow and Shlens, arXiv:1511.05641). `masked`: both sides
            drawn, behind a buffer that masks the units out until `RampUnits` lets them in, so the
            function stays (MSG, arXiv:2305.02869). `gradmax`: what comes in was solved for the
            largest gradient of what goes out, which is zero (after GradMax, arXiv:2201.05125).
            `rms`: both sides drawn, all outgoing weights scaled down such that the root mean
            square of what follows stays (SPARKLING, arXiv:2602.02472); the function changes.
            `random`: both sides drawn; the function changes.
        seed: of all that is drawn.
        sources: the units that are copied, by birth number, as many as `count`; drawn where empty.
        lossy: whether an axis whose units share statistics may grow though the function changes.
        digest: of the solved tensors that `gradmax` needs, in `Model.payloads`.
    """

    type: Literal["widen-units"] = "widen-units"
    axis: str
    count: int = Field(ge=1)
    init: Init = "zero"
    seed: int = 0
    sources: tuple[int, ...] = ()
    lossy: bool = False
    digest: str = ""

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.axis,)

    @property
    def tolerance(self) -> Tolerance:
        return "reassociates" if self.init in _PRESERVING else "lossy"

    @property
    def payload(self) -> str:
        return self.digest


class RampUnits(ProposalBase):
    """Let the units of a `masked` growth in: their mask takes a value, and goes when that is one.

    Attributes:
        axis: axis ID.
        alpha: share of their value that passes.
    """

    type: Literal["ramp-units"] = "ramp-units"
    axis: str
    alpha: float = Field(ge=0, le=1)

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.axis,)

    @property
    def tolerance(self) -> Tolerance:
        return "lossy"


class MergeUnits(ProposalBase):
    """Cut units whose outgoing weights are added to those of others: the inverse of `net2net`.

    The function stays where both compute the same; right after the growth every bit is restored.

    Attributes:
        axis: axis ID.
        units: birth numbers of the units to cut.
        into: the unit that takes over from each.
    """

    type: Literal["merge-units"] = "merge-units"
    axis: str
    units: tuple[int, ...] = Field(min_length=1)
    into: tuple[int, ...] = Field(min_length=1)

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.axis,)

    @property
    def tolerance(self) -> Tolerance:
        return "lossy"


class Deepen(ProposalBase):
    """Insert a new part that is the identity at first, behind a region or a layer.

    Attributes:
        after: a region (`phage:...`) that is copied, with the last projection of its residual
            branches at zero; or a node, behind which a layer with the identity as weight comes.
        name: module path under which the new tensors live; free, and given out once.
        seed: of what is drawn.
    """

    type: Literal["deepen"] = "deepen"
    after: str
    name: str = ""
    seed: int = 0

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.after,)

    @property
    def tolerance(self) -> Tolerance:
        return "reassociates"


class ResizeKernel(ProposalBase):
    """A convolution's kernel grows by a border of zeros; padding grows along: the function stays.

    Attributes:
        node: the convolution.
        size: new size along each dimension; it differs from the present one by an even number.
    """

    type: Literal["resize-kernel"] = "resize-kernel"
    node: str
    size: tuple[int, ...] = Field(min_length=1, max_length=3)

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.node,)


class StageKernel(ProposalBase):
    """A convolution becomes a depthwise one and a pointwise one, fitted to its weight.

    Attributes:
        node: the convolution, of one group.
        multiplier: depthwise filters for each input channel; as many as the kernel has places
            make the fit exact.
    """

    type: Literal["stage-kernel"] = "stage-kernel"
    node: str
    multiplier: int = Field(default=1, ge=1)

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.node,)

    @property
    def tolerance(self) -> Tolerance:
        return "lossy"


class AddBranch(ProposalBase):
    """A parallel branch `gate * f(x)` beside a layer, gate zero at first: the function stays.

    Attributes:
        node: a linear layer or convolution, from whose input the branch reads, and to whose
            output it adds.
        width: hidden units of the branch; none makes it one layer of the shape of `node`.
        seed: of its weights.
    """

    type: Literal["add-branch"] = "add-branch"
    node: str
    width: int = Field(default=0, ge=0)
    seed: int = 0

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.node,)
