"""The anatomy of a model as a tree, as data, and as a picture, for `esper inspect`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from esper.report.anatomy_svg import Shares

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from esper.ir.anatomy import Axis
    from esper.ir.model import Model
    from esper.ir.regions import Phage


@dataclass
class Part:
    """A place in the user's module tree, with what lives there.

    Attributes:
        path: dotted module path, "" for the model.
        parameters: number of parameter values at and below it, tied ones where they come first.
        seconds: time of the nodes at and below it, if it was taken.
        axes, phages, slots: IDs of what lives right here.
    """

    path: str
    parameters: int = 0
    seconds: float = 0.0
    axes: list[str] = field(default_factory=list)
    phages: list[str] = field(default_factory=list)
    slots: list[str] = field(default_factory=list)
    children: dict[str, Part] = field(default_factory=dict)


def build(model: Model, seconds: Mapping[str, float]) -> Part:
    """The tree of a model; parts that hold nothing are left out.

    Args:
        model: the model.
        seconds: of nodes, by name (`esper.node_times`); empty if no time was taken.
    """
    root = Part("")
    for name, parameter in model.named_parameters():
        for part in _along(root, name.split(".")[:-1]):
            part.parameters += parameter.numel()
    anatomy = model.anatomy
    for axis in anatomy.axes:
        _at(root, axis).axes.append(axis)
    for phage in anatomy.phages:
        _at(root, phage).phages.append(phage)
    for slot in anatomy.slots:
        _at(root, slot).slots.append(slot)
    nodes = model.nodes
    for name, value in seconds.items():
        for part in _reached(root, str(nodes[name].meta.get("module", ""))):
            part.seconds += value
    return root


def as_data(model: Model, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Plain data with everything that the tree shows; times only where they were taken."""
    anatomy, total = model.anatomy, _total(model)
    data = {
        "parameters": total,
        "bytes": model.nbytes(),
        "nodes": len(model.graph.nodes),
        "inputs": list(model.ports.inputs) if model.ports else [],
        "outputs": list(model.ports.outputs) if model.ports else [],
        "axes": [
            {
                "id": axis.id,
                "kind": axis.kind,
                "size": axis.size,
                "unit_ids": list(axis.unit_ids),
                "members": [list(member) for member in axis.members],
                "parameters": owned(model, axis),
                "frozen_reason": axis.frozen_reason,
                "frozen_node": axis.frozen_node,
                "lossy_reason": axis.lossy_reason,
                "least": axis.least,
            }
            for axis in anatomy.axes.values()
        ],
        "phages": [_region(phage) for phage in anatomy.phages.values()],
        "slots": [_region(slot) for slot in anatomy.slots.values()],
        "unknown_ops": _unknown(model),
        "notes": list(model.notes),
    }
    if seconds:
        data["node_seconds"] = dict(seconds)
    return data


def headline(model: Model, seconds: Mapping[str, float]) -> str:
    """Size of a model in a few words, and its time where that was taken."""
    text = f"{_total(model):,} parameters, {model.nbytes() / 1e6:.2f} MB"
    return f"{text}, {sum(seconds.values()) * 1e3:.2f} ms node by node" if seconds else text


def shares(model: Model, seconds: Mapping[str, float]) -> Shares:
    """What each module path holds of the parameters, and of the time where it was taken."""
    total, whole = max(_total(model), 1), sum(seconds.values())
    parts = [build(model, seconds)]
    for part in parts:  # grows meanwhile
        parts += part.children.values()
    return Shares(
        {part.path: part.parameters / total for part in parts},
        {part.path: part.seconds / whole for part in parts} if whole else {},
    )


def owned(model: Model, axis: Axis) -> int:
    """Parameter values that hold units of an axis: what is divided among its units."""
    names = {name for name, _ in axis.members}
    tensors = {id(t): t for name in names if (t := model.tensor(name)) is not None}
    parameters = {id(p) for p in model.parameters()}
    return sum(t.numel() for key, t in tensors.items() if key in parameters)


def as_tree(model: Model, title: str, seconds: Mapping[str, float]) -> Tree:
    """A rich tree: modules, their share of parameters (and of time), axes and regions."""
    from rich.text import Text
    from rich.tree import Tree

    root = build(model, seconds)
    head = Text(title, style="bold")
    head.append(f"  {headline(model, seconds)}", style="dim")
    tree = Tree(head)
    _grow(tree, root, model, _Whole(max(_total(model), 1), seconds))
    return tree


