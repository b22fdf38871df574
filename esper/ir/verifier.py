"""The verifier: what must hold of a model before and after every rewrite.

One tuple of checks a stage (`SPECS`). A check takes the model and a scope and yields problems;
each problem begins with the code of its check and quotes the IR line that it is about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

from esper.errors import UsageError, VerificationError
from esper.ir import checks_axes, checks_graph, checks_kernels, checks_ports
from esper.ir.scope import Change, Scope

if TYPE_CHECKING:
    from esper.ir.model import Model

Stage = Literal["traced", "live", "lowered"]
Check = Callable[["Model", Scope], Iterator[str]]

# In order: a check may rely on those before it, and the first that finds problems is the last run.
_GRAPH: tuple[Check, ...] = (
    checks_graph.order,
    checks_graph.attributes,
    checks_graph.lint,
    checks_graph.metadata,
)
_AXES: tuple[Check, ...] = (
    checks_axes.tensor_sizes,
    checks_axes.value_sizes,
    checks_axes.literals,
    checks_axes.units,
)
_CONTRACT: tuple[Check, ...] = (checks_ports.ports, checks_ports.ties)

SPECS: dict[Stage, tuple[tuple[Check, ...], ...]] = {
    "traced": (_GRAPH, (checks_graph.computed_values, *_AXES, *_CONTRACT)),
    "live": (_GRAPH, (checks_graph.computed_values, checks_graph.leaves, *_AXES, *_CONTRACT)),
    "lowered": (
        _GRAPH,
        (checks_graph.computed_values, checks_kernels.packed, *_AXES, *_CONTRACT),
    ),
}


def verify(model: Model, stage: Stage = "traced", change: Change | None = None) -> None:
    """Check every invariant of a stage; changes nothing.

    Args:
        model: the model.
        stage: `traced` (offline), `live` (while training: parameters must be leaves, too) or
            `lowered` (what kernels read must be packed as they expect, too).
        change: what happened to a model that was verified before; what it cannot have broken is
            then left out. None checks everything.

    Raises:
        VerificationError: with every problem. Problems of the graph itself (order, dangling
            reads, metadata) are reported alone, since nothing else can be judged before.
        UsageError: for an unknown stage.
    """
    if stage not in SPECS:
        raise UsageError(f"{stage!r} is no stage; stages are {', '.join(SPECS)}")
    scope = Scope.of(model, change)
    for checks in SPECS[stage]:
        problems = tuple(problem for check in checks for problem in check(model, scope))
        if problems:
            count = "an invariant" if len(problems) == 1 else f"{len(problems)} invariants"
            raise VerificationError(f"the IR breaks {count}: {problems[0]}", problems)
