"""`--stats`: how many records of each kind each pass led to, and what became of the model."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from esper.instruments._output import table
from esper.instruments.base import Instrument
from esper.records import Kind, Record

if TYPE_CHECKING:
    from esper.ir.model import Model

_KINDS: tuple[str, ...] = get_args(Kind)


class Stats(Instrument):
    """Counts of records by pass, kind and code; nodes, parameters and bytes before and after."""

    name: ClassVar[str] = "stats"

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._before: dict[str, int] = {}
        self._after: dict[str, int] = {}

    def enter(self, model: Model, pipeline: str) -> None:
        self._before = self._after = _size(model)

    def settled(self, model: Model, record: Record) -> None:
        name = record.pass_name or "user"
        self._counts[name, record.kind, record.code] += 1

    def exit(self, model: Model) -> None:
        self._after = _size(model)

    def data(self) -> dict[str, Any]:
        """Plain data: `passes` (pass -> kind -> code -> count) and `model` (what -> from, to)."""
        passes: dict[str, dict[str, dict[str, int]]] = {}
        for (name, kind, code), count in sorted(self._counts.items()):
            passes.setdefault(name, {}).setdefault(kind, {})[code] = count
        model = {key: [self._before[key], self._after[key]] for key in self._before}
        return {"passes": passes, "model": model}

    def text(self) -> str:
        """Three tables: kinds by pass, codes, sizes."""
        data = self.data()
        passes: dict[str, dict[str, dict[str, int]]] = data["passes"]
        kinds = [
            [name, *(str(sum(row.get(kind, {}).values())) for kind in _KINDS)]
            for name, row in passes.items()
        ]
        codes = [
            [f"{name} {kind} {code}", str(count)]
            for name, row in passes.items()
            for kind, by_code in row.items()
            for code, count in by_code.items()
        ]
        sizes = [[key, f"{a:,}", f"{b:,}"] for key, (a, b) in data["model"].items()]
        return "\n\n".join(
            [
                table(["pass", *_KINDS], kinds),
                table(["outcome", "count"], codes),
                table(["model", "before", "after"], sizes),
            ]
        )


def _size(model: Model) -> dict[str, int]:
    tensors = [*model.parameters(), *model.buffers()]
    return {
        "nodes": len(model.graph.nodes),
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": sum(t.numel() * t.element_size() for t in tensors),
    }
