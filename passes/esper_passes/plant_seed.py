"""The rewrite behind `PlantSeed`: a blueprint's nodes and tensors beside the value of a slot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from esper.ecology.blueprints import LAYOUTS, UnfitError, Value, table
from esper.ecology.sprout import Soil, Sprout, identifier, sprout
from esper.ir.ecology import SlotLife
from esper.ir.seedlings import ROOT
from esper.ir.shapes import sizes
from esper.passbase import Rewrite
from esper.plan import Plan, Ref, Refusal, ReplaceUses, SetLife
from esper.propose import PlantSeed
from esper.state import Create, StateTransform
from esper_passes import seed_joint
from esper_passes.liveness import written_later

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.ir.regions import Phage

aten = torch.ops.aten


class PlantSeedRewrite(Rewrite):
    """The slot's readers read the joint, which gives the host's value bit for bit."""

    type = "plant-seed"

    def plan(self, model: Model, proposal: PlantSeed) -> Plan | Refusal:
        """Refuses values and options that do not fit (`unfit-blueprint`), and `mutation`."""
        nodes, ecology = model.nodes, model.ecology
        host = nodes[model.anatomy.slots[proposal.slot].node]
        life = ecology.slot(proposal.slot)
        phage = _phage(model, proposal) if proposal.blend.algorithm == "replace" else None
        if isinstance(phage, Refusal):
            return phage
        source = host if phage is None else nodes[phage.entry]
        if written_later(host) or written_later(source):
            return Refusal(
                "mutation",
                f"the value at {proposal.slot} is written to later on",
                host.name,
                "write the operation out of place",
            )
        if not host.users:
            return Refusal("unread-slot", f"nothing reads the value at {proposal.slot}", host.name)
        root = _root(model, proposal.slot, life.planted)
        name, prefix = namer(model), identifier(root)
        before = min(host.users).name
        writer = seed_joint.Writer(root, prefix, before, name)
        entry = Ref(source.name)
        if proposal.behind:
            entry = writer.call(aten.detach.default, entry, wish="input")
        try:
            grown = _grown(model, proposal, source, Soil(
                root, entry.name, before, model.training, source.meta["val"].device, name
            ))  # fmt: skip
        except UnfitError as error:
            return Refusal(
                "unfit-blueprint",
                f"{proposal.blueprint} does not fit {proposal.slot}: {error}",
                host.name,
                "choose another blueprint or other options",
            )
        tensors = dict(grown.tensors)
        gate = f"{root}.{seed_joint.GATE}"
        if proposal.blend.algorithm == "gated":
            tensors[gate] = (Create(_gate(host), True),)
        opening = list(writer.edits)
        writer.edits.clear()
        seed = seed_joint.contribution(
            writer,
            proposal.blend.algorithm,
            entry,
            Ref(grown.output),
            gate,
            skip=phage is not None and not phage.branch,
        )
        output = seed_joint.incubate(writer, Ref(host.name), seed)
        readers = tuple(user.name for user in sorted(host.users))
        planted = life.model_copy(
            update={
                "stage": "incubating",
                "since": ecology.tick,
                "blueprint": proposal.blueprint,
                "options": {**table()[proposal.blueprint].options, **proposal.options},
                "seed": root,
                "input": host.name,
                "output": output.name,
                "entry": entry.name if proposal.behind else "",
                "alpha": "",
                "blend": proposal.blend,
                "planted": life.planted + 1,
                "quarantine_until": 0,
            }
        )
        inside = [SetLife(slot, SlotLife(input=node)) for slot, node in grown.slots.items()]
        parameters = [op for ops in tensors.values() for op in ops if isinstance(op, Create)]
        return Plan(
            proposal=proposal,
            summary=f"plant {proposal.blueprint} in {proposal.slot} as {root}",
            edits=(
                *opening,
                *grown.edits,
                *writer.edits,
                ReplaceUses(host.name, output.name, readers),
            ),
            state=StateTransform(tensors),
            lives=(SetLife(proposal.slot, planted), *inside),
            tolerance="exact",
            figures={
                "nodes_added": len(opening) + len(grown.edits) + len(writer.edits),
                "parameters_added": sum(c.value.numel() for c in parameters if c.trainable),
                "seed_path": root,
            },
        )


def namer(model: Model) -> Any:
    """Gives node names that are free, each once."""
    taken = {node.name for node in model.graph.nodes}

    def name(wish: str) -> str:
        free, number = wish, 1
        while free in taken:
            number += 1
            free = f"{wish}_{number}"
        taken.add(free)
        return free

    return name


def _phage(model: Model, proposal: PlantSeed) -> Phage | Refusal:
    """The phage whose output the slot is, for a seed that is to take its place."""
    name = f"phage:{proposal.slot.removeprefix('slot:').removesuffix('.out')}"
    phage = model.anatomy.phages.get(name)
    if phage is None:
        return Refusal(
            "no-phage",
            f"{proposal.slot} is not at the output of a phage that a seed could replace",
            proposal.slot,
            "blend with another algorithm, or choose a slot at the border of a region",
        )
    if not phage.bypassable:
        return Refusal("not-bypassable", f"{phage.id} cannot be replaced: {phage.reason}", phage.id)
    return phage


def _grown(model: Model, proposal: PlantSeed, source: fx.Node, soil: Soil) -> Sprout:
    value = source.meta["val"]
    if not value.is_floating_point():
        raise UnfitError(f"its values are {str(value.dtype).removeprefix('torch.')}")
    if value.ndim not in LAYOUTS:
        raise UnfitError(f"its values have {value.ndim} dimensions")
    described = Value(tuple(sizes(value)), value.dtype, LAYOUTS[value.ndim])
    return sprout(table()[proposal.blueprint], described, proposal.options, proposal.seed, soil)


def _gate(host: fx.Node) -> torch.Tensor:
    """One number per channel, half open at first."""
    value = host.meta["val"]
    shape = [1] * (value.ndim - 1)
    at = 0 if value.ndim == 4 else len(shape) - 1
    shape[at] = value.shape[1 if value.ndim == 4 else -1]
    return torch.zeros(shape, dtype=value.dtype, device=value.device)


def _root(model: Model, slot: str, number: int) -> str:
    """`seeds.<slot path>.<n>`; a seed within another has its path within the other's."""
    path = slot.removeprefix("slot:").replace("/", "_")
    base = path if path.startswith(f"{ROOT}.") else f"{ROOT}.{path}"
    taken = {module for module, _ in model.named_modules()}
    while f"{base}.{number}" in taken:
        number += 1
    return f"{base}.{number}"
