"""What the door would say to a proposal, remembered while nothing changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esper.contracts import check
from esper.plan import Refusal

if TYPE_CHECKING:
    from esper.manager import PassManager
    from esper.propose import Proposal


class Refusals:
    """Asks the pass manager, and does not ask twice.

    The contract looks at the clock, so its answers hold for one tick; plans look at structure,
    lives and payloads alone, so theirs hold until one of these changes. Masks of agents come from
    here: what they forbid is what the manager would refuse, no more and no less.
    """

    def __init__(self, manager: PassManager) -> None:
        self._manager = manager
        self._tick = -1
        self._checked: dict[str, Refusal | None] = {}
        self._state: tuple[object, ...] = ()
        self._planned: dict[str, Refusal | None] = {}

    def of(self, proposal: Proposal) -> Refusal | None:
        """The refusal that the proposal would meet now; None where it would be planned."""
        self._forget()
        key = proposal.model_dump_json()
        if key not in self._checked:
            self._checked[key] = check(self._manager.model, proposal)
        refusal = self._checked[key]
        if refusal is not None:
            return refusal
        if key not in self._planned:
            self._planned[key] = self._plan(proposal)
        return self._planned[key]

    def _plan(self, proposal: Proposal) -> Refusal | None:
        plan = self._manager.plan(proposal)
        if isinstance(plan, Refusal):
            return plan
        return Refusal("no-change", "nothing would change") if plan.empty else None

    def _forget(self) -> None:
        model = self._manager.model
        last = model.history[-1] if model.history else None
        state = (model.anatomy, last, *model.ecology.lives.values(), *model.payloads.values())
        same = len(state) == len(self._state) and all(
            new is old for new, old in zip(state, self._state, strict=True)
        )
        if not same:
            self._state = state  # held, so that no other object takes an identity over
            self._planned.clear()
        if not same or model.ecology.tick != self._tick:
            self._tick = model.ecology.tick
            self._checked.clear()
