"""`esper.Session`: a model that changes its structure while it trains, at boundaries only.

    session = esper.Session(model, optimizer, scheduler=scheduler, recorder="run.esperlog")
    for batch in loader:
        loss = step(session.model, batch)
        with session.boundary(loss) as boundary:
            boundary.submit(*tamiyo.propose(boundary.observation))

Between boundaries the model is closed: an attempt to change it raises. Within one, each proposal
goes through the pass manager, and optimizer, averages and stages follow it or nothing happens.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

from esper.boundary import Boundary
from esper.ecology.events import DropShot, EventBuffer
from esper.errors import BoundaryError, InputError, UsageError
from esper.ir.model import Model
from esper.ir.sleeping import asleep
from esper.live import checkpoint
from esper.live.averages import AverageFollower
from esper.live.blocks import BlockCompiler
from esper.live.compiled import Compilation, CompileMeter
from esper.live.diary import Diary
from esper.live.governor import Governor, charge, charges
from esper.live.lifecycle import Lifecycle
from esper.live.losses import Losses
from esper.live.optimizers import GroupOf, OptimizerFollower
from esper.live.policy import StatePolicy
from esper.live.recording import Recording
from esper.live.refusals import Refusals
from esper.live.signals import EVERY, Signals
from esper.live.warmup import Warmup
from esper.manager import PassManager, Verify
from esper.propose import Wake
from esper.recorder.generators import Generators
from esper.recorder.writer import Recorder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from esper.ecology.betting import Rule
    from esper.instruments.base import Instrument
    from esper.ir.ecology import Terms
    from esper.live.clinic import Part
    from esper.live.probe import Loss, ProbeResult, Swept
    from esper.propose import Proposal
    from esper.recorder.taker import EventTaker, Stateful

_CLOSED = (
    "this model belongs to a session: change it inside `with session.boundary() as b:`, "
    "with b.submit(proposal)"
)
_FORMAT = 1


class Session:
    """Holds a model in training and everything that shadows its tensors.

    Args:
        model: a traced model; changed in place, at boundaries only.
        optimizer: over the model's parameters, or several.
        scheduler: learning-rate scheduler(s); the caller goes on stepping them.
        scaler: a GradScaler; boundaries are then refused between `unscale_` and `update`.
        ema: averaged copies (`AveragedModel(model)`), which follow each change.
        recorder: a `Recorder`, or the path of a new flight record that the session closes. One
            that goes on with a log (`resume`) brings the state that the session starts in.
        recording: how much is recorded, and what a replay needs to know.
        generators: named streams of random numbers, which checkpoints and rollbacks include.
        stateful: what else has a `state_dict` that checkpoints and rollbacks should include, such
            as agents and samplers, by name.
        policies: proposal type -> what optimizer state does; `keep` for all others.
        terms: what growth and decay keep to; by default those that the model has.
        governor: notices broken training and rolls back; None trusts the caller.
        keyframe_every: boundaries between two copies of the whole training state for the governor;
            one is also taken before each change. 0 takes only the latter.
        lifecycle: moves seeds through their stages at each boundary; None leaves that to proposals.
        verify: how much the pass manager verifies, as in `PassManager`.
        instruments: observers of the pass manager.
        group_of: (name, parameter) -> index of the optimizer group that a new parameter joins.
        signals_every: optimizer steps between two samples of the boundary signals; 0 for none.

    Raises:
        UsageError: the model is not traced, or belongs to a session already.
        BoundaryError: the optimizer holds parameters that do not live in the model.
    """

    def __init__(
        self,
        model: Model,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        *,
        scheduler: Any = None,
        scaler: Any = None,
        ema: torch.nn.Module | Sequence[torch.nn.Module] | None = None,
        recorder: EventTaker | str | os.PathLike[str] | None = None,
        recording: Recording | None = None,
        generators: Generators | None = None,
        stateful: Mapping[str, Stateful] | None = None,
        policies: Mapping[str, StatePolicy] | None = None,
        terms: Terms | None = None,
        governor: Governor | None = None,
        keyframe_every: int = 100,
        lifecycle: Lifecycle | Literal["standard"] | None = "standard",
        verify: Verify = "incremental",
        instruments: Sequence[Instrument] = (),
        group_of: GroupOf | None = None,
        signals_every: int = EVERY,
    ) -> None:
        if not isinstance(model, Model):
            raise UsageError(
                f"a session needs a traced model, not {type(model).__name__}: "
                "model = esper.trace(module, args), then build the optimizer over its parameters"
            )
        if model.closed:
            raise UsageError("this model belongs to a session already; close that one first")
        optimizers = (
            [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
        )
        if not optimizers:
            raise UsageError("a session needs an optimizer")
        self.model = model
        self.schedulers = _several(scheduler)
        self.scaler = scaler
        self.averages = _several(ema)
        self.policies = dict(policies or {})
        if terms is not None:
            for own in (model, *map(_average, self.averages)):
                own.ecology.terms = terms
        self.governor = governor
        self.keyframe_every = keyframe_every
        self.lifecycle = Lifecycle() if lifecycle == "standard" else lifecycle
        self.optimizers = [
            OptimizerFollower(model, o, group_of, joins=i == 0) for i, o in enumerate(optimizers)
        ]
        self.warmups = [Warmup(o) for o in optimizers]
        self.followers: list[OptimizerFollower | AverageFollower] = [
            *self.optimizers,
            *(AverageFollower(model, average) for average in self.averages),
        ]
        self.manager = PassManager(
            model, verify=verify, instruments=instruments, followers=self.followers
        )
        self.signals = Signals(model, optimizers, scaler, signals_every)
        self.compilations: list[Compilation] = []
        self.meter: CompileMeter | None = None
        self.events = EventBuffer()
        self._open: Boundary | None = None
        self._keyframe: dict[str, Any] | None = None
        self._keyframe_event: int | None = None
        self._keyframe_at = "opening"
        self._rollbacks = 0
        # Committed since the keyframe, with the numbers of their events.
        self.since: list[tuple[Proposal, int | None]] = []
        self.losses = Losses()
        self.refusals = Refusals(self.manager)
        self.generators = generators or Generators()
        self.stateful = dict(stateful or {})
        self._owned = isinstance(recorder, (str, os.PathLike))
        self.recorder: EventTaker | None = (
            Recorder(recorder) if isinstance(recorder, (str, os.PathLike)) else recorder
        )
        self.diary = Diary(self.recorder, recording or Recording())
        self.signals.told = partial(self.diary.metric, "signals/uncompiled seconds")
        self.diary.begin(model, {"torch": torch.initial_seed(), **self.generators.seeds})
        model.closed = _CLOSED
        # A model outlives its session: it opens again when the session is gone.
        self._release = weakref.finalize(self, setattr, model, "closed", "")
        if self.recorder is not None:
            self.recorder.attached(self)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The (first) optimizer."""
        return self.optimizers[0].optimizer

    @property
    def tick(self) -> int:
        """Boundaries passed so far."""
        return self.model.ecology.tick

    def boundary(self, loss: float | torch.Tensor | None = None, *, batch: Any = None) -> Boundary:
        """The only place where anything may change: a context manager, once a step.

        Args:
            loss: of the step just made; the governor judges it.
            batch: that it was made on: tensors in whatever containers, of which the flight record
                keeps a digest, so that a replay can tell other data from other arithmetic.
        """
        return Boundary(self, loss, batch)

    def submit(self, *_: Any, **__: Any) -> None:
        """Raises BoundaryError: proposals are submitted to a boundary."""
        raise BoundaryError(_CLOSED)

    def probe(
        self,
        target: str,
        batches: Iterable[Any],
        *,
        loss: Loss,
        units: Sequence[int] = (),
        rule: Rule | None = None,
        proposer: str = "user",
    ) -> ProbeResult:
        """`Boundary.probe` at the boundary that is open. Raises BoundaryError where none is."""
        if self._open is None:
            raise BoundaryError("probes are held at a boundary: boundary.probe(...)")
        return self._open.probe(
            target, batches, loss=loss, units=units, rule=rule, proposer=proposer
        )

    def sweep(self, targets: Iterable[Part], batches: Iterable[Any], *, loss: Loss) -> list[Swept]:
        """`Boundary.sweep` at the boundary that is open. Raises BoundaryError where none is."""
        if self._open is None:
            raise BoundaryError("sweeps are held at a boundary: boundary.sweep(...)")
        return self._open.sweep(targets, batches, loss=loss)

    def compile(self, *, per_block: bool = False, **options: Any) -> None:
        """Run the model compiled from now on; takes the options of `torch.compile`.

        Whole, any change compiles all of it again. With `per_block` a change compiles only the
        blocks that it touches (`esper.live.blocks`), and equal blocks are compiled once; what runs
        between the blocks is not compiled.

        `compilations` tells each compilation with its price in seconds. Where PyTorch would give
        up compiling and go on in eager mode, the step raises instead.
        """
        if self.meter is None:
            own = weakref.ref(self)

            def tick() -> int:
                session = own()
                return -1 if session is None else session.tick

            def note(compilation: Compilation) -> None:
                session = own()
                if session is not None:
                    session.compilations.append(compilation)
                    session.diary.compiled(compilation)

            self.meter = CompileMeter(tick, note)
        if per_block:
            self.model.weave(BlockCompiler(self.model, options).weave)
        else:
            self.model.compile(**options)
        self.signals.renew()

    def close(self) -> None:
        """End the session; the model is an ordinary one again. Closes its own flight record."""
        self._release()
        self.signals.close()
        if self.meter is not None:
            self.meter.close()
        if self.recorder is not None and self._owned:
            self.recorder.finish()
            self._owned = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- checkpoints -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run needs to go on bit for bit, whatever grew or went meanwhile.

        Tensors are not copies, as in `torch.nn.Module.state_dict`. Readable by `torch.load` with
        `weights_only=True`.
        """
        warm = [
            {name: list(left[p]) for name, p in self.model.named_parameters() if p in left}
            for left in (warmup.active() for warmup in self.warmups)
        ]
        averages = [
            {
                "model": checkpoint.capture_model(_average(e)),
                "buffers": dict(e.named_buffers(recurse=False)),
            }
            for e in self.averages
        ]
        return {
            "format": _FORMAT,
            "model": checkpoint.capture_model(self.model),
            "optimizers": [
                checkpoint.capture_optimizer(self.model, f.optimizer) for f in self.optimizers
            ],
            "schedulers": [s.state_dict() for s in self.schedulers],
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "averages": averages,
            "warmups": warm,
            "governor": None if self.governor is None else list(self.governor.losses),
            "losses": self.losses.state(),
            "signals": self.signals.state_dict(),
            "lifecycle": None if self.lifecycle is None else self.lifecycle.state_dict(),
            "random": checkpoint.capture_random(),
            "generators": self.generators.state_dict(),
            "stateful": {name: own.state_dict() for name, own in self.stateful.items()},
            "events": self.events.data(),
            "recorder": None if self.recorder is None else self.recorder.position,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, in this or another process.

        The session must have been built the same way: the same module traced, the same kinds of
        optimizer, schedulers and averages. What slept when the state was taken is woken: no step
        is made on a sedated model.

        Raises:
            InputError: the state is not that of such a session. Nothing has changed then.
            BoundaryError: a boundary is open, whose end could not be undone any more.
        """
        if self._open is not None:
            raise BoundaryError("a boundary is open: load the state before it begins or after it")
        self._fits(state)
        before = checkpoint.copied(self.state_dict())
        try:
            self._restore(state)
            self._wake()
        except BaseException:
            self._restore(before)
            raise

    def _fits(self, state: Mapping[str, Any]) -> None:
        if state.get("format") != _FORMAT:
            raise InputError(f"the state has format {state.get('format')}, expected {_FORMAT}")
        for key, own in (
            ("optimizers", self.optimizers),
            ("schedulers", self.schedulers),
            ("averages", self.averages),
        ):
            if len(state[key]) != len(own):
                raise InputError(f"the state has {len(state[key])} {key}, this session {len(own)}")
        if (state["scaler"] is None) != (self.scaler is None):
            raise InputError("the state and this session differ in whether they have a scaler")
        if state["stateful"].keys() != self.stateful.keys():
            raise InputError(
                f"the state holds what {sorted(state['stateful'])} keep, this session has "
                f"{sorted(self.stateful)}"
            )

    def _restore(self, state: Mapping[str, Any]) -> None:
        closed = self.model.closed
        checkpoint.restore_model(self.model, state["model"])
        self.model.closed = closed
        for follower, captured in zip(self.optimizers, state["optimizers"], strict=True):
            checkpoint.restore_optimizer(self.model, follower.optimizer, captured)
        for scheduler, captured in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(checkpoint.copied(captured))
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        for average, captured in zip(self.averages, state["averages"], strict=True):
            checkpoint.restore_model(_average(average), captured["model"])
            for name, buffer in average.named_buffers(recurse=False):
                buffer.copy_(captured["buffers"][name])
        parameters = dict(self.model.named_parameters())
        for warmup, captured in zip(self.warmups, state["warmups"], strict=True):
            warmup.assign({parameters[n]: (left[0], left[1]) for n, left in captured.items()})
        if self.governor is not None and state["governor"] is not None:
            self.governor.losses.clear()
            self.governor.losses.extend(state["governor"])
        self.losses.assign(state["losses"])
        self.signals.load_state_dict(state["signals"])
        if self.lifecycle is not None and state["lifecycle"] is not None:
            self.lifecycle.load_state_dict(state["lifecycle"])
        checkpoint.restore_random(state["random"])
        self.generators.load_state_dict(state["generators"])
        for name, own in self.stateful.items():
            own.load_state_dict(checkpoint.copied(state["stateful"][name]))
        self.events.assign(state["events"])
        self.check()

    def _wake(self) -> None:
        """Take the gates out that a state brought which was taken at an open boundary."""
        model = self.model
        sleeping = asleep(model)
        closed, model.closed = model.closed, ""
        try:
            for target in sleeping:
                record = self.manager.apply(Wake(target=target, proposer="session"))
                if record.kind != "passed":
                    raise BoundaryError(f"{target} cannot be woken: {record.reason}")
        finally:
            model.closed = closed
        if sleeping:
            model.renew_code()
            self.signals.renew()

    def check(self) -> None:
        """Raises BoundaryError unless optimizers and averages hold exactly what lives."""
        for follower in self.followers:
            follower.check()

    # -- keyframes -------------------------------------------------------------------------------

    def keep(self, at: str = "opening") -> None:
        """Take a keyframe: a copy of the whole training state, to which the governor returns.

        Args:
            at: `opening` of a boundary, or `change`: before the first change at one, where the
                ledger may have been written into before.
        """
        self._take(at)
        self._keyframe_event = self.diary.here
        self._rollbacks = 0
        self.since.clear()

    def _take(self, at: str) -> None:
        self._keyframe = checkpoint.copied(self.state_dict())
        self._keyframe_at = at

    def roll_back(self, reason: str) -> int:
        """Return to the keyframe and give its tick. Raises BoundaryError where there is none.

        What was changed since is charged: antibodies against doing the same again, which stay when
        training breaks once more.
        """
        if self._keyframe is None:
            raise BoundaryError("there is no keyframe to return to")
        limit = self.governor.limit if self.governor is not None else 1
        if self._rollbacks >= limit:
            raise BoundaryError(
                f"training broke {self._rollbacks + 1} times from the keyframe of tick "
                f"{self.tick}: the data or the learning rate must change"
            )
        self._restore(self._keyframe)
        self._rollbacks += 1
        charged = [(each, event) for p, event in self.since for each in charges(p)]
        self.since.clear()
        charge(self.model.ecology, [each for each, _ in charged])
        for average in map(_average, self.averages):
            average.ecology = self.model.ecology.copy()
        self.events.push(DropShot(self.tick, "rollback", "", -1, 0.0))
        for (page, against), _ in charged:
            self.events.push(DropShot(self.tick, against, page, -1, 0.0))
        figures = {"to_tick": self.tick, "kept": self._keyframe_at}
        self.diary.rolled_back(reason, self._keyframe_event, charged, figures)
        if self.recorder is not None:
            self.recorder.tick = self.tick
        self._take("opening")
        return self.tick


def _average(module: torch.nn.Module) -> Model:
    inner = module.module if isinstance(module, torch.optim.swa_utils.AveragedModel) else module
    assert isinstance(inner, Model)
    return inner


def _several(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
