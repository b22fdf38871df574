"""Two results of the suite against one another: did a change of ours change a time?

Two runs share no rounds, and the machine is never twice the same. So what is compared is the time
of each contender over that of the dense layer in its own run, whose rounds are paired; the dense
layer itself is compared in microseconds. There is no sign test across runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from statistics import median
from typing import Any

import numpy as np

from esper.errors import UsageError
from esper.gate.statistics import Array
from esper_kernel_bench.document import Document, samples_of
from esper_kernel_bench.verdicts import call, estimate, log_ratios

Key = tuple[str, int, str]


def compare(before: Document, after: Document) -> dict[str, Any]:
    """Rows for every contender that both have, and notes on what they do not share.

    Raises UsageError where they share nothing.
    """
    old, new = _panels(before), _panels(after)
    rows = [row for key in old if key in new for row in _rows(key, old[key], new[key])]
    if not rows:
        raise UsageError("--compare: the two results have no layer, M and dtype in common")
    counts = Counter(row["outcome"] for row in rows)
    notes = [", ".join(f"{counts[n]} {n}" for n in ("FAST", "SLOW", "SAME", "AMBIGUOUS"))]
    notes += [
        f"{what}: {before[what]} before, {after[what]} after"
        for what in ("device", "threads", "versions", "seed")
        if before[what] != after[what]
    ]
    if missing := len(old.keys() ^ new.keys()):
        notes.append(f"{missing} panels are in one of the results only")
    return {"rows": rows, "notes": notes}


def _panels(document: Document) -> dict[Key, Mapping[str, Any]]:
    return {(p["layer"], p["m"], p["dtype"]): p for p in document["panels"]}


def _rows(key: Key, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[dict[str, Any]]:
    layer, m, dtype = key
    before, after = samples_of(old), samples_of(new)
    (base,) = (c["key"] for c in old["contenders"] if c["role"] == "dense")
    if base not in after:
        return []
    rows = []
    noise = float(np.hypot(old["noise"], new["noise"]))
    for name in before:
        if name not in after:
            continue
        if name == base:
            earlier, later = _logs(before[name]), _logs(after[name])
        else:
            earlier = log_ratios(before[name], before[base])
            later = log_ratios(after[name], after[base])
        # Unlike seeds: the draws of one bootstrap must not cancel against those of the other.
        first, second = estimate(earlier, seed=1), estimate(later, seed=2)
        verdict = call(
            first.estimate - second.estimate, first.replicates - second.replicates, noise
        )
        rows.append(
            {
                "layer": layer,
                "m": m,
                "dtype": dtype,
                "contender": name,
                "before": median(v for some in before[name] for v in some),
                "after": median(v for some in after[name] for v in some),
                "ratio": verdict.ratio,
                "lower": verdict.lower,
                "upper": verdict.upper,
                "outcome": verdict.outcome,
            }
        )
    return rows


def _logs(samples: Any) -> list[Array]:
    return [np.log(np.asarray(some))[:, None] for some in samples]
