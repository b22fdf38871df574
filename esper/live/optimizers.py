"""Optimizers follow surgery: groups, names and state stay those of the live parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from esper.errors import BoundaryError
from esper.live import layouts
from esper.live.policy import StatePolicy
from esper.state import Create, Drop, Join, Part, Select

if TYPE_CHECKING:
    from esper.apply import Journal, Moved
    from esper.ir.model import Model
    from esper.plan import Plan

# Name and value of a new parameter -> index of the group that it joins.
GroupOf = Callable[[str, torch.Tensor], int]


class OptimizerFollower:
    """Keeps one optimizer in step with its model.

    Groups are never added or removed, so learning-rate schedulers, which count them, go on: a new
    parameter joins the group of the parameters most like it.

    Args:
        model: the live model.
        optimizer: over parameters of the model; those that it leaves out stay left out.
        group_of: chooses the group of a new parameter; by default that with most parameters of
            the same sort (matrices apart from vectors, as weight decay is split by habit).
        joins: whether new parameters are this optimizer's.
    """

    def __init__(
        self,
        model: Model,
        optimizer: torch.optim.Optimizer,
        group_of: GroupOf | None = None,
        *,
        joins: bool = True,
    ) -> None:
        self.model = model
        self.joins = joins
        self.optimizer = optimizer
        self.policy = StatePolicy()
        self.touched: list[Moved] = []
        self._group_of = group_of
        held = set(map(id, self.parameters()))
        # Parameters that the caller chose not to train, or trains with another optimizer.
        self._left_out = {n for n, p in model.named_parameters() if id(p) not in held}
        self.check()

    def parameters(self) -> Iterable[torch.Tensor]:
        """All parameters in all groups."""
        return (p for group in self.optimizer.param_groups for p in group["params"])

    def check(self) -> None:
        """Raises BoundaryError unless the optimizer holds the live parameters, each once."""
        held = [id(parameter) for parameter in self.parameters()]
        live = {n: p for n, p in self.model.named_parameters() if n not in self._left_out}
        if len(set(held)) != len(held):
            raise BoundaryError("the optimizer holds a parameter twice")
        foreign = set(held) - set(map(id, live.values()))
        if foreign:
            raise BoundaryError(
                f"{len(foreign)} parameters of the optimizer do not live in the model: "
                "build it over model.parameters() of the traced model"
            )
        missing = [n for n, p in live.items() if p.requires_grad and id(p) not in set(held)]
        if missing:
            raise BoundaryError(f"the optimizer does not hold {missing[0]}, which lives and trains")

    # -- following -------------------------------------------------------------------------------

    def follow(self, plan: Plan, moved: Sequence[Moved], journal: Journal) -> None:
        """State and groups follow each operation, as the policy says."""
        self.touched += moved
        for move in moved:
            before, after, op = move.before, move.after, move.op
            if isinstance(op, Create):
                if op.trainable and self.joins:
                    assert after is not None
                    self._join(move.name, after, journal)
                elif op.trainable:
                    journal.add(partial(self._left_out.discard, move.name))
                    self._left_out.add(move.name)
            elif isinstance(op, Drop):
                assert before is not None
                self._leave(before, journal)
            elif isinstance(op, Part):
                self._split(move, op, journal)
            else:
                assert before is not None
                assert after is not None
                if self._holds(before):
                    self._move(move, before, after, journal)

    def _move(
        self, move: Moved, before: torch.Tensor, after: torch.Tensor, journal: Journal
    ) -> None:
        states = self.optimizer.state
        old = states.get(before)
        if old is None and any(other in states for other in move.others):
            raise _unlike(move)
        if old is not None:
            journal.add(partial(states.__setitem__, before, old))
            new = self._state(move, old) or self._fresh(after, self._group(before))
            if after is not before or new is None:
                del states[before]
            if new is not None:
                if after is not before:
                    journal.add(partial(states.pop, after, None))
                states[after] = new
        if after is not before:
            for group in self.optimizer.param_groups:
                params: list[torch.Tensor] = group["params"]
                for index, parameter in enumerate(params):
                    if parameter is before:
                        journal.add(partial(params.__setitem__, index, before))
                        params[index] = after

    def _split(self, move: Moved, op: Part, journal: Journal) -> None:
        """A part of a parameter joins its group and inherits its share of the state."""
        source, part = move.before, move.after
        assert source is not None
        assert part is not None
        index = next((i for i, g in enumerate(self.optimizer.param_groups) if _in(source, g)), None)
        if index is None:
            journal.add(partial(self._left_out.discard, move.name))
            self._left_out.add(move.name)
            return
        self._enter(move.name, part, index, journal)
        old = self.optimizer.state.get(source)
        if old is not None:
            positions = Select(0, tuple(range(op.start, op.stop)))
            state = self._state(replace(move, op=positions), old)
            if state is not None:
                journal.add(partial(self.optimizer.state.pop, part, None))
                self.optimizer.state[part] = {key: _own(value) for key, value in state.items()}

    def _joined(self, move: Moved, old: dict[str, Any]) -> dict[str, Any]:
        """The states of all that are joined, as one."""
        group, states = self._group(move.before), [old]  # type: ignore[arg-type]
        for other in move.others:
            state = self.optimizer.state.get(other)
            if state is None or state.keys() != old.keys() or not _in(other, group):
                raise _unlike(move)
            states.append(state)
        shapes = [move.shape, *(tuple(other.shape) for other in move.others)]
        new = dict(old)
        for key, value in old.items():
            if isinstance(value, torch.Tensor):
                dims = layouts.dims_of(self.optimizer, key, value, move.shape)
                new[key] = layouts.join([state[key] for state in states], dims, shapes)
        return new

    def _state(self, move: Moved, old: dict[str, Any]) -> dict[str, Any] | None:
        """The state after one operation; None where it starts anew."""
        op = move.op
        assert not isinstance(op, (Create, Drop, Part))
        if self.policy.moments == "zero":
            return None
        if isinstance(op, Join):
            return self._joined(move, old)
        how, shape = self.policy.moments, move.shape

        def followed(key: str, value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            dims = layouts.dims_of(self.optimizer, key, value, shape)
            return layouts.follow(op, key, value, dims, shape, how)

        return {key: followed(key, value) for key, value in old.items()}

    def _fresh(self, parameter: torch.Tensor, group: dict[str, Any]) -> dict[str, Any] | None:
        """State of a parameter that was never stepped; None where the first step makes it."""
        if not isinstance(self.optimizer, torch.optim.Adagrad):
            return None
        options = {key: group[key] for key in self.optimizer.defaults}
        fresh: dict[str, Any] = torch.optim.Adagrad([parameter], **options).state[parameter]
        return fresh

    def _holds(self, parameter: torch.Tensor) -> bool:
        return any(held is parameter for held in self.parameters())

    def _group(self, parameter: torch.Tensor) -> dict[str, Any]:
        return next(group for group in self.optimizer.param_groups if _in(parameter, group))

    def _join(self, name: str, parameter: torch.Tensor, journal: Journal) -> None:
        groups = self.optimizer.param_groups
        index = (self._group_of or self._likest)(name, parameter)
        if not 0 <= index < len(groups):
            raise BoundaryError(f"group_of put {name} into group {index} of {len(groups)}")
        self._enter(name, parameter, index, journal)
        fresh = self._fresh(parameter, groups[index])
        if fresh is not None:
            journal.add(partial(self.optimizer.state.pop, parameter, None))
            self.optimizer.state[parameter] = fresh

    def _enter(self, name: str, parameter: torch.Tensor, index: int, journal: Journal) -> None:
        group = self.optimizer.param_groups[index]
        params, names = group["params"], group.get("param_names")
        journal.add(params.pop)
        params.append(parameter)
        if names is not None:
            journal.add(names.pop)
            names.append(name)

    def _likest(self, name: str, parameter: torch.Tensor) -> int:
        def alike(group: dict[str, Any]) -> tuple[int, int]:
            params = group["params"]
            return sum((p.ndim > 1) == (parameter.ndim > 1) for p in params), len(params)

        groups = self.optimizer.param_groups
        return max(range(len(groups)), key=lambda i: (*alike(groups[i]), -i))

    def _leave(self, parameter: torch.Tensor, journal: Journal) -> None:
        states = self.optimizer.state
        if parameter in states:
            journal.add(partial(states.__setitem__, parameter, states[parameter]))
            del states[parameter]
        for group in self.optimizer.param_groups:
            params, names = group["params"], group.get("param_names")
            for index, held in enumerate(params):
                if held is parameter:
                    journal.add(partial(params.insert, index, parameter))
                    del params[index]
                    if names is not None:
                        journal.add(partial(names.insert, index, names[index]))
                        del names[index]
                    break


def _unlike(move: Moved) -> BoundaryError:
    return BoundaryError(
        f"{move.name} is joined with parameters that the optimizer treats otherwise: they are in "
        "another group, or have not been stepped alike"
    )


def _in(parameter: torch.Tensor, group: dict[str, Any]) -> bool:
    return any(held is parameter for held in group["params"])


def _own(value: Any) -> Any:
    """A state value that shares nothing with another's."""
    return value.clone() if isinstance(value, torch.Tensor) else value
