"""Pipelines: what `--passes` and `-O` mean.

`parse` and `Pipeline.text` are inverse to one another: a printed pipeline is what was run.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from esper._grammar import ItemNode, OptionNode, Span, complaint, syntax
from esper._options import kind_text, options, read, write
from esper.errors import UsageError
from esper.passbase import Aim, Pass, passes

_EXACT = "fold-constants,eliminate-dead,fuse-conv-bn,select-backend"
_SEARCH = "search(prune,reconstruct)"
# Structure is cut before the cast: reconstruction solves in the original precision.
PRESETS: Mapping[str, str] = {
    "O0": "",
    "O1": _EXACT,
    "O2": f"{_EXACT},cast,quantize",
    "O3": f"{_EXACT},{_SEARCH},cast,quantize",
}


@dataclass(frozen=True)
class Item:
    """A pass with its options, and for a combinator its inner pipeline."""

    instance: Pass
    inner: Pipeline | None = None

    def __post_init__(self) -> None:
        if self.instance.nests != bool(self.inner and self.inner.items):
            need = "needs inner passes" if self.instance.nests else "takes no inner passes"
            raise UsageError(f"{self.instance.name} {need}")

    @property
    def lowers(self) -> bool:
        """Whether the pass, or one inside it, may put custom kernels in."""
        return any(step.lowers for step in steps([self]))

    @property
    def aim(self) -> Aim:
        """The pass's aim; a combinator has the strongest aim inside it."""
        if self.inner is None:
            return self.instance.judged_as()
        return strongest(self.inner.items)

    def text(self) -> str:
        """Canonical text: options that differ from their defaults, in order of definition."""
        values: list[str] = []
        for option in options(type(self.instance)).values():
            value = getattr(self.instance, option.field)
            if option.required or value != option.default:
                try:
                    values.append(f"{option.name}={write(value, option.kind)}")
                except ValueError as error:
                    name = f"option {option.name} of {self.instance.name}"
                    raise UsageError(f"{name} cannot be written as text: {error}") from None
        braces = "{" + " ".join(values) + "}" if values else ""
        inner = f"({self.inner.text()})" if self.inner is not None else ""
        return self.instance.name + braces + inner


@dataclass(frozen=True)
class Pipeline:
    """Passes in order."""

    items: tuple[Item, ...] = ()

    def text(self) -> str:
        """Canonical text; `parse` of it is equal to this pipeline."""
        return ",".join(item.text() for item in self.items)

    def __str__(self) -> str:
        return self.text()


@dataclass(frozen=True)
class Unit:
    """Items that the gate judges together, in pipeline order."""

    items: tuple[Item, ...]

    @property
    def aim(self) -> Aim:
        """The strongest aim in it: `speed` when something must pay."""
        return strongest(self.items)

    def text(self) -> str:
        """Canonical text of its items."""
        return Pipeline(self.items).text()

    def steps(self) -> Iterator[Pass]:
        """The passes to run, with the rounds of combinators unrolled."""
        return steps(self.items)


def strongest(items: Iterable[Item]) -> Aim:
    """The aim of several items together: the first of all aims that any of them has."""
    aims = {item.aim for item in items}
    return next((aim for aim in get_args(Aim) if aim in aims), "cleanup")


def steps(items: Iterable[Item]) -> Iterator[Pass]:
    """Passes in the order in which they run, combinators unrolled."""
    for item in items:
        if item.inner is None:
            yield item.instance
        else:
            for _ in range(item.instance.rounds()):
                yield from steps(item.inner.items)


def units(pipeline: Pipeline) -> list[Unit]:
    """Group top-level items into what the gate judges at once.

    A `speed` item closes a unit, except that what is prepared for kernels waits for the item that
    lowers, if one follows. `prepare` and `cleanup` items join the speed item that follows
    them; where none follows, `cleanup` items join the last unit. `repair` items join the unit
    before them, with any cleanup between, since order is kept, or wait with the `prepare` items
    that they follow. Items that find no unit to join make one of their own.
    """
    groups: list[list[Item]] = []
    waiting: list[Item] = []
    for number, item in enumerate(pipeline.items, 1):
        prepared = any(before.aim == "prepare" for before in waiting)
        waits = any(step.for_kernels for step in steps(waiting)) and not item.lowers
        waits = waits and any(later.lowers for later in pipeline.items[number:])
        waiting.append(item)
        closes = item.aim == "speed" and not waits
        if closes or (item.aim == "repair" and not groups and not prepared):
            groups.append(waiting)
            waiting = []
        elif item.aim == "repair" and not prepared:
            groups[-1] += waiting
            waiting = []
    if waiting:
        if groups and strongest(waiting) == "cleanup":
            groups[-1] += waiting
        else:
            groups.append(waiting)
    return [Unit(tuple(group)) for group in groups]


