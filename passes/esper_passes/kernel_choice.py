"""Whether a kernel is chosen: what is known of its speed here, or is measured once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from esper.gate.backends import backend, usable
from esper.gate.backends.base import Context as Place
from esper.propose import LowerGatedMlp, LowerLinear, ProposalBase, SelectBackend
from esper_passes.choice_cache import ChoiceCache
from esper_passes.contest import Contest, Ground, fight
from esper_passes.packed_weight import trains
from esper_passes.working_set import working_set

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.passbase import Context
    from esper_passes.duel import Ratio

Freeze = Literal["auto", "yes", "no"]


class Chooser:
    """What one run of a pass knows: the device, the objective, and where the model runs.

    Args:
        model: whose layers are looked at.
        context: what the pass was given.
        proposer: its name.
        freeze: whether packed weights stop to train; `auto` where that pays: on a CPU, when
            inference is judged.
    """

    def __init__(
        self, model: Model, context: Context, proposer: str, freeze: Freeze = "auto"
    ) -> None:
        self._model, self._proposer = model, proposer
        device = next((tensor.device.type for _, tensor in model.all_tensors()), "cpu")
        self._place = (
            Place(threads=torch.get_num_threads(), device=device)
            if context.gate is None
            else context.gate.context
        )
        self._has_kernels = backend(context.backend).custom_ops
        told = context.gate is not None and context.gate.backend != "auto"
        #: The backend that was asked for and has no kernels; empty else.
        self.bound = context.backend if told and not self._has_kernels else ""
        self._cache = ChoiceCache(device, self._place.threads)
        self._working_set = working_set(model, device)
        judged = context.gate is not None and context.gate.objective == "inference"
        on_cpu = self._place.device == "cpu"
        self._freeze = freeze == "yes" or (freeze == "auto" and judged and on_cpu)

    @property
    def trouble(self) -> str:
        """A sentence where what was measured could not be read or kept; else empty."""
        return self._cache.trouble

    def ratio(self, contest: Contest, bar: float = 1.0) -> Ratio:
        """How many times faster the kernel is than the ops that are there.

        Args:
            contest: what competes.
            bar: what the ratio is held against; it is measured until it is above or below.
        """
        ground = Ground(
            self._place.device,
            self._place.objective,
            self._freeze or not self._train(contest),
            self._working_set,
        )
        facts = {
            **contest.facts,
            "objective": ground.objective,
            "working_set": f"{ground.working_set / 2**20:g}MiB",
        }
        if ground.device == "cpu":  # elsewhere it makes no difference
            facts["frozen"] = ground.frozen
        ratio = self._cache.get(facts)
        if ratio is None:
            before = torch.get_num_threads()
            torch.set_num_threads(self._place.threads)
            try:
                ratio = fight(contest, ground, bar)
            finally:
                torch.set_num_threads(before)
            if ratio.clear:  # noise of a busy moment is not remembered
                self._cache.put(facts, ratio)
        return ratio

    def proposal(self, contest: Contest) -> ProposalBase:
        """The proposal of a contest, with the weights frozen where that is wanted."""
        found = contest.proposal
        of_runs = isinstance(found, (LowerLinear, LowerGatedMlp)) and found.rows
        if of_runs and self._freeze and self._train(contest):
            return found.model_copy(update={"freeze": True})
        return found

    def _train(self, contest: Contest) -> bool:
        return any(trains(self._model, name) for name in contest.weights)

    def move(self) -> SelectBackend | None:
        """The proposal to run where kernels run; None where the model does."""
        if self._has_kernels:
            return None
        self._has_kernels = True
        name = "eager" if usable("inductor", self._place) else "inductor"
        return SelectBackend.model_validate({"backend": name, "proposer": self._proposer})
