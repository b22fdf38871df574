"""Two results of the suite against one another: did a change of ours change a time?

Two runs share no rounds, and the machine is never twice the same. So what is compared is the time
of each contender over that of the dense layer in its own run, whose rounds are paired; the dense
layer itself is compared in microseconds. There is no sign test across runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import hypot
from statistics import NormalDist
from typing import Any

from esper.errors import UsageError
from esper_kernel_bench.document import Document
from esper_kernel_bench.verdicts import RULE, call

Key = tuple[str, int, str]
_QUANTILE = NormalDist().inv_cdf(RULE.confidence)


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
    before, after = ({c["key"]: c for c in panel["contenders"]} for panel in (old, new))
    noise = hypot(old["noise"], new["noise"])
    rows = []
    for name in before:
        if name not in after:
            continue
        earlier, later = before[name], after[name]
        centre = later["log"] - earlier["log"]
        if earlier["role"] == "dense":
            centre = -centre  # of seconds, the others are of the dense layer's over theirs
        room = hypot(earlier["log_error"], later["log_error"]) * _QUANTILE
        verdict = call(centre, centre - room, centre + room, noise)
        rows.append(
            {
                "layer": layer,
                "m": m,
                "dtype": dtype,
                "contender": name,
                "before": earlier["microseconds"],
                "after": later["microseconds"],
                "ratio": verdict.ratio,
                "lower": verdict.lower,
                "upper": verdict.upper,
                "outcome": verdict.outcome,
            }
        )
    return rows
