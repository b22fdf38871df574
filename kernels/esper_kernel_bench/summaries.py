"""Many cells as few rows: where ours win, where they lose, and by how much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import exp, log
from statistics import median
from typing import Any

from esper_kernel_bench.compression import Compression

Row = Mapping[str, Any]
_MARKS = {"FAST": "\N{BLACK UP-POINTING TRIANGLE}", "SLOW": "\N{BLACK DOWN-POINTING TRIANGLE}"}
_UNSURE = "\N{WHITE CIRCLE}"


# What stands for the others on a page with little room.
_MAP = (
    "128:2:4x16",
    "128:1:4x16",
    "128:1:8x16",
    "2:4",
    "int8",
    "128:1:4x16+int8",
    "low-rank@0.25",
)


def short_map(cells: Sequence[Row]) -> list[dict[str, Any]]:
    """The table against the fastest peer for linear layers and one pattern of each kind."""
    linear = [c for c in cells if c["compression"] in _MAP and c["op"] != "gated_linear"]
    return table(sorted(linear, key=lambda cell: _MAP.index(cell["compression"])), "best")


def table(cells: Sequence[Row], against: str) -> list[dict[str, Any]]:
    """A row for each dtype, op and pattern, a column for each M: a mark and the mean ratio.

    The ratio is the geometric mean over layers; the mark says that every layer is faster, or every
    one slower, and otherwise that it depends.

    Args:
        against: `best` or `dense`.
    """
    rows: list[dict[str, Any]] = []
    for (dtype, op, pattern), some in _grouped(cells, "dtype", "op", "compression").items():
        row: dict[str, Any] = {"dtype": dtype, "op": op, "pattern": pattern}
        for (m,), same in sorted(_grouped(some, "m").items()):
            outcomes = {cell[f"{against}_outcome"] for cell in same}
            mark = _MARKS.get(next(iter(outcomes)), _UNSURE) if len(outcomes) == 1 else _UNSURE
            row[f"M={m}"] = f"{mark} {geometric(c[f'{against}_ratio'] for c in same):.2f}"
        rows.append(row)
    return sorted(rows, key=lambda row: row["dtype"])


def by_pattern(cells: Sequence[Row]) -> list[dict[str, Any]]:
    """A row for each dtype, op, pattern and M.

    `of_dense_limit` is how near a sparse layer comes to taking as much less time than the dense one
    as it has fewer weights; `of_limit` the median share of the measured roofline.
    """
    found = []
    keys = ("dtype", "op", "compression", "m")
    for (dtype, op, pattern, m), some in _grouped(cells, *keys).items():
        outcomes = Counter(cell["best_outcome"] for cell in some)
        over_dense = geometric(cell["dense_ratio"] for cell in some)
        compression = Compression.parse(pattern)
        calibrated = [c["fraction_calibrated"] for c in some if c["fraction_calibrated"]]
        found.append(
            {
                "dtype": dtype,
                "op": op,
                "pattern": pattern,
                "m": m,
                "layers": len(some),
                "over_dense": _three(over_dense),
                "of_dense_limit": _three(over_dense * compression.density)
                if compression.family in ("runs", "blocks") and not compression.int8
                else None,
                "over_best_peer": _three(geometric(c["best_ratio"] for c in some)),
                "fast": outcomes["FAST"],
                "slow": outcomes["SLOW"],
                "unclear": outcomes["SAME"] + outcomes["AMBIGUOUS"],
                "of_limit": _three(median(calibrated)) if calibrated else None,
            }
        )
    return sorted(found, key=lambda row: row["dtype"])


def peers(panels: Sequence[Row]) -> list[dict[str, Any]]:
    """A row for each dtype and peer, a column for each M: how fast it is beside the dense layer.

    The dense layer is PyTorch's own, which need not be the fastest one.

    Args:
        panels: as in a result file; the ratio is the geometric mean over them.
    """
    measured = [
        {**contender, "dtype": panel["dtype"], "m": panel["m"]}
        for panel in panels
        for contender in panel["contenders"]
        if contender["role"] == "peer"
    ]
    rows: list[dict[str, Any]] = []
    for (dtype, key), some in _grouped(measured, "dtype", "key").items():
        row: dict[str, Any] = {"dtype": dtype, "peer": key.replace(" | ", ", ")}
        for (m,), same in sorted(_grouped(some, "m").items()):
            row[f"M={m}"] = _three(geometric(exp(peer["log"]) for peer in same))
        rows.append(row)
    return sorted(rows, key=lambda row: row["dtype"])


def notes(cells: Sequence[Row], skipped: Sequence[str]) -> list[str]:
    """What must be known to read the tables."""
    best = Counter(cell["best_outcome"] for cell in cells)
    dense = Counter(cell["dense_outcome"] for cell in cells)
    said = [
        (
            "Ratios are the peer's time over ours, above 1 is faster, as geometric means over "
            f"layers; {_MARKS['FAST']} every layer is faster, {_MARKS['SLOW']} every layer is "
            f"slower, {_UNSURE} it depends or cannot be told."
        ),
        f"Against the fastest peer: {_counted(best)}; against the dense layer: {_counted(dense)}.",
    ]
    if skipped:
        panels = "1 panel was" if len(skipped) == 1 else f"{len(skipped)} panels were"
        said.append(f"{panels} not measured; the result file says why.")
    return said


def geometric(values: Iterable[float]) -> float:
    """The geometric mean."""
    logs = [log(value) for value in values]
    return exp(sum(logs) / len(logs))


def _grouped(cells: Sequence[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    found: dict[tuple[Any, ...], list[Row]] = {}
    for cell in cells:
        found.setdefault(tuple(cell[key] for key in keys), []).append(cell)
    return found


def _counted(outcomes: Counter[str]) -> str:
    return ", ".join(f"{outcomes[name]} {name}" for name in ("FAST", "SLOW", "SAME", "AMBIGUOUS"))


def _three(value: float) -> float:
    return float(f"{value:.3g}")
