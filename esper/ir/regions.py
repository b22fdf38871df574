"""Regions that may be bypassed (phages) and places where growth may happen (slots).

A *region* has an entry value u, an exit value v and the trunk nodes between them (`dataflow`
says what the trunk is). Definitions, precisely:

- single exit: every use of a region's node lies in the region, except uses of v. In a branch
  this is read off the post-dominator tree: the region is the subtree below v.
- single entry: every other trunk value that enters, a *side input*, is independent of u: it
  neither lies downstream of u nor dominates u. An encoder's output that a decoder layer attends
  to is a side input; a skip connection around the entry is not, and there is no region then.
  Context (masks, rotary tables, symbolic sizes) may enter anywhere. Side inputs do not matter
  for a bypass, since their readers go.
- bypassable: u and v agree in shape (symbols too), dtype and device.

Seeds are regions of their own from the start, and part of the host's regions around them.

Two sorts are found. A *module region* holds the nodes of one module path and what is beneath it.
A *branch* is the f(x) of y = x + f(x): entry x, exit the operand of the sum; without it y is x.
Regions hold at least two parametrised operations and one matrix when first seen.

IDs are `phage:<module path>`. A branch is named by the common path of its nodes that read a
matrix; where a module region of that path means something else it becomes `<path>/branch`. IDs
are remembered in `Identities.regions` and never given to another part.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from esper.ir.dataflow import Dataflow, weights
from esper.ir.seedlings import Seedlings
from esper.ir.shapes import describe, same_value

if TYPE_CHECKING:
    from esper.ir.anatomy import Identities
    from esper.ir.model import Model

aten = torch.ops.aten
_SUMS = (aten.add.Tensor, aten.add_.Tensor)


@dataclass(frozen=True)
class Phage:
    """A single-entry single-exit region of the graph.

    Attributes:
        id: stable ID.
        path: module path that the region is named after.
        entry, exit: names of the nodes whose values enter and leave.
        nodes: names of its trunk nodes in graph order, the exit included.
        parameters: number of parameter elements read inside.
        branch: whether it is the f(x) of a residual sum y = x + f(x).
        bypassable: whether the region may be dropped.
        reason: why not; empty where it may.
        merge: the node y that becomes x when a branch is dropped.
    """

    id: str
    path: str
    entry: str
    exit: str
    nodes: tuple[str, ...]
    parameters: int
    branch: bool
    bypassable: bool
    reason: str
    merge: str | None = None


@dataclass(frozen=True)
class Slot:
    """A value that a new part could transform: the output of a phage, or a place that was named.

    Attributes:
        id: `slot:<path>.out`, or `slot:<path>` of a marker.
        node: name of the node by which the host computes the value.
        shape: sizes; symbolic ones as text.
    """

    id: str
    node: str
    shape: tuple[int | str, ...]


@dataclass
class _Region:
    path: str
    entry: fx.Node
    exit: fx.Node
    nodes: list[fx.Node]
    merge: fx.Node | None = None


def phages_and_slots(model: Model) -> tuple[dict[str, Phage], dict[str, Slot]]:
    """Regions of the present graph by ID, outer before inner, in graph order.

    Near linear in nodes times module depth. Updates `model.identities.regions`.
    """
    flow, seeds = Dataflow(model), Seedlings(model)
    modules = _module_regions(flow, seeds)
    branches = _branches(flow, seeds)
    for branch in branches:
        owner = modules.get(branch.path)
        if owner is not None and _absorbs(branch, owner):
            del modules[branch.path]
    named = _identify(model, flow, seeds, modules, branches)
    sizes = {name: p.numel() for name, p in weights(model).items()}
    phages = {name: _phage(name, region, flow, sizes) for name, region in named.items()}
    slots = [
        slot_at(f"slot:{name.removeprefix('phage:')}.out", region.exit)
        for name, region in named.items()
        if region.path not in seeds.young  # its output is the slot that it stands in
    ]
    return phages, {slot.id: slot for slot in slots if slot is not None}


# -- finding -----------------------------------------------------------------------------------


def _module_regions(flow: Dataflow, seeds: Seedlings) -> dict[str, _Region]:
    members: dict[str, list[fx.Node]] = {}
    for node in flow.trunk:
        for path in seeds.modules(node):
            members.setdefault(path, []).append(node)
    regions: dict[str, _Region] = {}
    for path, nodes in members.items():
        inside = set(nodes)
        exits = [n for n in nodes if any(user not in inside for user in flow.uses(n))]
        if len(exits) != 1:
            continue
        entry = _entry(flow, nodes, inside, exits[0])
        if entry is not None:
            regions[path] = _Region(path, entry, exits[0], nodes)
    return regions


def _entry(
    flow: Dataflow, nodes: list[fx.Node], inside: set[fx.Node], last: fx.Node
) -> fx.Node | None:
    """The value that enters; among several admissible ones the one that could be passed on."""
    entering = list(dict.fromkeys(i for n in nodes for i in n.all_input_nodes if i not in inside))
    trunk = [value for value in entering if value in flow.trunk]
    if not trunk:
        # The region is a source: it reads inputs before any parameter did.
        outer = [value for value in entering if value in flow.dependent]
        return outer[0] if len(outer) == 1 else None
    admissible = [value for value in trunk if _single_entry(flow, value, trunk, inside)]
    if len(admissible) < 2:
        return admissible[0] if admissible else None
    fitting = [v for v in admissible if same_value(v.meta.get("val"), last.meta.get("val"))]
    distance = _distances(last, inside)
    return min(fitting or admissible, key=lambda v: (distance[v], flow.order[v]))


def _single_entry(
    flow: Dataflow, entry: fx.Node, entering: Iterable[fx.Node], inside: set[fx.Node]
) -> bool:
    others = {value for value in entering if value is not entry}
    if any(flow.dominators.dominates(other, entry) for other in others):
        return False
    return not others or not flow.reaches(entry, others, inside)


def _distances(last: fx.Node, inside: set[fx.Node]) -> dict[fx.Node, int]:
    """Steps back from the exit, to region nodes and the values that enter."""
    distance = {last: 0}
    front = [last]
    while front:
        reached: list[fx.Node] = []
        for node in front:
            for source in node.all_input_nodes:
                if source not in distance:
                    distance[source] = distance[node] + 1
                    if source in inside:
                        reached.append(source)
        front = reached
    return distance


def _branches(flow: Dataflow, seeds: Seedlings) -> list[_Region]:
    found: list[_Region] = []
    for node in flow.trunk:
        if node.target not in _SUMS or node.kwargs.get("alpha", 1) != 1:
            continue
        if node.name in seeds.hosts:
            continue  # the sum of a seed and its host is part of the seed, as its module says
        for x, f in (node.args[:2], node.args[1::-1]):
            region = _branch(flow, seeds, node, x, f)
            if region is not None:
                found.append(region)
    return found


def _branch(flow: Dataflow, seeds: Seedlings, merge: fx.Node, x: Any, f: Any) -> _Region | None:
    if x not in flow.trunk or f not in flow.trunk or flow.uses(f) != [merge]:
        return None
    if not same_value(x.meta.get("val"), merge.meta.get("val")):
        return None
    if f not in flow.post_dominators:  # the sum itself is read by nothing
        return None
    nodes = sorted(flow.post_dominators.subtree(f), key=flow.order.__getitem__)
    inside = set(nodes)
    entering = {i for n in nodes for i in n.all_input_nodes if i in flow.trunk} - inside
    if x not in entering or not _single_entry(flow, x, entering, inside):
        return None
    # Uses that reach no output (a write into a view) are not in the post-dominator tree.
    if any(user not in inside for n in nodes if n is not f for user in flow.uses(n)):
        return None
    matrices = [n for n in nodes if flow.reads_matrix(n)]
    if not matrices:
        return None
    named = [n for n in matrices if not seeds.owner(n)] or matrices
    path = _common(str(n.meta.get("module") or "") for n in named)
    return _Region(path, x, f, nodes, merge)


def _absorbs(branch: _Region, module: _Region) -> bool:
    """A module inside its branch is no region of its own: bypassed, x + norm(x) would stay.

    Where the module ends with the sum itself, dropping either is the same.
    """
    if set(module.nodes) <= set(branch.nodes):
        return True
    return module.exit is branch.merge and module.entry is branch.entry


# -- naming ------------------------------------------------------------------------------------


def _identify(
    model: Model,
    flow: Dataflow,
    seeds: Seedlings,
    modules: dict[str, _Region],
    branches: list[_Region],
) -> dict[str, _Region]:
    """Give each region its ID: the remembered one, else a fresh one."""
    identities = model.identities
    memory = identities.regions
    by_path = {m["path"]: name for name, m in memory.items() if m["kind"] == "module"}
    by_exit = {m["exit"]: name for name, m in memory.items() if m["kind"] == "branch"}
    named: dict[str, _Region] = {}
    fresh: list[_Region] = []
    for region in [*modules.values(), *branches]:
        branch = region.merge is not None
        # A seed at the end of a branch takes nothing from its name.
        exit_name = seeds.exit(region.exit.name)
        name = by_exit.get(exit_name) if branch else by_path.get(region.path)
        if name is not None:
            named[name] = region
        elif _notable(flow, region) or region.path in seeds.roots:
            fresh.append(region)
    for name in [name for name in memory if name not in named]:
        del memory[name]
        identities.retired.add(name)
    sets = {path: tuple(region.nodes) for path, region in modules.items()}
    tried: dict[str, int] = {}
    for region in sorted(fresh, key=lambda r: r.merge is not None):
        if region.merge is None and _repeats_child(region, sets):
            continue
        name = _fresh_name(region, identities, tried)
        kind = "module" if region.merge is None else "branch"
        memory[name] = {"path": region.path, "kind": kind, "exit": seeds.exit(region.exit.name)}
        named[name] = region
    order = flow.order
    return dict(
        sorted(
            named.items(),
            key=lambda item: (order[item[1].nodes[0]], -len(item[1].nodes), item[0]),
        )
    )


def _notable(flow: Dataflow, region: _Region) -> bool:
    parametrised = [n for n in region.nodes if flow.is_parametrised(n)]
    return len(parametrised) > 1 and any(map(flow.reads_matrix, parametrised))


def _repeats_child(region: _Region, sets: dict[str, tuple[fx.Node, ...]]) -> bool:
    """Whether a path beneath holds the same nodes: `encoder` says no more than `encoder.layer`."""
    prefix = f"{region.path}."
    own = tuple(region.nodes)
    child = prefix + str(own[0].meta.get("module")).removeprefix(prefix).partition(".")[0]
    return child != region.path and sets.get(child) == own


def _fresh_name(region: _Region, identities: Identities, tried: dict[str, int]) -> str:
    base = f"phage:{region.path or 'root'}"
    if region.merge is not None and identities.knows(base):
        base += "/branch"
    return identities.fresh(base, tried)


def _common(paths: Iterable[str]) -> str:
    shared: list[str] = []
    for pieces in zip(*(path.split(".") for path in paths), strict=False):
        if len(set(pieces)) > 1:
            break
        shared.append(pieces[0])
    return ".".join(shared)


# -- describing --------------------------------------------------------------------------------


def _phage(name: str, region: _Region, flow: Dataflow, sizes: dict[str, int]) -> Phage:
    enters, leaves = region.entry.meta.get("val"), region.exit.meta.get("val")
    reason = ""
    if not same_value(enters, leaves):
        reason = f"{describe(enters)} enters and {describe(leaves)} leaves"
    return Phage(
        id=name,
        path=region.path,
        entry=region.entry.name,
        exit=region.exit.name,
        nodes=tuple(n.name for n in region.nodes),
        parameters=sum(sizes[p] for p in flow.parameters_of(region.nodes)),
        branch=region.merge is not None,
        bypassable=not reason,
        reason=reason,
        merge=None if region.merge is None else region.merge.name,
    )


def slot_at(name: str, node: fx.Node) -> Slot | None:
    """The slot at a node's value; None where that is no tensor."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    sizes: list[Any] = list(value.shape)
    shape = tuple(s if isinstance(s, int) else str(s.node.expr) for s in sizes)
    return Slot(name, node.name, shape)
