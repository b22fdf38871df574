"""The anatomy of a model as a tree, as data, and as a picture, for `esper inspect`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

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
        axes, phages, slots: IDs of what lives right here.
    """

    path: str
    parameters: int = 0
    axes: list[str] = field(default_factory=list)
    phages: list[str] = field(default_factory=list)
    slots: list[str] = field(default_factory=list)
    children: dict[str, Part] = field(default_factory=dict)


def build(model: Model) -> Part:
    """The tree of a model; parts that hold nothing are left out."""
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
    return root


def as_data(model: Model) -> dict[str, Any]:
    """Plain data with everything that the tree shows."""
    anatomy, total = model.anatomy, _total(model)
    return {
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
            }
            for axis in anatomy.axes.values()
        ],
        "phages": [_region(phage) for phage in anatomy.phages.values()],
        "slots": [_region(slot) for slot in anatomy.slots.values()],
        "unknown_ops": _unknown(model),
        "notes": list(model.notes),
    }


def owned(model: Model, axis: Axis) -> int:
    """Parameter values that hold units of an axis: what is divided among its units."""
    names = {name for name, _ in axis.members}
    tensors = {id(t): t for name in names if (t := model.tensor(name)) is not None}
    parameters = {id(p) for p in model.parameters()}
    return sum(t.numel() for key, t in tensors.items() if key in parameters)


def as_tree(model: Model, title: str) -> Tree:
    """A rich tree: modules, their share of the parameters, axes and regions."""
    from rich.text import Text
    from rich.tree import Tree

    total = max(_total(model), 1)
    root = build(model)
    head = Text(title, style="bold")
    head.append(f"  {_total(model):,} parameters, {model.nbytes() / 1e6:.2f} MB", style="dim")
    tree = Tree(head)
    _grow(tree, root, model, total)
    return tree


def _grow(tree: Tree, part: Part, model: Model, total: int) -> None:
    from rich.text import Text

    anatomy = model.anatomy
    for phage in part.phages:
        tree.add(_phage_line(anatomy.phages[phage], total))
    for slot in part.slots:
        tree.add(Text(slot, style="blue"))
    for axis in part.axes:
        tree.add(_axis_line(anatomy.axes[axis], owned(model, anatomy.axes[axis]) / total))
    for part_name, first in part.children.items():
        label, child = Text(part_name, style="bold"), first
        while not (child.axes or child.phages or child.slots) and len(child.children) == 1:
            name, child = next(iter(child.children.items()))
            label.append(f".{name}")
        label.append(f"  {child.parameters / total:.1%} of parameters", style="dim")
        _grow(tree.add(label), child, model, total)


def _axis_line(axis: Axis, share: float) -> Text:
    from rich.text import Text

    text = Text(f"{axis.id}  {axis.size}", style="green" if axis.frozen_reason is None else "")
    text.append(f"  in {share:.1%} of parameters", style="dim")
    if axis.frozen_reason is not None:
        at = f" at {axis.frozen_node}" if axis.frozen_node else ""
        text.append(f"  frozen: {axis.frozen_reason}{at}", style="yellow")
    elif axis.lossy_reason is not None:
        text.append(f"  lossy: {axis.lossy_reason}", style="dim")
    return text


def _phage_line(phage: Phage, total: int) -> Text:
    from rich.text import Text

    text = Text(phage.id, style="magenta")
    share = f"{phage.parameters / total:.1%} of parameters"
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


def _unknown(model: Model) -> list[str]:
    return sorted(set(model.table.unknown.values()))


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


def _at(root: Part, identity: str) -> Part:
    """Where `axis:encoder.layer.3/heads` or `phage:encoder.layer.3` hangs in the tree."""
    place = identity.partition(":")[2].partition("/")[0]
    part = root
    for name in place.split("."):
        if name not in part.children:
            break
        part = part.children[name]
    return part
