"""Which blocks and rows the anatomy picture has: placing, matching and collapsing, no drawing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from esper.report.data import AxisRow

STRIP_FROM = 12
"""Runs of at least this many like blocks with unlike sizes become one block of columns."""


@dataclass(frozen=True)
class Bar:
    """One axis, before and after. Sizes are units; `after` is 0 when the axis is gone.

    Attributes:
        cut: positions that are gone, known only when every unit is drawn as a cell.
        spread: number of blocks that hold units of it.
    """

    id: str
    label: str
    kind: str
    before: int
    after: int
    cells: bool
    cut: frozenset[int]
    frozen: str | None
    lossy: str | None
    spread: int

    @property
    def shape(self) -> tuple[object, ...]:
        """What makes two bars of like blocks the same picture."""
        return (*self.kinship, self.before, self.after, self.cut)

    @property
    def kinship(self) -> tuple[object, ...]:
        """What two bars share when only their sizes differ."""
        return (self.label, self.kind, self.frozen)


@dataclass(frozen=True)
class Block:
    """A module with its bars."""

    path: tuple[str, ...]
    bars: tuple[Bar, ...]

    @property
    def template(self) -> tuple[str, ...]:
        """The path with numbers left out: what repeats of one module have in common."""
        return tuple(re.sub(r"\d+", "#", part) for part in self.path)


@dataclass(frozen=True)
class Group:
    """Consecutive blocks shown as one. `alike`: they are the same; else sizes differ."""

    blocks: tuple[Block, ...]
    alike: bool


def layout(before: Sequence[AxisRow], after: Sequence[AxisRow] | None) -> list[Group]:
    """Groups from top to bottom, in the order in which the axes are given."""
    shared = common([path for row in before for path in row.modules])
    found: dict[tuple[str, ...], list[Bar]] = {}
    later = None if after is None else {row.id: row for row in after}
    for row in before:
        key = block_of(_home(row, shared))
        found.setdefault(key, []).append(_bar(row, _match(row, later), key, shared))
    known = {row.id for row in before}
    for row in after or ():
        if row.id not in known:
            key = block_of(_home(row, shared))
            found.setdefault(key, []).append(_bar(None, row, key, shared))
    blocks = [Block(path, tuple(bars)) for path, bars in found.items()]
    return list(_strips(_runs(blocks, _same, 2), STRIP_FROM))


def common(paths: Iterable[str]) -> tuple[str, ...]:
    """Leading components that all dotted paths share, never a whole path."""
    split = [tuple(path.split(".")) for path in paths]
    shortest = min((len(parts) for parts in split), default=1) - 1
    shared: list[str] = []
    for pieces in list(zip(*split, strict=False))[:shortest]:
        if len(set(pieces)) > 1:
            break
        shared.append(pieces[0])
    return tuple(shared)


def block_of(path: tuple[str, ...]) -> tuple[str, ...]:
    """The block a module is drawn in: up to its first number, else its parent."""
    for i, part in enumerate(path[:-1]):
        if part.isdigit():
            return path[: i + 1]
    return path[:-1] or path


def _home(row: AxisRow, shared: tuple[str, ...]) -> tuple[str, ...]:
    first = row.modules[0] if row.modules else _id_path(row)
    return tuple(first.split("."))[len(shared) :] if row.modules else tuple(first.split("."))


def _id_path(row: AxisRow) -> str:
    return row.id.removeprefix("axis:").rpartition("/")[0]


def _match(row: AxisRow, later: dict[str, AxisRow] | None) -> AxisRow | None:
    return row if later is None else later.get(row.id)


def _bar(
    old: AxisRow | None, new: AxisRow | None, block: tuple[str, ...], shared: tuple[str, ...]
) -> Bar:
    row = old or new
    assert row is not None
    before = old.size if old is not None else 0
    after = new.size if new is not None else 0
    left = set(new.units) if new is not None else set()
    cells = old is not None and len(old.units) == before > 0 and (after == 0 or bool(left))
    units = old.units if old is not None and cells else ()
    cells = cells and left <= set(units)
    cut = frozenset(i for i, unit in enumerate(units) if unit not in left) if cells else frozenset()
    spread = len({block_of(tuple(path.split("."))[len(shared) :]) for path in row.modules})
    label = _label(row, block, shared)
    return Bar(row.id, label, row.kind, before, after, cells, cut, row.frozen, row.lossy, spread)


def _label(row: AxisRow, block: tuple[str, ...], shared: tuple[str, ...]) -> str:
    """The module within the block: of the ID where it lies there, else where the axis begins."""
    path = tuple(_id_path(row).split("."))[len(shared) :]
    if path[: len(block)] != block:
        path = _home(row, shared)
    return ".".join(path[len(block) :])


def _same(one: Block, other: Block) -> bool:
    return one.template == other.template and [b.shape for b in one.bars] == [
        b.shape for b in other.bars
    ]


def _kin(one: Block, other: Block) -> bool:
    return one.template == other.template and [b.kinship for b in one.bars] == [
        b.kinship for b in other.bars
    ]


def _runs(
    blocks: Sequence[Block], alike: Callable[[Block, Block], bool], least: int
) -> list[Group]:
    """Consecutive blocks that are alike, joined where there are at least `least`."""
    groups: list[Group] = []
    run: list[Block] = []

    def close() -> None:
        if len(run) >= least:
            groups.append(Group(tuple(run), True))
        else:
            groups.extend(Group((block,), True) for block in run)
        run.clear()

    for block in blocks:
        if run and not alike(run[-1], block):
            close()
        run.append(block)
    close()
    return groups


def _strips(groups: Sequence[Group], least: int) -> Iterable[Group]:
    """Join runs of groups that differ in sizes only, where they would need `least` blocks."""
    run: list[Group] = []

    def close() -> Iterable[Group]:
        if len(run) >= least:
            yield Group(tuple(block for group in run for block in group.blocks), False)
        else:
            yield from run
        run.clear()

    for group in groups:
        if run and not _kin(run[-1].blocks[-1], group.blocks[0]):
            yield from close()
        run.append(group)
    yield from close()
