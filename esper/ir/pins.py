"""Pins: parts that the user keeps as they are, by glob over stable IDs."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from esper.errors import UsageError

if TYPE_CHECKING:
    from esper.ir.anatomy import Axis
    from esper.ir.regions import Phage

REASON = "pinned by the user"


def pinned_axes(axes: dict[str, Axis], pins: Collection[str]) -> dict[str, Axis]:
    """The axes, those that a pin matches frozen; what an op freezes keeps that reason."""
    return {
        name: replace(axis, frozen_reason=f"{REASON} ({pin})", frozen_node=None)
        if axis.frozen_reason is None and (pin := first_match(name, pins))
        else axis
        for name, axis in axes.items()
    }


def pinned_regions(regions: dict[str, Phage], pins: Collection[str]) -> dict[str, Phage]:
    """The regions, those that a pin matches not to be bypassed."""
    return {
        name: replace(region, bypassable=False, reason=f"{REASON} ({pin})")
        if region.bypassable and (pin := first_match(name, pins))
        else region
        for name, region in regions.items()
    }


def first_match(name: str, pins: Iterable[str]) -> str:
    """The first glob that matches an ID; empty for none."""
    return next((pin for pin in pins if fnmatch.fnmatchcase(name, pin)), "")


def check_pin(pin: str, names: Collection[str]) -> None:
    """Raise UsageError when a glob matches no part."""
    if any(first_match(name, (pin,)) for name in names):
        return
    from difflib import get_close_matches

    near = get_close_matches(pin, names, 1)
    hint = f"; did you mean {near[0]}?" if near else "; `esper inspect` lists the parts"
    raise UsageError(f"no axis or region matches {pin!r}{hint}")