@dataclass(frozen=True)
class _Whole:
    """What shares are shares of."""

    parameters: int
    seconds: Mapping[str, float]

    def share(self, parameters: int, seconds: float) -> str:
        text = f"{parameters / self.parameters:.1%} of parameters"
        if self.seconds:
            text += f", {seconds / max(sum(self.seconds.values()), 1e-12):.1%} of time"
        return text


def _grow(tree: Tree, part: Part, model: Model, whole: _Whole) -> None:
    from rich.text import Text

    anatomy = model.anatomy
    for phage in part.phages:
        tree.add(_phage_line(anatomy.phages[phage], whole))
    for slot in part.slots:
        tree.add(Text(slot, style="blue"))
    for axis in part.axes:
        tree.add(
            _axis_line(anatomy.axes[axis], owned(model, anatomy.axes[axis]) / whole.parameters)
        )
    for part_name, first in part.children.items():
        label, child = Text(part_name, style="bold"), first
        while not (child.axes or child.phages or child.slots) and len(child.children) == 1:
            name, child = next(iter(child.children.items()))
            label.append(f".{name}")
        label.append(f"  {whole.share(child.parameters, child.seconds)}", style="dim")
        _grow(tree.add(label), child, model, whole)


def _axis_line(axis: Axis, share: float) -> Text:
    from rich.text import Text

    text = Text(f"{axis.id}  {axis.size}", style="green" if axis.frozen_reason is None else "")
    text.append(f"  in {share:.1%} of parameters", style="dim")
    if axis.frozen_reason is not None:
        at = f" at {axis.frozen_node}" if axis.frozen_node else ""
        text.append(f"  frozen: {axis.frozen_reason}{at}", style="yellow")
    elif axis.lossy_reason is not None:
        text.append(f"  lossy: {axis.lossy_reason}", style="dim")
    if axis.least > 1:
        text.append(f"  {axis.least} are selected and must stay", style="dim")
    return text


def _phage_line(phage: Phage, whole: _Whole) -> Text:
    from rich.text import Text

    text = Text(phage.id, style="magenta")
    share = whole.share(phage.parameters, sum(whole.seconds.get(n, 0.0) for n in phage.nodes))
    text.append(f"  {len(phage.nodes)} operations, {share}", style="dim")
    if not phage.bypassable:
        text.append(f"  stays: {phage.reason}", style="yellow")
    return text


def _region(region: Any) -> dict[str, Any]:
    return {key: _plain(value) for key, value in asdict(region).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)


def _unknown(model: Model) -> list[dict[str, str]]:
    nodes = model.nodes
    return [
        {"node": name, "op": op, "source": str(nodes[name].meta.get("source", ""))}
        for name, op in model.table.unknown.items()
    ]


def unknown_lines(unknown: Iterable[Mapping[str, str]]) -> list[str]:
    """One sentence for each op without a rule: where it is first met and what to do."""
    by_op: dict[str, list[Mapping[str, str]]] = {}
    for found in unknown:
        by_op.setdefault(found["op"], []).append(found)
    lines = []
    for op, places in by_op.items():
        first, more = places[0], len(places) - 1
        source = f" ({first['source']})" if first["source"] else ""
        also = f" and {more} more" if more else ""
        lines.append(
            f"no axis rule for {op}, at %{first['node']}{source}{also}: what it touches is frozen; "
            "esper.register_axis_rule adds a rule"
        )
    return lines


def _total(model: Model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _along(root: Part, path: Iterable[str]) -> list[Part]:
    """The parts from the root to a path, made where absent."""
    parts = [root]
    for name in path:
        here = parts[-1]
        full = f"{here.path}.{name}" if here.path else name
        parts.append(here.children.setdefault(name, Part(full)))
    return parts


def _reached(root: Part, path: str) -> list[Part]:
    """The parts along a path, as far as there are any."""
    parts = [root]
    for name in filter(None, path.split(".")):
        child = parts[-1].children.get(name)
        if child is None:
            break
        parts.append(child)
    return parts


def _at(root: Part, identity: str) -> Part:
    """Where `axis:encoder.layer.3/heads` or `phage:encoder.layer.3` hangs in the tree."""
    place = identity.partition(":")[2].partition("/")[0]
    part = root
    for name in place.split("."):
        if name not in part.children:
            break
        part = part.children[name]
    return part
