"""The pictures of a result: heat maps of ratios and rooflines, one of each for each dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esper_kernel_bench.heat_map import heat_map
from esper_kernel_bench.roofline_plot import roofline_plot


def pictures(document: Mapping[str, Any]) -> dict[str, str]:
    """SVG by file name. A dtype without cells has none."""
    found: dict[str, str] = {}
    for dtype in dict.fromkeys(cell["dtype"] for cell in document["cells"]):
        for against in ("dense", "best"):
            found[f"heat-map-{dtype}-{against}.svg"] = heat_map(document, dtype, against)
        found[f"roofline-{dtype}.svg"] = roofline_plot(document, dtype)
    return found
