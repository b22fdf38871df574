"""Running means of many figures at once, which follow units that come and go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

Segments = dict[str, tuple[int, ...]]  # part -> its units, one place each


class Running:
    """Means over the last samples: plain up to `memory` samples, exponential from there on.

    Figures are columns of one matrix on one device, so that a sample costs a few operations
    whatever the number of parts. What is not finite counts as not seen.

    Args:
        columns: names of the figures.
        extras: further values by place, kept as they were last set.
        memory: samples over which the mean reaches, in effect.
    """

    def __init__(self, columns: tuple[str, ...], extras: tuple[str, ...], memory: int) -> None:
        self.columns = columns
        self.memory = memory
        self.segments: Segments = {}
        self.mean = torch.zeros(len(columns), 0, dtype=torch.float64)
        self.count = torch.zeros(len(columns), 0, dtype=torch.float64)
        self.extras = {name: torch.zeros(0, dtype=torch.float64) for name in extras}

    def __len__(self) -> int:
        return self.mean.shape[1]

    def place(self, part: str) -> int:
        """Where a part's places begin. Raises KeyError."""
        names = list(self.segments)
        if part not in self.segments:
            raise KeyError(part)
        return sum(len(self.segments[name]) for name in names[: names.index(part)])

    def follow(self, segments: Segments, device: torch.device) -> None:
        """Take the present parts and units: known ones keep what they have, others start anew."""
        if segments == self.segments and device == self.mean.device:
            return
        offsets: dict[str, int] = {}
        at = 0
        for name, units in self.segments.items():
            offsets[name] = at
            at += len(units)
        source: list[int] = []
        for name, units in segments.items():
            old = self.segments.get(name)
            if old == units:
                source += range(offsets[name], offsets[name] + len(units))
            else:
                known = {unit: offsets[name] + i for i, unit in enumerate(old or ())}
                source += [known.get(unit, -1) for unit in units]
        index = torch.tensor(source, dtype=torch.int64, device=device)
        fresh, index = index < 0, index.clamp_min(0)
        pad = torch.zeros(len(self.columns), 1, dtype=torch.float64, device=device)

        def moved(values: torch.Tensor) -> torch.Tensor:
            wide = torch.cat([values.to(device), pad[0] if values.ndim == 1 else pad], -1)
            return torch.where(fresh, 0.0, wide.index_select(-1, index))

        self.mean, self.count = moved(self.mean), moved(self.count)
        self.extras = {name: moved(values) for name, values in self.extras.items()}
        self.segments = dict(segments)

    def add(self, figures: torch.Tensor) -> None:
        """One sample: a matrix (columns, places)."""
        figures = figures.to(self.mean)
        seen = torch.isfinite(figures)
        self.count += seen
        rate = 1 / self.count.clamp(1, self.memory)
        self.mean = torch.where(seen, self.mean + rate * (figures - self.mean), self.mean)

    def known(self) -> torch.Tensor:
        """Means (columns, places), NaN where nothing was seen."""
        return torch.where(self.count > 0, self.mean, torch.nan)

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors (not copies)."""
        segments = {name: list(units) for name, units in self.segments.items()}
        return {
            "segments": segments, "mean": self.mean, "count": self.count, "extras": self.extras
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.segments = {name: tuple(units) for name, units in state["segments"].items()}
        self.mean, self.count = state["mean"].clone(), state["count"].clone()
        self.extras = {name: values.clone() for name, values in state["extras"].items()}
