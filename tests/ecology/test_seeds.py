"""Seeds: planting changes nothing, culling undoes it, and each stage computes what it says."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.ecology.blueprints import Blueprint, table
from esper.ir.ecology import SlotLife
from esper.ir.model import Model
from esper.plan import Plan, Refusal
from esper.propose import AdvanceSeed, Blend, CullSeed, PlantSeed
from esper.records import Record
from tests import oracle
from tests.ecology.hosts import SLOTS, host, inputs
from tests.snapshots import snapshot

LAYOUTS = {"vectors": "vectors", "tokens": "tokens", "images": "image"}
# Each blueprint once, and where the layout makes another module of it, a few of those.
FITTING = [
    (name, blueprint.name)
    for name, layout in LAYOUTS.items()
    for blueprint in table().values()
    if layout in blueprint.layouts
    and (
        name == "vectors"
        or "vectors" not in blueprint.layouts
        or (name, blueprint.name) in {("images", "norm"), ("images", "mlp-small")}
    )
]
PLACES = [(name, SLOTS[name], blueprint) for name, blueprint in FITTING]
PLACES.append(("tokens", "slot:mark", "attention"))  # a value that two nodes read
# What planting and culling may leave behind: names that are never given out again, and the record.
REMEMBERED = {"retired", "history", "tensors", "gradients"}


def plant(model: Model, slot: str, blueprint: str = "mlp-small", **fields: Any) -> Record:
    record = esper.PassManager(model).apply(PlantSeed(slot=slot, blueprint=blueprint, **fields))
    assert record.kind == "passed", record.line()
    return record


def advance(model: Model, slot: str, *stages: Any, **fields: Any) -> None:
    manager = esper.PassManager(model)
    for stage in stages:
        record = manager.apply(AdvanceSeed(slot=slot, to=stage, **fields))
        assert record.kind == "passed", record.line()
        assert model.ecology.slot(slot).stage == stage


def cull(model: Model, slot: str, **fields: Any) -> Record:
    record = esper.PassManager(model).apply(CullSeed(slot=slot, **fields))
    assert record.kind == "passed", record.line()
    return record


def seed_parameters(model: Model, slot: str) -> dict[str, nn.Parameter]:
    root = f"{model.ecology.slot(slot).seed}."
    return {name: p for name, p in model.named_parameters() if name.startswith(root)}


def grow_up(model: Model, slot: str) -> None:
    """As if the seed had learned something."""
    with torch.no_grad():
        for parameter in seed_parameters(model, slot).values():
            parameter.add_(0.2 * torch.randn_like(parameter))


def same_tensors(a: Model, b: Model) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert list(left) == list(right)
    assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())


# -- planting and culling --------------------------------------------------------------------------


@pytest.mark.own_verification
@pytest.mark.parametrize(("name", "slot", "blueprint"), PLACES)
def test_planting_changes_nothing_and_culling_undoes_it(
    name: str, slot: str, blueprint: str
) -> None:
    model, args = host(name), inputs(name)
    bare, before = copy.deepcopy(model), snapshot(model)
    gradients = oracle.gradients(copy.deepcopy(model), args, {})
    root = plant(model, slot, blueprint, seed=3).figures["seed_path"]
    assert torch.equal(copy.deepcopy(model)(*args), copy.deepcopy(bare)(*args))
    found = oracle.gradients(copy.deepcopy(model), args, {})
    for parameter, gradient in gradients.items():
        assert gradient is not None
        assert torch.equal(gradient, found[parameter]), parameter  # type: ignore[arg-type]
    learns = [n for n, g in found.items() if n.startswith(root) and g is not None and g.any()]
    assert bool(learns) == (blueprint != "no-op")
    assert model.anatomy.axes.keys() >= bare.anatomy.axes.keys()
    assert model.anatomy.phages.keys() >= bare.anatomy.phages.keys()
    assert f"phage:{root}" in model.anatomy.phages
    cull(model, slot)
    same_tensors(model, bare)
    after = snapshot(model)
    for part in before.keys() - REMEMBERED:
        assert after[part] == before[part], part
    assert model.ecology.slot(slot).stage == "quarantined"


def test_a_seed_is_drawn_from_its_own_generator() -> None:
    models = [host("vectors") for _ in range(3)]
    state = torch.get_rng_state()
    for model, seed in zip(models, (5, 5, 6), strict=True):
        plant(model, SLOTS["vectors"], seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    same_tensors(models[0], models[1])
    assert str(models[0]) == str(models[2])
    assert not torch.equal(*(m.state_dict()["seeds.layers.0.out.0.up.weight"] for m in models[1:]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_seed_that_breaks_does_not_reach_the_host(bad: float) -> None:
    model, args = host("vectors"), inputs("vectors")
    expected, gradients = model(*args), oracle.gradients(copy.deepcopy(model), args, {})
    plant(model, SLOTS["vectors"])
    with torch.no_grad():
        next(iter(seed_parameters(model, SLOTS["vectors"]).values())).fill_(bad)
    assert torch.equal(model(*args), expected)
    found = oracle.gradients(model, args, {})
    for name, gradient in gradients.items():
        assert torch.equal(gradient, found[name]), name  # type: ignore[arg-type]


def test_the_sign_of_zero_stays() -> None:
    model, args = host("tokens"), inputs("tokens")
    plant(model, "slot:mark")
    with torch.no_grad():
        model.get_parameter("embed.weight").fill_(-0.0)
    assert torch.signbit(value_at(model, model.ecology.slot("slot:mark").output, args)).all()


def test_the_seed_gets_the_gradient_of_a_whole_seed() -> None:
    """Straight-through: as if alpha were one, at the point where the host is."""
    model, args, slot = host("vectors"), inputs("vectors"), SLOTS["vectors"]
    plant(model, slot)
    behind = oracle.gradients(copy.deepcopy(model), args, {})
    advance(model, slot, "blending", "holding")
    whole = oracle.gradients(model, args, {})  # f(x) is zero still, so the point is the same
    for name in seed_parameters(model, slot):
        oracle.close(behind[name], whole[name], name)  # type: ignore[arg-type]


def test_a_seed_in_front_sends_its_gradient_to_the_host() -> None:
    model, args, slot = host("vectors"), inputs("vectors"), SLOTS["vectors"]
    plant(model, slot, behind=False)
    grow_up(model, slot)
    one = oracle.gradients(copy.deepcopy(model), args, {})
    advance(model, slot, "blending", "holding")
    assert model.ecology.slot(slot).entry == ""
    bare = oracle.gradients(host("vectors"), args, {})
    assert not torch.equal(one["stem.weight"], bare["stem.weight"])  # type: ignore[arg-type]


# -- stages ----------------------------------------------------------------------------------------


def value_at(model: Model, name: str, args: tuple[Any, ...]) -> torch.Tensor:
    """What a node computes."""
    seen: dict[str, torch.Tensor] = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            seen[n.name] = super().run_node(n)
            return seen[n.name]

    Watch(model).run(*args)
    return seen[name]


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        *product(["vectors"], ["add", "multiply", "gated"]),
        *product(["tokens", "images"], ["gated"]),
    ],
)
def test_blends_compute_what_they_say(name: str, algorithm: Any) -> None:
    model, args, slot = host(name).eval(), inputs(name), SLOTS[name]
    expected = model(*args)
    plant(model, slot, blend=Blend(algorithm=algorithm))
    grow_up(model, slot)
    advance(model, slot, "blending")
    assert torch.equal(model(*args), expected)
    life = model.ecology.slot(slot)
    alpha = model.tensor(life.alpha)
    assert alpha is not None
    alpha.fill_(0.25)
    h = value_at(model, life.input, args)
    weights = {n.removeprefix(f"{life.seed}."): p for n, p in seed_parameters(model, slot).items()}
    if name == "images":
        x = nn.functional.group_norm(h, 1, weights["norm.weight"], weights["norm.bias"])
        x = nn.functional.gelu(nn.functional.conv2d(x, weights["up.weight"], weights["up.bias"]))
        f = nn.functional.conv2d(x, weights["down.weight"], weights["down.bias"])
    else:
        x = nn.functional.layer_norm(h, [8], weights["norm.weight"], weights["norm.bias"])
        x = nn.functional.gelu(nn.functional.linear(x, weights["up.weight"], weights["up.bias"]))
        f = nn.functional.linear(x, weights["down.weight"], weights["down.bias"])
    wanted = {
        "add": lambda: h + 0.25 * f,
        "multiply": lambda: h * (1 + 0.25 * f),
        "gated": lambda: h + 0.25 * torch.sigmoid(weights["blend_gate"]) * f,
    }[algorithm]()
    oracle.close(value_at(model, life.output, args), wanted, algorithm)
    alpha.fill_(1.0)
    held = model(*args)
    advance(model, slot, "holding")
    assert torch.equal(model(*args), held)
    advance(model, slot, "committed")
    assert torch.equal(model(*args), held)
    assert not any("blend_alpha" in tensor for tensor, _ in model.all_tensors())
    phage = model.anatomy.phages[f"phage:{life.seed}"]
    assert phage.bypassable
    assert f"slot:{life.seed}.out" in model.anatomy.slots


@pytest.mark.parametrize("stage", ["incubating", "blending", "holding", "committed"])
def test_every_stage_survives_files_copies_and_export(stage: str, tmp_path: Path) -> None:
    model, args, slot = host("vectors"), inputs("vectors"), SLOTS["vectors"]
    plant(model, slot, blend=Blend(curve="sigmoid", ticks=7))
    order = ["incubating", "blending", "holding", "committed"]
    advance(model, slot, *order[1 : order.index(stage) + 1])
    grow_up(model, slot)
    model.eval()
    esper.save(model, tmp_path / "model.esper")
    for other in (esper.load(tmp_path / "model.esper"), copy.deepcopy(model)):
        assert str(other) == str(model)
        assert other.ecology.data() == model.ecology.data()
        assert other.anatomy.slots == model.anatomy.slots
        assert torch.equal(other(*args), model(*args))
        if stage != "committed":
            cull(other, slot)
            assert other.state_dict().keys() == host("vectors").state_dict().keys()
    program = torch.export.export(model, args, strict=False)
    torch.testing.assert_close(program.module()(*args), model(*args), rtol=0, atol=1e-12)


def test_a_seed_follows_its_host_through_other_rewrites() -> None:
    model, args, slot = host("vectors"), inputs("vectors"), SLOTS["vectors"]
    plant(model, slot)
    grow_up(model, slot)
    manager = esper.PassManager(model)
    axis = "axis:layers.0.2/neurons"
    assert f"{model.ecology.slot(slot).seed}.up.weight" in dict(model.anatomy.axes[axis].members)
    cut = manager.apply(esper.propose.PruneUnits(axis=axis, units=(2, 5)))
    assert cut.kind == "passed", cut.line()
    wider = manager.apply(esper.propose.WidenUnits(axis="axis:layers.1.0/neurons", count=2))
    assert wider.kind == "passed", wider.line()
    advance(model, slot, "blending", "holding", "committed")
    assert torch.isfinite(model(*args)).all()
    dropped = manager.apply(
        esper.propose.DropRegion(region=f"phage:{model.ecology.slot(slot).seed}")
    )
    assert dropped.kind == "passed", dropped.line()
    assert not any(name.startswith("seeds") for name, _ in model.all_tensors())


def test_two_seeds_stand_in_a_row() -> None:
    """A slot behind a committed seed, and a marker beside it."""
    model, args = host("tokens"), inputs("tokens")
    slots = list(model.anatomy.slots)
    plant(model, "slot:mark", "attention")
    plant(model, "slot:block.out")
    assert [s for s in model.anatomy.slots if s in slots] == slots
    advance(model, "slot:block.out", "blending", "holding", "committed")
    grow_up(model, "slot:block.out")
    expected = model(*args)
    behind = "slot:seeds.block.out.0.out"
    plant(model, behind, "low-rank")
    assert model.ecology.slot(behind).seed == "seeds.block.out.0.out.0"
    assert torch.equal(model(*args), expected)
    assert {"phage:block", "phage:seeds.block.out.0"} <= model.anatomy.phages.keys()
    cull(model, behind)
    cull(model, "slot:mark")
    assert torch.equal(model(*args), expected)


@pytest.mark.own_verification
def test_two_seeds_share_a_place() -> None:
    """Two slots at one value: either seed can move on or go, and the other stays."""
    model, args = host("vectors"), inputs("vectors")
    slots = [SLOTS["vectors"], *model.declare_slots("layers.0.2")]
    before, expected = snapshot(model), model(*args)
    for first, second in (slots, slots[::-1]):
        plant(model, slots[0])
        plant(model, slots[1], "norm")
        advance(model, first, "blending")
        advance(model, second, "blending")
        assert torch.equal(model(*args), expected)
        assert {"phage:layers", "phage:layers.0"} <= model.anatomy.phages.keys()
        cull(model, second, quarantine=0)
        cull(model, first, quarantine=0)
        after = snapshot(model)
        for part in before.keys() - REMEMBERED:
            assert after[part] == before[part], part


# -- motifs ----------------------------------------------------------------------------------------


def test_blending_in_and_out_again_leaves_the_host() -> None:
    model, args, slot = host("vectors"), inputs("vectors"), SLOTS["vectors"]
    expected = model(*args)
    plant(model, slot)
    grow_up(model, slot)
    advance(model, slot, "blending", "holding")
    out = Blend(start=1, end=0, ticks=5)
    plan = model.plan(AdvanceSeed(slot=slot, to="blending", blend=out))
    assert isinstance(plan, Plan)
    assert not plan.edits
    advance(model, slot, "blending", blend=out)
    alpha = model.tensor(model.ecology.slot(slot).alpha)
    assert alpha is not None
    alpha.fill_(0.0)
    assert torch.equal(model(*args), expected)
    cull(model, slot)
    assert torch.equal(model(*args), expected)


@pytest.mark.parametrize(
    ("name", "slot"), [("vectors", "slot:layers.0.out"), *list(SLOTS.items())[1:2]]
)
def test_a_seed_takes_the_place_of_a_phage(name: str, slot: str) -> None:
    model, args = host(name), inputs(name)
    phage = model.anatomy.phages[f"phage:{slot.removeprefix('slot:').removesuffix('.out')}"]
    expected = model(*args)
    bare = copy.deepcopy(model)
    plant(model, slot, blend=Blend(algorithm="replace"))
    grow_up(model, slot)
    assert torch.equal(model(*args), expected)
    undone = copy.deepcopy(model)
    cull(undone, slot)
    same_tensors(undone, bare)
    advance(model, slot, "blending")
    assert torch.equal(model(*args), expected)
    advance(model, slot, "holding")
    held = model(*args)
    assert not torch.equal(held, expected)
    advance(model, slot, "committed")
    assert torch.equal(model(*args), held)
    assert phage.id not in model.anatomy.phages
    assert phage.id in model.identities.retired
    gone = [n for n, _ in bare.named_parameters() if n.startswith(f"{phage.path}.")]
    assert gone
    assert not {n for n, _ in model.named_parameters()} & set(gone)
    seed = model.anatomy.phages[f"phage:{model.ecology.slot(slot).seed}"]
    assert (seed.entry, seed.bypassable) == (phage.entry, True)
    for name_of, outer in bare.anatomy.phages.items():
        if set(phage.nodes) < set(outer.nodes):
            assert set(seed.nodes) < set(model.anatomy.phages[name_of].nodes)


# -- substructure ----------------------------------------------------------------------------------


def test_a_container_spawns_inside_itself() -> None:
    model, args, slot = host("vectors"), inputs("vectors"), SLOTS["vectors"]
    bare, expected = copy.deepcopy(model), model(*args)
    plant(model, slot, "container", options={"ratio": 0.5})
    inner = "slot:seeds.layers.0.out.0.inside"
    assert model.anatomy.slots[inner].shape[-1] == 4
    plant(model, inner, "low-rank", options={"rank": 2})
    assert model.ecology.slot(inner).seed == "seeds.layers.0.out.0.inside.0"
    assert torch.equal(model(*args), expected)
    advance(model, inner, "blending", "holding", "committed")
    assert torch.equal(model(*args), expected)
    advance(model, slot, "blending")
    refused = model.plan(
        PlantSeed(slot=f"slot:{model.ecology.slot(inner).seed}.out", blueprint="norm")
    )
    assert isinstance(refused, Refusal)
    assert refused.code == "host-stage"
    cull(model, slot)
    same_tensors(model, bare)
    assert set(model.ecology.slots()) == {"slot:mark", slot}
    assert model.anatomy.slots == bare.anatomy.slots


# -- refusals --------------------------------------------------------------------------------------


def refused(model: Model, proposal: Any) -> str:
    found = model.plan(proposal)
    assert isinstance(found, Refusal), found
    assert found.reason
    return found.code


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("vectors", {"blueprint": "attention"}, "made for tokens"),
        ("tokens", {"blueprint": "attention", "options": {"heads": 3}}, "do not divide"),
        ("vectors", {"blueprint": "low-rank", "options": {"rank": 9}}, "between 1 and 8"),
        ("vectors", {"blueprint": "low-rank", "options": {"ranks": 1}}, "options are rank"),
        ("vectors", {"blueprint": "low-rank", "options": {"rank": True}}, "is a int"),
        ("images", {"blueprint": "conv-light", "options": {"kernel": 2}}, "must be odd"),
        ("images", {"blueprint": "bottleneck", "options": {"ratio": 0.0}}, "must be positive"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, fields: dict[str, Any], reason: str) -> None:
    model = host(name)
    found = model.plan(PlantSeed(slot=SLOTS[name], **fields))
    assert isinstance(found, Refusal)
    assert found.code == "unfit-blueprint"
    assert reason in found.reason


def test_other_refusals() -> None:
    model, slot = host("vectors"), SLOTS["vectors"]
    replace = Blend(algorithm="replace")
    assert (
        refused(model, PlantSeed(slot="slot:mark", blueprint="norm", blend=replace)) == "no-phage"
    )
    plant(model, slot)
    other = AdvanceSeed(slot=slot, to="blending", blend=Blend(algorithm="multiply"))
    assert refused(model, other) == "algorithm-fixed"
    advance(model, slot, "blending", "holding")
    alpha = model.tensor(model.ecology.slot(slot).alpha)
    assert alpha is not None
    alpha.fill_(0.5)
    assert refused(model, AdvanceSeed(slot=slot, to="committed")) == "gate-criteria"
    joint = model.nodes[model.ecology.slot(slot).output]
    joint.target = torch.ops.aten.sub.Tensor
    assert refused(model, AdvanceSeed(slot=slot, to="committed")) == "seed-changed"
    cull(model, slot)


def test_a_phage_whose_ends_differ_is_not_replaced() -> None:
    module = nn.Sequential(
        nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5)), nn.Linear(5, 2)
    )
    model = esper.trace(module, (torch.randn(2, 4),))
    proposal = PlantSeed(slot="slot:1.out", blueprint="norm", blend=Blend(algorithm="replace"))
    assert refused(model, proposal) == "not-bypassable"


# -- the table -------------------------------------------------------------------------------------


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> None:
    from esper.ecology import blueprints

    monkeypatch.setattr(blueprints, "_TABLE", dict(table()))


class Noisy(nn.Module):
    """Batch norm and dropout: the two modes differ."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.alpha = nn.Parameter(torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.alpha * self.drop(self.norm(x.detach()))
        return out


