"""Proposals on the masks of weights: dynamic sparse training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from esper.propose.base import ProposalBase, Tolerance


class _OnTensor(ProposalBase):
    """A proposal on one weight.

    Attributes:
        tensor: name of the weight.
        phage: ID of the phage that holds it, where its rules shall count.
    """

    tensor: str
    phage: str = ""

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.tensor, self.phage) if self.phage else (self.tensor,)

    @property
    def tolerance(self) -> Tolerance:
        return "lossy"


class SetMask(_OnTensor):
    """Mask a weight: what matters least in each group is off. Moments of what is off are zeroed.

    Exact against the model with these entries at zero. A mask that is there is replaced; entries
    that come on by that start at zero.

    Attributes:
        pattern: N:M, V:N:M, V:N:MxC or RxC (`esper.ir.patterns`).
        density: share of blocks that stay on; of no meaning for N:M.
        dim: dim along which groups run; by default the one that is contracted.
        scores: digest of a payload `{"scores": tensor}` of the weight's shape, higher matters
            more; by default magnitudes.
    """

    type: Literal["set-mask"] = "set-mask"
    pattern: str
    density: float = Field(default=0.5, gt=0, lt=1)
    dim: int | None = Field(default=None, ge=0, le=1)
    scores: str = ""


class RegrowMask(_OnTensor):
    """Turn cells of least magnitude off and as many others on, within the pattern.

    RigL (Evci et al., arXiv:1911.11134): those with the largest dense gradient grow, from zero. In
    N:M patterns one cell of a group changes at a time.

    Attributes:
        fraction: share of live cells that change.
        until: tick at which the fraction has fallen to zero along a cosine; 0 for no decay.
        grow: by gradient, or at random (SET, arXiv:1707.04780).
        gradient: digest of a payload `{"scores": tensor}` with sizes of dense gradients.
        seed: of what is drawn.
    """

    type: Literal["regrow-mask"] = "regrow-mask"
    fraction: float = Field(default=0.3, gt=0, le=1)
    until: int = Field(default=0, ge=0)
    grow: Literal["gradient", "random"] = "gradient"
    gradient: str = ""
    seed: int = 0


class GateCells(_OnTensor):
    """Turn single cells of a mask off or on, by number (`Pattern.cells`, groups one by one).

    Attributes:
        off, on: numbers of cells. Those that come on start at zero.
    """

    type: Literal["gate-cells"] = "gate-cells"
    off: tuple[int, ...] = ()
    on: tuple[int, ...] = ()


class ClearMask(_OnTensor):
    """Take a mask away; what was off has the value again that it kept."""

    type: Literal["clear-mask"] = "clear-mask"


class FoldMask(_OnTensor):
    """Take a mask away and put zeros where it was off: the function stays, the weight is dense."""

    type: Literal["fold-mask"] = "fold-mask"

    @property
    def tolerance(self) -> Tolerance:
        return "exact"
