"""Patterns are exact: every group has N of M, every cell is on or off as a whole."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from esper.ir.patterns import Pattern

SHAPES = [(8, 12), (8, 12, 3), (8, 12, 2, 2)]
GROUPS = [
    ("2:4", 1, 2, 4, 1),
    ("1:3", 1, 1, 3, 1),
    ("4:2:4", 4, 2, 4, 1),
    ("8:3:6", 8, 3, 6, 1),
    ("4:1:2x3", 4, 1, 2, 3),
    ("8:2:3x2", 8, 2, 3, 2),
    ("1:3x4", 1, 1, 3, 4),
]


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("text", "rows", "keep", "of", "run"), GROUPS)
def test_groups(
    text: str, rows: int, keep: int, of: int, run: int, shape: tuple[int, ...], dim: int
) -> None:
    shape = shape if dim else (shape[1], shape[0], *shape[2:])
    pattern = Pattern.parse(text, dim=dim)
    assert pattern.misfit(shape) == ""
    scores = torch.rand(shape, dtype=torch.float64)
    mask = pattern.spread(pattern.choose(pattern.cells(scores)), shape)
    assert pattern.fits(mask)
    assert torch.equal(pattern.spread(pattern.on(mask), shape), mask)
    seen, values = (mask, scores) if dim else (mask.transpose(0, 1), scores.transpose(0, 1))
    outputs, inputs = seen.shape[:2]
    for place in itertools.product(*map(range, seen.shape[2:])):
        step = of * run
        for row, column in itertools.product(range(0, outputs, rows), range(0, inputs, step)):
            at: Any = (slice(row, row + rows), slice(column, column + step), *place)
            group = seen[at].reshape(rows, of, run)
            assert (group == group[:1, :, :1]).all()  # alike in rows and in a run
            on = group[0, :, 0]
            assert on.sum() == keep
            worth = values[at].reshape(rows, of, run).sum((0, 2))
            assert worth[on].min() > worth[~on].max()


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks(shape: tuple[int, ...], dim: int) -> None:
    shape = shape if dim else (shape[1], shape[0], *shape[2:])
    pattern = Pattern.parse("4x3", 0.375, dim)
    scores = torch.rand(shape)
    mask = pattern.spread(pattern.choose(pattern.cells(scores)), shape)
    assert pattern.fits(mask)
    seen, values = (mask, scores) if dim else (mask.transpose(0, 1), scores.transpose(0, 1))
    on: list[float] = []
    off: list[float] = []
    for row, column in itertools.product(range(0, 8, 4), range(0, 12, 3)):
        block = seen[row : row + 4, column : column + 3]
        assert block.all() or not block.any()
        worth = float(values[row : row + 4, column : column + 3].sum())
        (on if block.all() else off).append(worth)
    assert len(on) == 3
    assert min(on) > max(off)


def test_masks_that_do_not_fit() -> None:
    pattern = Pattern.parse("2:4")
    mask = torch.tensor([[True, True, False, False]])
    assert pattern.fits(mask)
    assert not pattern.fits(torch.tensor([[True, True, True, False]]))
    assert not pattern.fits(mask[:, :3])
    runs = torch.tensor([[True, True, False, False]])
    assert Pattern.parse("1:2x2").fits(runs)
    assert not Pattern.parse("1:2x2").fits(torch.tensor([[True, False, False, True]]))
    assert not Pattern.parse("2:1:2x2").fits(torch.cat([runs, ~runs]))
    assert not Pattern.parse("2x2").fits(torch.tensor([[True, False], [True, True]]))


@pytest.mark.parametrize(
    ("text", "density", "dim", "why"),
    [
        ("2-4", 0.5, 1, "no pattern"),
        ("0:4", 0.5, 1, "no pattern"),
        ("4:4", 0.5, 1, "fewer than"),
        ("8:4:4x16", 0.5, 1, "fewer than"),
        ("8:2:4x0", 0.5, 1, "no pattern"),
        ("8:2:4x", 0.5, 1, "V:N:MxC"),
        ("4x4", 1.0, 1, "density"),
        ("2:4", 0.5, 2, "dim 0 or 1"),
    ],
)
def test_what_is_no_pattern(text: str, density: float, dim: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Pattern.parse(text, density, dim)


@pytest.mark.parametrize(
    ("text", "shape", "why"),
    [
        ("2:4", (8,), "fewer than two dims"),
        ("2:4", (8, 6), "6 inputs are no multiple of 4"),
        ("16:2:4", (8, 8), "8 outputs are no multiple of 16"),
        ("2x5", (8, 8), "8 inputs are no multiple of 5"),
        ("4:2:4x4", (8, 24), "24 inputs are no multiple of 16, 4 runs of 4"),
        ("16:2:4x4", (8, 16), "8 outputs are no multiple of 16"),
    ],
)
def test_what_does_not_divide(text: str, shape: tuple[int, ...], why: str) -> None:
    assert why in Pattern.parse(text).misfit(shape)
