"""What stage 2 counts: removals, lasting rises of the loss, rent left, repeated bad probes."""

from __future__ import annotations

from statistics import median

from esper.demo.runs import Change, Run
from esper.ecology.ledger import pages
from esper.ir.ecology import Terms

NEAR = 20  # steps whose losses are compared
SHOCK = 10  # steps after a removal that are left out
LASTING = 0.1  # rise of the loss that counts as a lasting spike


def removals(run: Run) -> list[Change]:
    """Of modules and of units, in order."""
    return [c for c in run.changes if c.type == "lyse" and c.kind == "passed"]


def modules(run: Run) -> int:
    """How many modules were removed."""
    return sum(not change.units for change in removals(run))


def units(run: Run) -> int:
    """How many units were cut."""
    return sum(len(change.units) for change in removals(run))


def rises(cut: Run, whole: Run) -> list[float]:
    """What of the loss each removal cost once the shock was over.

    The median loss of `NEAR` steps, from `SHOCK` steps after the removal on, less that of as many
    steps before it, and less the same in the run without removals, which saw the same batches.
    """
    found = []
    for change in removals(cut):
        own, others = (_change(run, change.tick) for run in (cut, whole))
        if own is not None and others is not None:
            found.append(own - others)
    return found


def _change(run: Run, tick: int) -> float | None:
    losses = {int(at): loss for at, loss in run.losses}
    before = [losses[t] for t in range(tick - NEAR + 1, tick + 1) if t in losses]
    start = tick + 1 + SHOCK
    after = [losses[t] for t in range(start, start + NEAR) if t in losses]
    return median(after) - median(before) if before and after else None


def rent(cut: Run, whole: Run) -> float:
    """Rent of what is left as a share of that of the model as it was, at list prices."""
    terms = Terms()
    parts = (cut.parameters / whole.parameters, cut.per_step / whole.per_step)
    prices = (terms.parameter_price, terms.flop_price)
    return sum(s * p for s, p in zip(parts, prices, strict=True)) / sum(prices)


def bad(run: Run) -> int:
    """Probes that did harm."""
    return sum(change.outcome == "harmful" for change in run.changes)


def repeated(run: Run, within: int) -> int:
    """Of them those of what a probe had found critical less than so many ticks before.

    That is the same region, one around it (which holds what is critical), or some same unit.
    """
    last: dict[str, int] = {}
    count = 0
    for change in run.changes:
        if change.outcome == "harmful":
            known = [page for page, tick in last.items() if change.tick - tick < within]
            own = pages(change.target, change.units)
            count += any(page in own or page.startswith(f"{change.target}.") for page in known)
            last |= dict.fromkeys(own, change.tick)
    return count
