"""What passes and rewrites are.

A `Pass` only wants things: it yields proposals (and remarks) and learns what became of each.
A `Rewrite` only resolves: it turns one proposal type into a `Plan` or a `Refusal`. Both are found
through explicit tables, merged with the entry-point groups `esper.passes` and `esper.rewrites`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from esper.errors import UsageError
from esper.propose import Proposal
from esper.records import Record

if TYPE_CHECKING:
    from esper.gate.gate import Gate
    from esper.ir.model import Model
    from esper.plan import Plan, Refusal

Aim = Literal["speed", "repair", "prepare", "cleanup"]
Batch = tuple[tuple[Any, ...], dict[str, Any]]  # (args, kwargs)
# A pass yields proposals or remarks and receives the record of each.
Proposals = Generator["Proposal | Remark", "Record | None", None]


@dataclass(frozen=True)
class Remark:
    """Something a pass saw but did not propose."""

    kind: Literal["missed", "analysis"]
    code: str
    reason: str
    node: str | None = None
    remedy: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass
class Context:
    """What the caller gave, for passes to use.

    Attributes:
        inputs: example inputs (args, kwargs).
        data: calibration batches, or None.
        evaluate: quality function, higher is better, or None.
        baseline: the model as it was before any pass; never changed.
        gate: how time is measured, or None when nothing is.
        backend: the backend that runs the model at present.
        seed: for every random choice.
        progress: `progress(done, total, what)` for anything slow.
    """

    inputs: Batch | None = None
    data: Sequence[Batch] | None = None
    evaluate: Callable[[Any], float] | None = None
    baseline: Model | None = None
    gate: Gate | None = None
    backend: str = "eager"
    seed: int = 0
    progress: Callable[[int, int, str], None] = lambda done, total, what: None

    def batches(self, pass_name: str) -> Sequence[Batch]:
        """Calibration data. Raises UsageError naming the pass when none was given."""
        if not self.data:
            raise UsageError(
                f"{pass_name} needs calibration data: give --data FILE.py:fn (or data=...)"
            )
        return self.data


@dataclass(frozen=True)
class Pass:
    """Base of passes: a frozen dataclass whose fields are its options.

    Class attributes:
        name: kebab-case name in pipelines.
        aim: `speed` passes must pay at the gate; `repair` passes (reconstruct, distil) are judged
            together with the pass before them; `prepare` passes (sparsify) make nothing faster by
            themselves and are judged with the next speed pass, as are `cleanup` passes, which are
            exact.
        nests: the pass is a combinator: it takes inner passes, `name{...}(inner, ...)`, runs them
            `rounds()` times and proposes nothing itself. Its aim is that of its inner passes.
        lowers: it may put custom kernels in, which not every format and backend can hold.
        for_kernels: what it prepares waits for a pass that lowers, if one follows, and is kept only
            where a kernel makes use of it.
        searches: a combinator that bisects the `ratio` of its inner passes (`steps`, `low`,
            `high`) instead of running rounds.
    """

    name: ClassVar[str] = ""
    aim: ClassVar[Aim] = "speed"
    nests: ClassVar[bool] = False
    lowers: ClassVar[bool] = False
    for_kernels: ClassVar[bool] = False
    searches: ClassVar[bool] = False

    def judged_as(self) -> Aim:
        """The aim of these options; that of the class unless a pass says otherwise."""
        return self.aim

    def rounds(self) -> int:
        """How many times the inner passes of a combinator run."""
        return 1

    def propose(self, model: Model, context: Context) -> Proposals:
        """Yield proposals for the present model; `record = yield proposal` says what became of it.

        The model may have changed between two yields. Passes never change it themselves.
        """
        raise TypeError(f"{type(self).__name__} does not define propose")

    @classmethod
    def summary(cls) -> str:
        """First line of the docstring, for --list-passes."""
        return (cls.__doc__ or "").strip().splitlines()[0]


class Rewrite:
    """Base of rewrites: one class per proposal type."""

    type: ClassVar[str] = ""

    def plan(self, model: Model, proposal: Any) -> Plan | Refusal:
        """Resolve a proposal against a model without changing anything."""
        raise TypeError(f"{type(self).__name__} does not define plan")

    def follow(self, model: Model, plan: Plan) -> Plan | Refusal:
        """The same change for a copy of the model with other weights, such as an average.

        By default its proposal is resolved anew. A rewrite that chooses by weights overrides this
        and takes the choice from `plan`.
        """
        return self.plan(model, plan.proposal)


@cache
def passes() -> dict[str, type[Pass]]:
    """All installed passes by name. A name that two packages claim is an error."""
    return _load("esper.passes")


@cache
def rewrites() -> dict[str, Rewrite]:
    """All installed rewrites by proposal type."""
    return {name: cls() for name, cls in _load("esper.rewrites").items()}


def _load(group: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for point in importlib.metadata.entry_points(group=group):
        if point.name in found:
            raise UsageError(f"two packages provide {point.name!r} in {group}")
        found[point.name] = point.load()
    if not found:
        raise UsageError(f"no entry points in {group}: is esper-opt installed (pip install -e .)?")
    return dict(sorted(found.items()))
