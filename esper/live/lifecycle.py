"""What a session does to its slots by itself, once a boundary.

Alpha follows its curve: a write into a buffer, so the graph stays and nothing is compiled anew.
Figures are measured, and where the criteria of a gate (`esper.ecology.criteria`) are met the
transition is proposed like any other change, with the figures as its evidence. A seed that fails
a fatal criterion, or outlasts the patience of its gate, is culled.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from esper.apply import Journal
from esper.ecology import curves
from esper.ecology.criteria import GATES, StageGate
from esper.ecology.order import stage_of
from esper.ecology.windows import trend, worse
from esper.ir.ecology import SlotLife
from esper.live.averages import AverageFollower
from esper.propose import AdvanceSeed, CullSeed

if TYPE_CHECKING:
    from esper.boundary import Boundary
    from esper.ir.model import Model
    from esper.session import Session

_RECENT = 5  # gradient norms that are compared with as many before
_YOUNG = ("incubating", "blending", "holding")


class Lifecycle:
    """Moves seeds through their stages.

    Args:
        gates: what each transition asks for.
        window: losses that are compared before and after, and ticks between two attempts at a
            transition that was refused.
        quarantine: ticks that a slot rests after a cull.
    """

    def __init__(
        self, gates: Sequence[StageGate] = GATES, *, window: int = 20, quarantine: int = 50
    ) -> None:
        self.gates = tuple(gates)
        self.window = window
        self.quarantine = quarantine
        self.losses: deque[float] = deque(maxlen=window)
        self._norms: dict[str, list[float]] = {}  # slot -> of the seed's gradient, since planted
        self._before: dict[str, list[float]] = {}  # slot -> losses before it blended
        self._after: dict[str, list[float]] = {}  # slot -> losses on probation
        self._waits: dict[str, int] = {}  # slot -> no further attempt before that tick
        self._journal = Journal()

    # -- one boundary ----------------------------------------------------------------------------

    def open(self, boundary: Boundary) -> None:
        """Measure, move alpha, propose what is due. Called as a boundary opens."""
        self._journal = Journal()
        self._journal.add(partial(self.load_state_dict, self.state_dict()))
        session, loss = boundary.session, boundary._loss()
        if loss is not None:
            self._hear(session.model, loss)
        slots = session.model.ecology.slots()
        for name in [name for name in self._norms if name not in slots]:
            self._forget(name)
        for name, life in slots.items():
            if life.stage == "quarantined":
                self._rest(session, name, life)
            elif life.stage in _YOUNG:
                self._listen(session.model, name, life)
                if life.stage == "blending":
                    self._move(session, name, life)
                self._judge(boundary, name, life)
            else:
                self._forget(name)

    def undo(self) -> None:
        """Take back what `open` did besides its proposals: the boundary failed."""
        self._journal.roll_back()

    def _hear(self, model: Model, loss: float) -> None:
        for name, life in model.ecology.slots().items():
            if life.stage == "blending":
                self._before.setdefault(name, list(self.losses))
            elif life.stage == "holding":
                self._after.setdefault(name, []).append(loss)
        self.losses.append(loss)

    def _listen(self, model: Model, name: str, life: SlotLife) -> None:
        """The norm of the gradient that the seed received in the last step."""
        gradients = [p.grad for p in self._parameters(model, life) if p.grad is not None]
        if gradients and life.stage == "incubating":
            norm = torch.linalg.vector_norm(
                torch.stack([torch.linalg.vector_norm(g) for g in gradients])
            )
            self._norms.setdefault(name, []).append(float(norm))

    @staticmethod
    def _parameters(model: Model, life: SlotLife) -> list[torch.nn.Parameter]:
        try:
            seed = model.get_submodule(life.seed)
        except AttributeError:  # it has no tensors, or went with its host
            return []
        return [p for p in seed.parameters() if p.requires_grad]

    def _rest(self, session: Session, name: str, life: SlotLife) -> None:
        """A quarantine ends by the clock."""
        self._forget(name)
        if stage_of(life, session.tick) != "dormant":
            return
        awake = life.model_copy(update={"stage": "dormant", "since": session.tick})
        for model in _models(session):
            self._journal.add(partial(model.ecology.set, name, model.ecology.lives.get(name)))
            model.ecology.set(name, awake)
        criteria = {"tick": session.tick, "quarantine-until": life.quarantine_until}
        session.diary.transition(name, "quarantined", "dormant", "quarantine", criteria)

    def _move(self, session: Session, name: str, life: SlotLife) -> None:
        """Alpha of this tick, in the model and in its averages."""
        assert life.blend is not None
        value = curves.alpha(life.blend, session.tick - life.since)
        for model in _models(session):
            alpha = model.tensor(life.alpha)
            if alpha is not None:
                self._journal.add(partial(_set, alpha, alpha.clone()))
                alpha.fill_(value)
        session.diary.metric(f"alpha/{name}", value)

    # -- judging ---------------------------------------------------------------------------------

    def figures(self, model: Model, name: str) -> dict[str, float]:
        """What is known of the seed in a slot, by the names that criteria use.

        A figure that cannot be told yet is left out.
        """
        life = model.ecology.slot(name)
        found: dict[str, float] = {"ticks": model.ecology.tick - life.since}
        alpha = model.tensor(life.alpha) if life.alpha else None
        if alpha is not None:
            found["alpha"] = float(alpha)
        norms = self._norms.get(name, [])
        if life.stage == "incubating" and not self._parameters(model, life):
            found |= {"gradient-finite": 1, "gradient-trend": 0}  # nothing to learn
        elif norms:
            found["gradient-finite"] = float(all(map(math.isfinite, norms)))
            rising = trend(norms, _RECENT)
            if rising is not None and math.isfinite(rising):
                found["gradient-trend"] = rising
        before, after = self._before.get(name, []), self._after.get(name, [])
        if life.stage == "holding" and min(len(before), len(after)) >= self.window:
            found |= worse(before[-self.window :], after[-self.window :])
        return found

    def _judge(self, boundary: Boundary, name: str, life: SlotLife) -> None:
        model = boundary.session.model
        if self._waits.get(name, 0) > model.ecology.tick:
            return
        figures = self.figures(model, name)
        proposal = self._due(name, life, figures, lost=life.output not in model.nodes)
        if proposal is None:
            return
        (record,) = boundary.submit(proposal)
        if record.kind != "passed":
            self._waits[name] = model.ecology.tick + self.window

    def _due(
        self, name: str, life: SlotLife, figures: Mapping[str, float], lost: bool
    ) -> AdvanceSeed | CullSeed | None:
        """The transition that the figures ask for."""
        assert life.blend is not None

        def cull(reason: str) -> CullSeed:
            return CullSeed(
                slot=name,
                reason=reason,
                quarantine=self.quarantine,
                proposer="lifecycle",
                evidence=dict(figures),
            )

        if lost:
            return cull("its host was removed")
        if life.stage == "blending" and life.blend.end != 1:
            done = figures["ticks"] >= life.blend.ticks
            return cull(f"it was blended out to {life.blend.end:g}") if done else None
        for gate in self.gates:
            if gate.before != life.stage:
                continue
            fatal = [c for c in gate.failing(figures) if c.fatal]
            if fatal:
                return cull(f"gate {gate.name}: {fatal[0].text()} is not met")
            if gate.passes(figures):
                return AdvanceSeed(
                    slot=name, to=gate.to, proposer="lifecycle", evidence=dict(figures)
                )
            if gate.patience and figures["ticks"] >= gate.patience:
                return cull(f"gate {gate.name}: not passed in {gate.patience} ticks")
        return None

    # -- state -----------------------------------------------------------------------------------

    def _forget(self, name: str) -> None:
        for memory in (self._norms, self._before, self._after, self._waits):
            memory.pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        """Everything measured so far, as plain data."""
        return {
            "losses": list(self.losses),
            "norms": {name: list(norms) for name, norms in self._norms.items()},
            "before": {name: list(losses) for name, losses in self._before.items()},
            "after": {name: list(losses) for name, losses in self._after.items()},
            "waits": dict(self._waits),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.losses.clear()
        self.losses.extend(state["losses"])
        self._norms = {name: list(norms) for name, norms in state["norms"].items()}
        self._before = {name: list(losses) for name, losses in state["before"].items()}
        self._after = {name: list(losses) for name, losses in state["after"].items()}
        self._waits = dict(state["waits"])


def _set(tensor: torch.Tensor, value: torch.Tensor) -> None:
    tensor.copy_(value)


def _models(session: Session) -> list[Model]:
    """The live model and its averages."""
    averages = [f.average for f in session.followers if isinstance(f, AverageFollower)]
    return [session.model, *averages]
