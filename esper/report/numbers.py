"""Figures as a person reads them."""

from __future__ import annotations

from math import ceil, floor, isfinite, log10

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
NONE = "\N{EN DASH}"


def count(value: int) -> str:
    """12, 1,536, 22.7 M."""
    for limit, unit in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:,}"


def size(value: int) -> str:
    """Bytes with decimal prefixes: 90.9 MB."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value} B"


def times(value: float) -> str:
    """A ratio with two decimals behind a multiplication sign."""
    return f"{TIMES}{value:.2f}" if isfinite(value) else NONE


def interval(lower: float | None, upper: float | None) -> str:
    """[1.58, 1.66], or an empty text when a side is missing."""
    if lower is None or upper is None:
        return ""
    return f"[{bound(lower)}, {bound(upper)}]"


def bound(value: float) -> str:
    """One end of an interval."""
    return f"{value:.2f}" if isfinite(value) else "\N{INFINITY}" if value > 0 else NONE


def change(before: float, after: float) -> str:
    """Relative change in percent with its sign. Empty when there is none to speak of."""
    if not before or before == after:
        return ""
    percent = 100.0 * (after - before) / before
    digits = 0 if abs(percent) >= 10 else 1
    shown = f"{abs(percent):.{digits}f}"
    if float(shown) == 0.0:
        return ""
    return f"{MINUS if percent < 0 else '+'}{shown}%"


def seconds(value: float) -> str:
    """850 ms, 12.4 s, 3 min 20 s."""
    if value < 0.9995:
        return f"{three(value * 1e3)} ms" if value >= 1e-3 else f"{value * 1e6:.0f} µs"
    if value < 100:
        return f"{three(value)} s"
    whole = round(value)
    return f"{whole // 60} min {whole % 60:02d} s"


def three(value: float) -> str:
    """Three significant digits, zeros kept so that columns align: 2.00, 12.4, 1,234."""
    digits = 2 - floor(log10(abs(value))) if value else 2
    return f"{value:,.{min(max(digits, 0), 6)}f}"


def milliseconds(value: float | None) -> str:
    """3.14 ms."""
    return NONE if value is None or not isfinite(value) else f"{three(value)} ms"


def probability(value: float | None) -> str:
    """0.012, or < 0.001."""
    if value is None or not isfinite(value):
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def quality(value: float | None) -> str:
    """Three decimals when small, else three significant digits."""
    if value is None or not isfinite(value):
        return NONE
    text = f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"
    return text.replace("-", MINUS)


def ticks(low: float, high: float, wanted: int = 5) -> list[tuple[float, str]]:
    """Round positions between two ends, about `wanted` of them, each with its label."""
    step = nice_step((high - low) / wanted)
    digits = max(0, -floor(log10(step) + 1e-9))
    first = ceil(low / step - 1e-9)
    last = floor(high / step + 1e-9)
    return [
        (i * step, f"{i * step:.{digits}f}".replace("-", MINUS)) for i in range(first, last + 1)
    ]


def nice_step(rough: float) -> float:
    """The step of 1, 2 or 5 times a power of ten next above `rough`."""
    power: float = 10.0 ** floor(log10(rough))
    for factor in (1.0, 2.0, 5.0):
        if factor * power >= rough * (1 - 1e-9):
            return factor * power
    return 10.0 * power
