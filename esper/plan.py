"""Plans: a resolved change as data, and refusals.

A plan holds graph edits (by node name, with encoded arguments) and one `StateTransform`. It can
be printed, hashed and compared, and does nothing by itself: only the manager applies it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from esper.ir.ecology import Immunity, SlotLife, Sparsity
from esper.ir.origin import Origin
from esper.propose import Proposal, Tolerance
from esper.state import Grow, Patch, Select, StateTransform

Path = tuple[int | str, ...]
# The content hash behind an operation on a tensor; that of a selection is of positions.
_VALUES = re.compile(r"^(  \S+: (?!select ).*) [0-9a-f]{16}$", re.MULTILINE)


@dataclass(frozen=True)
class Ref:
    """An argument that is another node, by name."""

    name: str

    def __repr__(self) -> str:
        return f"%{self.name}"


@dataclass(frozen=True)
class SetArg:
    """Put a literal (or `Ref`) at an argument path of a node."""

    node: str
    path: Path
    value: Any

    def text(self) -> str:
        """Deterministic text."""
        return f"set %{self.node} {_path(self.path)} = {self.value!r}"


@dataclass(frozen=True)
class ReplaceUses:
    """Every use of `old` (or only those in `users`) becomes a use of `new`."""

    old: str
    new: str
    users: tuple[str, ...] | None = None

    def text(self) -> str:
        """Deterministic text."""
        users = "" if self.users is None else f" in {', '.join('%' + u for u in self.users)}"
        return f"replace %{self.old} by %{self.new}{users}"


@dataclass(frozen=True)
class Insert:
    """A new node before `before`. A str target with op `get_attr` reads a tensor.

    `modes` and `counter` are as in `esper.ir.modes`, for ops that differ between training and
    evaluation; the arguments given are those of the model's present mode.
    """

    name: str
    op: str  # call_function | get_attr
    target: Any
    args: tuple[Any, ...]
    before: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    module: str = ""
    source: str = ""
    modes: Mapping[Path, tuple[Any, Any]] = field(default_factory=dict)
    counter: str = ""

    def text(self) -> str:
        """Deterministic text."""
        arguments = [*map(repr, self.args), *(f"{k}={v!r}" for k, v in sorted(self.kwargs.items()))]
        text = f"insert %{self.name} = {self.target}({', '.join(arguments)}) before %{self.before}"
        for path, values in self.modes.items():
            text += f"; {_path(path)} is {values[0]!r} in evaluation, {values[1]!r} in training"
        return f"{text}; counts in {self.counter}" if self.counter else text


@dataclass(frozen=True)
class Retarget:
    """Let a node call another op. Its name, place and module stay, and IDs with them.

    `origin` says what the op was lowered from (`esper.ir.origin`); empty where it was raised again.
    """

    node: str
    target: Any
    args: tuple[Any, ...]
    origin: tuple[Origin, ...] = ()

    def text(self) -> str:
        """Deterministic text."""
        text = f"retarget %{self.node} = {self.target}({', '.join(map(repr, self.args))})"
        return f"{text}; from {', '.join(call.op for call in self.origin)}" if self.origin else text


@dataclass(frozen=True)
class Erase:
    """Remove a node that has no users left."""

    node: str

    def text(self) -> str:
        """Deterministic text."""
        return f"erase %{self.node}"


Edit = SetArg | ReplaceUses | Insert | Retarget | Erase


@dataclass(frozen=True)
class UnitCut:
    """Units that leave an axis: the anatomy follows."""

    axis: str
    positions: tuple[int, ...]

    def text(self) -> str:
        """Deterministic text."""
        return f"cut {self.axis} positions {list(self.positions)}"


@dataclass(frozen=True)
class UnitGrowth:
    """Units that join an axis at the end of its order; their numbers are given out on applying."""

    axis: str
    count: int

    def text(self) -> str:
        """Deterministic text."""
        return f"grow {self.axis} by {self.count}"


@dataclass(frozen=True)
class SetLife:
    """The life of a part from now on (`esper.ir.ecology`); None forgets it."""

    id: str
    life: SlotLife | Immunity | Sparsity | None

    def text(self) -> str:
        """Deterministic text."""
        return f"life of {self.id}: {'none' if self.life is None else self.life.text()}"


@dataclass(frozen=True)
class Plan:
    """A resolved change.

    Attributes:
        proposal: what was asked.
        summary: one line for a person.
        edits: graph edits, in order.
        state: what happens to tensors.
        cuts: units that leave axes.
        growths: units that join axes.
        lives: stages of slots and marks of the immune ledger that change.
        tolerance: the resolved class (a prune of a coupled axis is lossy).
        backend: backend to run on from now, if the plan chooses one.
        keeps_anatomy: the edits put gates in or take them out: axes and regions stay what they
            are, and what is known of them stays too.
        figures: computed facts worth recording (bytes before and after, units).
    """

    proposal: Proposal
    summary: str
    edits: tuple[Edit, ...] = ()
    state: StateTransform = field(default_factory=StateTransform)
    cuts: tuple[UnitCut, ...] = ()
    growths: tuple[UnitGrowth, ...] = ()
    lives: tuple[SetLife, ...] = ()
    tolerance: Tolerance = "exact"
    backend: str | None = None
    keeps_anatomy: bool = False
    figures: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """Deterministic text of everything that would happen."""
        lines = [f"plan {self.proposal.type} ({self.tolerance}): {self.summary}"]
        lines += [f"  {edit.text()}" for edit in self.edits]
        lines += [f"  {line}" for line in self.state.lines()]
        lines += [f"  {cut.text()}" for cut in self.cuts]
        lines += [f"  {growth.text()}" for growth in self.growths]
        lines += [f"  {life.text()}" for life in self.lives]
        if self.backend is not None:
            lines.append(f"  backend {self.backend}")
        return "\n".join(lines)

    @cached_property
    def digest(self) -> str:
        """Hash of `text()`; equal plans have equal digests."""
        return hashlib.blake2b(self.text().encode(), digest_size=16).hexdigest()

    @cached_property
    def outline(self) -> str:
        """Hash of `text()` without the values of tensors: what was learned has no effect."""
        text = _VALUES.sub(r"\1", self.text())
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def only_resizes(self) -> bool:
        """Whether units go or come and nothing else: sizes then follow, structure stays."""
        return (
            bool(self.cuts or self.growths)
            and all(isinstance(edit, SetArg) for edit in self.edits)
            and all(
                isinstance(op, (Select, Grow, Patch))
                for ops in self.state.ops.values()
                for op in ops
            )
        )

    @property
    def empty(self) -> bool:
        """Whether nothing would change."""
        return not (
            self.edits or self.state.ops or self.cuts or self.growths or self.lives or self.backend
        )


@dataclass(frozen=True)
class Refusal:
    """Why a proposal is not planned: rule code, sentence, place and remedy."""

    code: str
    reason: str
    node: str | None = None
    remedy: str = ""


def _path(path: Path) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path)
