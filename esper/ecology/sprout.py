"""A blueprint's module as graph edits: traced once a kind of value, drawn anew for each seed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import fx

from esper.ecology.blueprints import Blueprint, UnfitError, Value
from esper.errors import TraceError
from esper.ir.model import Model
from esper.ir.shapes import same_value
from esper.ir.trace import trace
from esper.plan import Insert, Ref
from esper.state import Create, Op

_INNER = "inner"  # where the blueprint's module lives in what is traced


@dataclass(frozen=True)
class Sprout:
    """What planting inserts.

    Attributes:
        edits: the seed's nodes, in order.
        tensors: its parameters and buffers.
        output: name of the node that gives f(x).
        slots: ID -> node of the slots that its blueprint marks.
    """

    edits: tuple[Insert, ...]
    tensors: Mapping[str, tuple[Op, ...]]
    output: str
    slots: Mapping[str, str]


@dataclass(frozen=True)
class Soil:
    """Where a seed goes.

    Attributes:
        root: module path of the seed.
        entry: name of the node that it reads.
        before: name of the node before which its nodes come.
        training: the model's present mode.
        device: of the value.
        name: gives a node name that is free, from a wish.
    """

    root: str
    entry: str
    before: str
    training: bool
    device: torch.device
    name: Callable[[str], str]


def identifier(path: str) -> str:
    """A module path as a node name."""
    return re.sub(r"\W", "_", path)


def sprout(
    blueprint: Blueprint, value: Value, options: Mapping[str, Any], seed: int, soil: Soil
) -> Sprout:
    """The edits and tensors of one seed. Raises UnfitError."""
    module = blueprint.module(value, options, seed)
    traced = _traced(blueprint, value, tuple(sorted(options.items())), soil.training)
    drawn = {
        f"{_INNER}.{name}": (tensor.detach(), isinstance(tensor, torch.nn.Parameter))
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }
    names = traced.canonical_names()
    prefix = identifier(soil.root)
    places: dict[str, str] = {}  # traced node -> node of the host
    edits: list[Insert] = []
    read: dict[str, None] = {}
    counters = (node.meta.get("counter") for node in traced.graph.nodes)
    counted = {names[counter] for counter in counters if counter}

    def moved(path: str) -> str:
        return f"{soil.root}.{path.removeprefix(f'{_INNER}.')}"

    def argument(item: Any) -> Any:
        if isinstance(item, fx.Node):
            return Ref(places[item.name])
        if isinstance(item, torch.device):
            return soil.device
        if isinstance(item, (list, tuple)):
            return type(item)(argument(part) for part in item)
        return item

    output = ""
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            places[node.name] = soil.entry
            continue
        if node.op == "output":
            output = places[node.args[0][0].name]
            continue
        if node.op == "get_attr" and not node.users and names[str(node.target)] not in counted:
            continue
        target: Any = node.target
        if node.op == "get_attr":
            target = moved(names[str(node.target)])
            read[names[str(node.target)]] = None
        counter = node.meta.get("counter", "")
        places[node.name] = soil.name(f"{prefix}_{node.name}")
        path = str(node.meta.get("module") or "").removeprefix(_INNER).removeprefix(".")
        edits.append(
            Insert(
                places[node.name],
                node.op,
                target,
                argument(node.args),
                soil.before,
                {key: argument(item) for key, item in node.kwargs.items()},
                module=f"{soil.root}.{path}" if path else soil.root,
                modes=node.meta.get("modes", {}),
                counter=moved(counter) if counter else "",
            )
        )
    tensors: dict[str, tuple[Op, ...]] = {}
    for name in read:
        constant = traced.tensor(name)
        assert constant is not None
        tensor, trainable = drawn.get(name, (constant.detach(), False))
        tensors[moved(name)] = (Create(tensor.to(soil.device), trainable),)
    slots = {
        f"slot:{moved(name.removeprefix('slot:'))}": places[life.input]
        for name, life in traced.ecology.slots().items()
    }
    return Sprout(tuple(edits), tensors, output, slots)


class _Holder(torch.nn.Module):
    """Names of the blueprint's own parts never meet those of a Model."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(x)
        return result


@lru_cache(maxsize=512)  # Tamiyo looks at all blueprints for each kind of value
def _traced(
    blueprint: Blueprint, value: Value, options: tuple[tuple[str, Any], ...], training: bool
) -> Model:
    module = _Holder(blueprint.module(value, dict(options), 0)).train(training)
    # Symbolic sizes get examples that differ, so that none is taken for another.
    sizes = [s if isinstance(s, int) else 3 + 2 * i for i, s in enumerate(value.shape)]
    symbolic = [i for i, s in enumerate(value.shape) if isinstance(s, str)]
    example = torch.zeros(sizes, dtype=value.dtype)
    try:
        model = trace(module, (example,), dynamic={"x": symbolic})
    except TraceError as error:
        raise UnfitError(f"it cannot be traced: {error}") from error
    if model.notes:
        raise UnfitError(f"it cannot follow the model: {model.notes[0]}")
    first, last = (next(iter(model.graph.find_nodes(op=op))) for op in ("placeholder", "output"))
    results = last.args[0]
    if len(results) != 1 or not isinstance(results[0], fx.Node):
        raise UnfitError("it does not give one tensor")
    taken, given = first.meta["val"], results[0].meta["val"]
    if any(isinstance(taken.shape[i], int) for i in symbolic):
        raise UnfitError("it works for one size only where the value's size varies")
    if not same_value(taken, given):
        raise UnfitError("it does not give a tensor of the shape and dtype that it takes")
    marked = {life.input for life in model.ecology.slots().values()}
    if results[0] is first or first.name in marked:
        raise UnfitError("it passes its input on, or marks it as a slot")
    return model
