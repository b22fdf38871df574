"""Boundary signals: what the loss says about axes, phages and slots, without counterfactuals.

Every k-th optimizer step is a sample. Signals of units come from weights and their gradients as
the optimizer sees them (unscaled, accumulated, clipped); those of phages and slots come from taps
in that step's forward and backward pass (`esper.live.taps`), or, where the model is compiled, from
the weights of the layer that makes the value. Training is the same in every bit.

    signals = session.signals
    signals["phage:block"].dmask          # the loss changes by about -dmask without it
    signals.units("axis:block.0/neurons").saliency
"""

from __future__ import annotations

import inspect
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch

from esper.errors import UsageError
from esper.ir.emptied import unheard
from esper.ir.sparsity import masks, owner
from esper.live import sampling
from esper.live.parts import Parts, parts
from esper.live.running import Running
from esper.live.signal import Signal, UnitSignals
from esper.live.taps import Collector, listening, tapped
from esper.live.unit_places import UnitReader
from esper.live.watched import Watched, WeightSaliency
from esper.propose import PruneUnits, RegrowMask, SetMask
from esper.state import digest

if TYPE_CHECKING:
    from esper.ir.model import Model

EVERY = 50
_MEMORY = 20  # samples that a mean reaches back


class Signals(Mapping[str, Signal]):
    """Signals by ID of axes, phages and slots; made and kept up to date by a session.

    Args:
        model: the live model.
        optimizers: the first one's steps are counted; it should step before the others.
        scaler: the GradScaler of the step, if any.
        every: optimizer steps from one sample to the next, beginning with the first; 0 for none.
    """

    def __init__(
        self,
        model: Model,
        optimizers: Sequence[torch.optim.Optimizer],
        scaler: Any = None,
        every: int = EVERY,
    ) -> None:
        if every < 0:
            raise UsageError(f"signals are sampled every k-th step, and k is not {every}")
        self.every = every
        self.step = 0
        self.watched = Watched(_MEMORY)
        self._model, self._optimizers, self._scaler = model, list(optimizers), scaler
        self._units = Running(("dmask", "square", "gradient"), ("quiet", "last"), _MEMORY)
        self._parts = Running(sampling.FIGURES, (), _MEMORY)
        self._vectors: dict[str, torch.Tensor] = {}  # last gradients of phages and slots
        self._collector: Collector | None = None
        self.uncompiled = False  # whether a compiled model's samples may run as traced
        self.prices: list[float] = []  # seconds of each step that did
        self.told: Callable[[float], None] = lambda seconds: None  # each price, as it is known
        self._begun: float | None = None  # when the forward call of such a step began
        self._compiled: list[Any] = []  # the compiled call that stands back for it
        self._kept: dict[str, str] = {}  # tensor -> digest of its scores in the model's payloads
        # Of the present structure, made when first needed:
        self._reader: UnitReader | None = None
        self._found: Parts | None = None
        self._tapped: dict[bool, Callable[..., Any]] = {}  # by mode of the model
        self._read: dict[str, Signal] | None = None
        step, self._call = _weakly(self)
        handle = optimizers[0].register_step_pre_hook(step) if every else None
        self._end = weakref.finalize(self, _release, weakref.ref(model), handle, self._compiled)
        self._arm()

    # -- the mapping -----------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Signal:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def units(self, axis: str) -> UnitSignals:
        """Signals of an axis's units. Raises KeyError for an axis of which there are none."""
        reader = self._current()
        units = reader.segments[axis]
        at = self._units.place(axis)
        dmask, square, gradient = self._units.known()[:, at : at + len(units)].cpu()
        quiet = self._units.extras["quiet"][at : at + len(units)].cpu()
        exact = reader.sources[axis].exact
        return UnitSignals(units, dmask, square.sqrt(), gradient.sqrt(), quiet, exact)

    def scores(self, tensor: str, saliency: WeightSaliency) -> torch.Tensor:
        """How much each entry of a weight matters, as `Watched.scores` says."""
        return self.watched.scores(self._model, tensor, saliency)

    def gates(self, tensor: str) -> torch.Tensor:
        """dL/d(gate) of each cell of a watched weight's mask, as `Watched.gates` says.

        Raises UsageError where there is no mask with its pattern.
        """
        mask = masks(self._model).get(tensor)
        if mask is None or not mask.intact:
            raise UsageError(f"{tensor} has no mask that has its pattern: propose set-mask first")
        return self.watched.gates(self._model, mask)

    # -- proposals -------------------------------------------------------------------------------

    def mask(
        self, tensor: str, pattern: str, saliency: WeightSaliency = "magnitude", **fields: Any
    ) -> SetMask:
        """A proposal to mask a weight by what was sampled (`Watched.scores`).

        It names the phage that holds the weight, so that its locks and leases count.
        """
        scores = "" if saliency == "magnitude" else self._keep(tensor, saliency)
        fields.setdefault("phage", owner(self._model, tensor))
        return SetMask(tensor=tensor, pattern=pattern, scores=scores, **fields)

    def regrow(self, tensor: str, **fields: Any) -> RegrowMask:
        """A proposal to regrow a mask by the dense gradients that were sampled."""
        fields.setdefault("phage", owner(self._model, tensor))
        return RegrowMask(tensor=tensor, gradient=self._keep(tensor, "gradient"), **fields)

    def dead(self, samples: int = 5, **fields: Any) -> list[PruneUnits]:
        """Proposals to cut units that masks left without outgoing weights, and units out of which
        nothing came in the last samples. At least one unit of an axis stays.
        """
        found: list[PruneUnits] = []
        silent = unheard(self._model)
        for name, axis in self._model.anatomy.axes.items():
            units = set(silent.get(name, ()))
            if name in self._current().segments:
                told = self.units(name)
                quiet = (told.quiet >= samples).tolist() if told.exact else []
                units.update(
                    u for u, is_quiet in zip(told.unit_ids, quiet, strict=False) if is_quiet
                )
            chosen = [unit for unit in axis.unit_ids if unit in units][: axis.size - axis.least]
            if chosen and axis.cuttable:
                evidence: dict[str, float | int | str] = {
                    "samples": samples, "without_weights": len(silent.get(name, ()))
                }  # fmt: skip
                found.append(
                    PruneUnits(axis=name, units=tuple(chosen), evidence=evidence, **fields)
                )
        return found

    def _keep(self, tensor: str, saliency: WeightSaliency) -> str:
        """Put scores where a rewrite finds them; those of before are forgotten."""
        scores = self.scores(tensor, saliency)
        self._model.payloads.pop(self._kept.pop(tensor, ""), None)
        self._kept[tensor] = label = digest(scores)
        self._model.payloads[label] = {"scores": scores}
        return label

    def _all(self) -> dict[str, Signal]:
        if self._read is None:
            exact = {name: s.exact for name, s in self._current().sources.items()}
            means, counts = self._parts.known().T.tolist(), self._parts.count.T.tolist()
            self._read = {
                name: sampling.signal(name, mean, count, exact.get(name, True))
                for name, mean, count in zip(self._parts.segments, means, counts, strict=True)
            }
        return self._read

    # -- following the session -------------------------------------------------------------------

    def watch(self, *tensors: str, uncompiled: bool = False) -> None:
        """Also keep gradients of every entry of these weights, from the next sample on.

        Those of a masked weight are dense: they say what each entry would do that is off. A
        compiled model has none, as they are values inside its code.

        Args:
            tensors: names of parameters.
            uncompiled: from now on a compiled model runs its sampled steps as traced, as long as
                masked weights are watched, so that these gradients are heard. `prices` tells what
                such a step took, and so does the flight record; its rounding is not that of
                compiled code.

        Raises:
            UsageError: for what is no parameter.
        """
        known = dict(self._model.named_parameters())
        for name in tensors:
            if name not in known:
                raise UsageError(f"there is no parameter {name!r} to watch")
        self.watched.start(tensors)
        self.uncompiled = self.uncompiled or uncompiled
        self.renew()

    def renew(self) -> None:
        """The structure changed: look at it anew before the next sample."""
        self._reader = self._found = self._read = self._collector = None
        self._tapped.clear()
        self._arm()

    def close(self) -> None:
        """Take no more samples."""
        self._end()

    def state_dict(self) -> dict[str, Any]:
        """Everything that later signals depend on (tensors are not copies)."""
        return {
            "step": self.step,
            "units": self._units.state_dict(),
            "parts": self._parts.state_dict(),
            "vectors": dict(self._vectors),
            "watched": self.watched.state_dict(),
            "uncompiled": self.uncompiled,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.step = state["step"]
        self._units.load_state_dict(state["units"])
        self._parts.load_state_dict(state["parts"])
        self._vectors = {name: vector.clone() for name, vector in state["vectors"].items()}
        self.watched.load_state_dict(state["watched"])
        self.uncompiled = state["uncompiled"]
        self.renew()

    # -- sampling --------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Tap the coming step if it is a sample and the model runs eagerly, else none."""
        model = self._model
        due = self.every > 0 and self.step % self.every == 0 and self._end.alive
        _compiled_again(model, self._compiled)
        if due and (not model.compiled or self._runs_uncompiled()):
            if model._compiled_call_impl is not None:
                self._compiled.append(model._compiled_call_impl)
                model._compiled_call_impl = model._call_impl
            # Whoever traces the model in between looks for its parameters' names.
            own = MethodType(type(model).forward, model)
            setattr(self._call, "__signature__", inspect.signature(own))  # noqa: B010
            model.__dict__["forward"] = self._call
        else:
            model.__dict__.pop("forward", None)

    def _runs_uncompiled(self) -> bool:
        return self.uncompiled and bool(self._now().dense)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        """The forward call of a sampled step."""
        model = self._model
        if not torch.is_grad_enabled():
            return type(model).forward(model, *args, **kwargs)
        if self._begun is None and model.compiled:
            self._begun = time.perf_counter()
        taps = self._now().taps
        if model.training not in self._tapped:
            self._tapped[model.training] = tapped(model, taps)
        if self._collector is None:
            self._collector = Collector(taps)
        with listening(self._collector):
            return self._tapped[model.training](model, *args, **kwargs)

    def _before_step(self) -> None:
        if self.step % self.every == 0:
            with torch.no_grad():
                self._sample()
        if self._begun is not None:
            self.prices.append(time.perf_counter() - self._begun)
            self._begun = None
            self.told(self.prices[-1])
        self._collector = None
        self.step += 1
        self._arm()

    def _sample(self) -> None:
        reader, found, factors = self._current(), self._now(), self._factors()
        device, unscale = self._device(), 1 / self._scale()
        dmask, square = (values.double() for values in reader.sample(factors))
        extras, again = self._units.extras, self._units.count[0] > 0
        figures = [sampling.axes(reader, dmask, square, extras["last"], again)]
        names = list(self._parts.segments)[len(reader.segments) :]
        heard = self._collector
        if heard is not None:
            vectors = self._vectors
            figures += [sampling.tapped_parts(names, found, heard, unscale, vectors, device)]
        else:
            figures += [sampling.weighed_parts(names, found, self._model, factors, device)]
        self._parts.add(torch.cat(figures, 1))
        self._units.add(torch.stack([dmask, dmask.square(), square]))
        extras["quiet"] = torch.where(square == 0, extras["quiet"] + 1, 0.0)
        extras["last"] = dmask
        self.watched.add(self._model, self._gradients(found, heard, factors, unscale))
        self._read = None

    def _gradients(
        self, found: Parts, heard: Collector | None, factors: Mapping[int, float], unscale: float
    ) -> dict[str, torch.Tensor | None]:
        """Gradients of the watched weights: dense ones of what is masked, where they were heard."""
        gradients: dict[str, torch.Tensor | None] = {}
        if not self.watched.tensors:
            return gradients
        living = dict(self._model.named_parameters())
        for name in self.watched.tensors.keys() & living.keys():
            if name in found.dense:
                whole = None if heard is None else heard.heard[found.dense[name]].whole
                gradients[name] = None if whole is None else whole * unscale
            else:
                grad = living[name].grad
                factor = factors.get(id(living[name]), 1.0)
                gradients[name] = None if grad is None else grad.detach() * factor
        return gradients

    def _now(self) -> Parts:
        if self._found is None:
            self._found = parts(self._model, tuple(self.watched.tensors))
        return self._found

    def _current(self) -> UnitReader:
        """The reader of the present structure; running means follow it."""
        if self._reader is None:
            device = self._device()
            self._reader = UnitReader(self._model, device)
            found = self._now()
            names = dict.fromkeys([*self._reader.segments, *found.value, *found.alpha])
            self._units.follow(self._reader.segments, device)
            self._parts.follow(dict.fromkeys(names, (0,)), device)
        return self._reader

    def _device(self) -> torch.device:
        return next((p.device for p in self._model.parameters()), torch.device("cpu"))

    def _scale(self) -> float:
        scaler = self._scaler
        return 1.0 if scaler is None or not scaler.is_enabled() else float(scaler.get_scale())

    def _factors(self) -> dict[int, float]:
        """By parameter, what undoes the scale of gradients that are still scaled."""
        factors: dict[int, float] = {}
        if self._scaler is None or not self._scaler.is_enabled():
            return factors
        for optimizer in self._optimizers:
            # Fused optimizers unscale in their kernel, others before their step.
            if self._scaler._per_optimizer_states[id(optimizer)]["stage"].name == "READY":
                held = (p for group in optimizer.param_groups for p in group["params"])
                factors.update(dict.fromkeys(map(id, held), 1 / self._scale()))
        return factors


def _weakly(signals: Signals) -> tuple[Callable[..., None], Callable[..., Any]]:
    """A step hook and a forward call that keep neither signals nor model alive."""
    own, model_of = weakref.ref(signals), weakref.ref(signals._model)

    def step(*_: Any) -> None:
        living = own()
        if living is not None:
            living._before_step()

    def forward(*args: Any, **kwargs: Any) -> Any:
        living, model = own(), model_of()
        if living is None or torch.compiler.is_compiling():
            return type(model).forward(model, *args, **kwargs)  # type: ignore[union-attr]
        return living._forward(*args, **kwargs)

    return step, forward


def _compiled_again(model: Model, compiled: list[Any]) -> None:
    """Compiled code runs again, unless the model was compiled anew meanwhile."""
    if compiled and model._compiled_call_impl == model._call_impl:
        model._compiled_call_impl = compiled[-1]
    compiled.clear()


def _release(model: weakref.ref[Model], handle: Any, compiled: list[Any]) -> None:
    if handle is not None:
        handle.remove()
    living = model()
    if living is not None:
        living.__dict__.pop("forward", None)
        _compiled_again(living, compiled)