def parse(text: str, table: Mapping[str, type[Pass]] | None = None) -> Pipeline:
    """Read a pipeline such as `fold-constants,repeat{n=3}(prune{ratio=10%},reconstruct)`.

    Args:
        text: the pipeline; empty text is the empty pipeline.
        table: passes by name, by default all that are installed.

    Raises:
        UsageError: with the line and carets under the place, and the nearest known name.
    """
    nodes = syntax(text)
    if not nodes:
        return Pipeline()
    return _bind(text, nodes, passes() if table is None else table)


def preset(level: str) -> Pipeline:
    """The pipeline of `O0` to `O3`. Raises UsageError for another level."""
    if level not in PRESETS:
        raise UsageError(f"unknown level -{level}; known are -" + ", -".join(PRESETS))
    return parse(PRESETS[level])


def _bind(text: str, nodes: Iterable[ItemNode], table: Mapping[str, type[Pass]]) -> Pipeline:
    return Pipeline(tuple(_bind_item(text, node, table) for node in nodes))


def _bind_item(text: str, node: ItemNode, table: Mapping[str, type[Pass]]) -> Item:
    cls = table.get(node.name)
    if cls is None:
        raise complaint(
            text, node.span, f"unknown pass {node.name!r}; {_nearest(node.name, table)}"
        )
    if node.inner is not None and not cls.nests:
        raise complaint(text, node.inner_span, f"{node.name} takes no inner passes")
    if cls.nests and not node.inner:
        where = node.span if node.inner is None else node.inner_span
        raise complaint(text, where, f"{node.name} needs inner passes: {node.name}(PASS,...)")
    inner = None if node.inner is None else _bind(text, node.inner, table)
    return Item(_make(text, node, cls), inner)


def _make(text: str, node: ItemNode, cls: type[Pass]) -> Pass:
    known = options(cls)
    values: dict[str, Any] = {}
    for given in node.options:
        option = known.get(given.key)
        if option is None:
            hint = _nearest(given.key, known) if known else f"{node.name} has none"
            message = f"unknown option {given.key!r} of {node.name}; {hint}"
            raise complaint(text, given.key_span, message)
        if option.field in values:
            message = f"option {given.key} of {node.name} is given twice"
            raise complaint(text, given.key_span, message)
        try:
            values[option.field] = read(given.value, option.kind)
        except ValueError as error:
            message = f"option {given.key} of {node.name} takes {error}"
            raise complaint(text, given.value_span, message) from None
    missing = [o.name for o in known.values() if o.required and o.field not in values]
    if missing:
        message = f"{node.name} needs option {missing[0]}: {node.name}{{{missing[0]}=...}}"
        raise complaint(text, node.span, message)
    try:
        return cls(**values)
    except ValueError as error:
        where = _blamed(str(error), node.options) or node.span
        raise complaint(text, where, f"{node.name}: {error}") from error


def _blamed(message: str, given: Iterable[OptionNode]) -> Span | None:
    """Where the one given option stands that a pass names in its complaint."""
    words = set(re.findall(r"[\w-]+", message.replace("_", "-")))
    named = [o.value_span for o in given if o.key in words]
    return named[0] if len(named) == 1 else None


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    match = difflib.get_close_matches(name.lower().replace("_", "-"), names, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}?" if match else "known are " + ", ".join(names)


def describe(cls: type[Pass]) -> str:
    """What `--describe PASS` prints: the docstring, then each option."""
    known = options(cls)
    lines = [f"{cls.name}: {inspect.cleandoc(cls.__doc__ or '')}", ""]
    judged = {
        "speed": "kept only when it pays at the gate",
        "repair": "judged together with the pass before it",
        "prepare": "no faster by itself; judged together with the next speed pass",
        "cleanup": "exact; judged together with the next speed pass",
    }
    lines.append("combinator of inner passes" if cls.nests else f"{cls.aim}: {judged[cls.aim]}")
    lines += ["", "options:" if known else "no options"]
    for option in known.values():
        default = "required" if option.required else f"default {write(option.default, option.kind)}"
        lines.append(f"  {option.name} = {kind_text(option.kind)}; {default}")
        if option.doc:
            lines.append(f"      {option.doc}")
    return "\n".join(lines)
