"""The one page of a storyboard, as plain data and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from esper.demo.paired import Paired, quartiles


@dataclass(frozen=True)
class Arm:
    """One way of training, with a figure for each seed.

    Attributes:
        name: of the arm.
        metric: what is judged.
        cost: of training, in 1e9 multiply-accumulates.
        parameters: at the end.
        churn: structural changes that were committed.
        failures: runs that broke: a loss that is not finite, or a proposal that failed in the door.
    """

    name: str
    metric: tuple[float, ...]
    cost: tuple[float, ...]
    parameters: tuple[int, ...]
    churn: tuple[int, ...]
    failures: int = 0

    def cells(self) -> tuple[str, ...]:
        """A row of the table of metrics."""
        median, low = quartiles(self.metric)
        cost, size, churn = (quartiles(v)[0] for v in (self.cost, self.parameters, self.churn))
        figures = f"{median:.4g}", f"{low:.4g}", f"{cost:.4g}", f"{size:,.0f}", f"{churn:g}"
        return (self.name, *figures, f"{self.failures} of {len(self.metric)}")


@dataclass(frozen=True)
class Table:
    """A table of text; the first column is words, the others are figures unless `words` says so."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1

    def text(self) -> str:
        """Columns under their heads."""
        lines = [self.heads, *self.rows]
        wide = [max(len(line[i]) for line in lines) for i in range(len(self.heads))]
        return "\n".join(
            "  ".join(
                cell.ljust(w) if i < self.words else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(line, wide, strict=True))
            ).rstrip()
            for line in lines
        )


@dataclass(frozen=True)
class Curve:
    """A line of the picture: one value at each of some ticks."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Mark:
    """Something that happened at a tick, with the code of its event."""

    tick: int
    text: str
    code: str = ""


@dataclass(frozen=True)
class Excerpt:
    """Lines of another command's output."""

    title: str
    text: str


@dataclass(frozen=True)
class Page:
    """What a storyboard shows.

    Attributes:
        stage: stage0 to stage3.
        claim: what it sets out to show, in a sentence.
        holds: whether it did.
        finding: what came out, in a sentence, losses included.
        metric: what the arms' figures are.
        arms, pairs: figures over seeds, and comparisons.
        tables, curves, marks, excerpts, notes: further parts.
        vertical: what the curves show.
        command: that made the page.
    """

    stage: str
    claim: str
    holds: bool
    finding: str
    metric: str
    arms: tuple[Arm, ...] = ()
    pairs: tuple[Paired, ...] = ()
    tables: tuple[Table, ...] = ()
    curves: tuple[Curve, ...] = ()
    marks: tuple[Mark, ...] = ()
    excerpts: tuple[Excerpt, ...] = ()
    notes: tuple[str, ...] = ()
    vertical: str = "loss"
    command: str = ""

    def metrics(self) -> Table:
        """The table of arms: median and q25 of the metric, cost, size, churn, failures."""
        heads = ("arm", f"median {self.metric}", "q25", "cost", "parameters", "churn", "failures")
        return Table("Metrics", heads, tuple(arm.cells() for arm in self.arms))

    def every_table(self) -> tuple[Table, ...]:
        """The metrics first."""
        return (self.metrics(), *self.tables) if self.arms else self.tables

    def text(self) -> str:
        """The page for a terminal."""
        parts = [f"{self.stage}: {self.claim}", f"{_word(self.holds)}: {self.finding}"]
        parts += [f"{table.title}\n{_indented(table.text())}" for table in self.every_table()]
        parts += [pair.sentence() for pair in self.pairs]
        parts += [f"{e.title}\n{_indented(e.text)}" for e in self.excerpts]
        parts += [f"note: {note}" for note in self.notes]
        return "\n\n".join(parts) + "\n"


def median_curve(name: str, runs: Sequence[Sequence[tuple[float, float]]]) -> Curve:
    """The median over runs at each tick that all of them reached."""
    shortest = min(map(len, runs))
    return Curve(
        name,
        tuple((runs[0][i][0], quartiles([run[i][1] for run in runs])[0]) for i in range(shortest)),
    )


def _word(holds: bool) -> str:
    return "shown" if holds else "not shown"


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())