@pytest.mark.usefixtures("shelf")
@pytest.mark.parametrize("training", [True, False])
def test_a_registered_blueprint_with_modes(training: bool) -> None:
    made = esper.register_blueprint("noisy", lambda value: Noisy(), ("vectors",))
    assert isinstance(made, Blueprint)
    with pytest.raises(esper.EsperError, match="registered already"):
        esper.register_blueprint("noisy", lambda value: Noisy())
    model, args, slot = host("vectors").train(training), inputs("vectors"), "slot:mark"
    bare = copy.deepcopy(model)
    plant(model, slot, "noisy")
    assert torch.equal(model(*args), bare(*args))
    model.train()
    model(*args)
    counted = model.state_dict()["seeds.mark.0.norm.num_batches_tracked"]
    assert int(counted) == 2 if training else 1
    model.eval()
    model(*args)
    assert int(model.state_dict()["seeds.mark.0.norm.num_batches_tracked"]) == int(counted)
    advance(model, slot, "blending")
    cull(model, slot)
    same_tensors(model, bare)


@pytest.mark.usefixtures("shelf")
@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda value: nn.Identity(), "passes its input on"),
        (lambda value: nn.Linear(8, 4), "of the shape and dtype"),
        (lambda value: nn.Sequential(esper.Slot(), nn.Linear(8, 8)), "marks it as a slot"),
        (
            lambda value: nn.Sequential(nn.Flatten(0), nn.Linear(24, 24), nn.Unflatten(0, (3, 8))),
            "",
        ),
    ],
)
def test_a_blueprint_that_keeps_no_promise(build: Any, reason: str) -> None:
    esper.register_blueprint("odd", build)
    found = host("vectors").plan(PlantSeed(slot="slot:mark", blueprint="odd"))
    assert isinstance(found, Refusal)
    assert found.code == "unfit-blueprint"
    assert reason in found.reason


def test_slots_that_are_scars_stay_scars_until_something_stays() -> None:
    from esper.ir.ecology import Scar

    model, slot = host("vectors"), SLOTS["vectors"]
    scar = Scar(since=0, last_removed_blueprint="mlp-4x", probe_outcome_summary="not missed")
    node = model.anatomy.slots[slot].node
    model.ecology.set(slot, SlotLife(slot_kind="SCAR", input=node, scar=scar))
    plant(model, slot)
    cull(model, slot, quarantine=0)
    assert model.ecology.slot(slot).scar == scar
    plant(model, slot)
    assert model.ecology.slot(slot).planted == 2
    assert model.ecology.slot(slot).seed == "seeds.layers.0.out.1"
    advance(model, slot, "blending", "holding", "committed")
    assert model.ecology.slot(slot).slot_kind == "SEED"
    assert model.ecology.slot(slot).scar is None
