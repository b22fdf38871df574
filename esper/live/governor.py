"""The governor: notices that training has broken, by the loss alone."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from esper.ecology import ledger

if TYPE_CHECKING:
    from esper.ir.ecology import Ecology
    from esper.propose import Proposal

Charge = tuple[str, str]  # page of the immune ledger, and the proposal type that is blamed


@dataclass
class Governor:
    """Judges each loss against its own recent past.

    A loss has broken out when it is not finite, or lies above the median of the window by more
    than `deviations` robust standard deviations (1.4826 times the median absolute deviation,
    Rousseeuw and Croux 1993) *and* by more than `factor` times the median's size. The second
    condition keeps a long quiet plateau from making small waves look like disasters.

    Attributes:
        window: how many losses are remembered.
        least: how many there must be before anything but a non-finite loss is judged.
        deviations, factor: the two thresholds.
        limit: rollbacks to the same keyframe before the governor gives up and raises.
    """

    window: int = 64
    least: int = 16
    deviations: float = 10.0
    factor: float = 2.0
    limit: int = 3
    losses: deque[float] = field(default_factory=deque)

    def judge(self, loss: float) -> str:
        """Why training must go back, or "". A good loss joins the window."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if len(self.losses) >= self.least:
            middle = statistics.median(self.losses)
            spread = 1.4826 * statistics.median(abs(x - middle) for x in self.losses)
            bound = middle + max(self.deviations * spread, (self.factor - 1) * abs(middle))
            if loss > bound:
                return (
                    f"the loss {loss:.4g} is far above its recent median {middle:.4g} "
                    f"(bound {bound:.4g} over {len(self.losses)} losses)"
                )
        self.losses.append(loss)
        while len(self.losses) > self.window:
            self.losses.popleft()
        return ""


def charges(proposal: Proposal) -> list[Charge]:
    """What a proposal is charged with when training broke after it: it may be what broke it."""
    if not ledger.acts(proposal):
        return []
    return [(page, proposal.type) for page in ledger.blamed(proposal)]


def charge(ecology: Ecology, charged: Iterable[Charge]) -> None:
    """Antibodies against doing the same again."""
    for name, against in charged:
        page = ecology.immunity(name)
        ecology.set(name, ledger.charged(page, ecology.tick, against, ecology.terms))
