"""Regions: expected IDs per family, what may be bypassed and why not, and the definition itself."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.ir.dataflow import Dataflow
from esper.ir.model import Model
from esper.ir.regions import Phage, phages_and_slots
from esper.ir.trace import trace
from tests.models import MODELS


@cache
def traced(name: str) -> Model:
    module, args, kwargs = MODELS[name]()
    return trace(module, args, kwargs)


def phages(model: Model) -> dict[str, Phage]:
    return phages_and_slots(model)[0]


def _layers(prefix: str, *names: str) -> list[str]:
    return [f"phage:{prefix}.{i}{name}" for i in range(2) for name in names]


BERT = ("", ".attention", ".attention/branch", ".attention.self", "/branch")
BYPASSABLE = {
    "bert": [
        "phage:model.bert.encoder.layer",
        *_layers("model.bert.encoder.layer", *BERT),
    ],
    "bert_eager": [
        "phage:model.bert.encoder.layer",
        *_layers("model.bert.encoder.layer", *BERT),
    ],
    "bert_encoder": ["phage:model.encoder.layer", *_layers("model.encoder.layer", *BERT)],
    "gpt2": [
        "phage:model.transformer.h",
        *_layers("model.transformer.h", "", ".attn", ".mlp"),
    ],
    "llama": ["phage:model.model.layers", *_layers("model.model.layers", "", ".self_attn", ".mlp")],
    "llama_native_norm": [
        "phage:model.model.layers",
        *_layers("model.model.layers", "", ".self_attn", ".mlp"),
    ],
    "resnet_basic": [
        f"phage:layers.{i}{branch}" for i in (0, 1, 3, 5) for branch in ("", "/branch")
    ],
    "resnet_bottleneck": [
        f"phage:layers.{i}{branch}" for i in (0, 1, 3, 5) for branch in ("", "/branch")
    ],
    "efficientnet": [
        "phage:blocks.0.depthwise",
        "phage:blocks.0.se",
        "phage:blocks.1.se",
        "phage:blocks.2",
        "phage:blocks.2.depthwise",
        "phage:blocks.2.se",
        "phage:blocks.3.depthwise",
        "phage:blocks.3.se",
    ],
    "convnext": [
        f"phage:{name}"
        for name in ("stage1", "stage1.0", "stage1.1", "stage2", "stage2.0", "stage2.1")
    ],
    "unet": [],
    "unet_interpolate": [],
}


@pytest.mark.parametrize("name", BYPASSABLE)
def test_expected_ids(name: str) -> None:
    found = [phage.id for phage in phages(traced(name)).values() if phage.bypassable]
    assert found == BYPASSABLE[name]


def test_expected_ids_of_vit_by_module_names() -> None:
    # The module names inside a ViT layer differ between releases of transformers.
    found = phages(traced("vit")).values()
    branches = [phage for phage in found if phage.branch]
    assert len(branches) == 4
    assert sum(phage.parameters for phage in branches) == 2 * (2448 + 2032)


@pytest.mark.parametrize("name", MODELS)
def test_regions_are_single_entry_single_exit(name: str) -> None:
    model = traced(name)
    flow = Dataflow(model)
    nodes = model.nodes
    for phage in phages(model).values():
        inside = {nodes[n] for n in phage.nodes}
        leaving = {n for n in inside if any(user not in inside for user in flow.uses(n))}
        assert leaving == {nodes[phage.exit]}, phage.id
        entry = nodes[phage.entry]
        assert entry not in inside
        assert any(entry in n.all_input_nodes for n in inside), phage.id
        sides = {i for n in inside for i in n.all_input_nodes if i in flow.trunk}
        assert not any(flow.dominators.dominates(side, entry) for side in sides - inside - {entry})


@pytest.mark.parametrize("name", MODELS)
def test_deterministic_and_slots_sit_at_outputs(name: str) -> None:
    model = traced(name)
    first, slots = phages_and_slots(model)
    again = phages_and_slots(copy.deepcopy(model))
    assert (first, slots) == again
    assert [slot.node for slot in slots.values()] == [phage.exit for phage in first.values()]
    assert list(slots) == [f"slot:{i.removeprefix('phage:')}.out" for i in first]


def test_layer_goes_from_norm_to_norm_with_symbolic_batch() -> None:
    model = traced("bert")
    found, slots = phages_and_slots(model)
    layer = found["phage:model.bert.encoder.layer.1"]
    assert (layer.entry, layer.exit) == ("layer_norm_2", "layer_norm_4")
    assert layer.parameters == sum(
        p.numel()
        for n, p in model.named_parameters()
        if n.startswith("model.bert.encoder.layer.1.")
    )
    shape = slots["slot:model.bert.encoder.layer.1.out"].shape
    assert isinstance(shape[0], str)
    assert shape[1:] == (7, 24)


def test_branch_is_the_operand_of_the_sum() -> None:
    model = traced("gpt2")
    branch = phages(model)["phage:model.transformer.h.1.mlp"]
    assert branch.branch
    assert branch.merge is not None
    merge = model.nodes[branch.merge]
    assert {n.name for n in merge.all_input_nodes} == {branch.entry, branch.exit}
    # The norm belongs to the branch: without it, x + norm(x) would stay.
    assert any("layer_norm" in name for name in branch.nodes)


def test_module_that_adds_last_is_its_branch() -> None:
    found = phages(traced("convnext"))
    assert found["phage:stage1.0"].branch
    assert "phage:stage1.0/branch" not in found


@pytest.mark.parametrize(
    ("name", "region", "reason"),
    [
        ("resnet_basic", "layers.2", "8, 8, 8] enters and float32["),
        ("resnet_bottleneck", "layers.4", "12, 4, 4] enters and float32["),
        ("efficientnet", "blocks.0", "8, 8, 8] enters and float32["),
        ("efficientnet", "blocks.3", "10, 4, 4] enters and float32["),
        ("unet", "enc2", "6, 8, 8] enters and float32["),
        ("bert", "model.bert.embeddings", "int64[s"),
    ],
)
def test_changing_shape_or_dtype_forbids_a_bypass(name: str, region: str, reason: str) -> None:
    phage = phages(traced(name))[f"phage:{region}"]
    assert not phage.bypassable
    assert reason in phage.reason


def test_skip_around_a_module_is_no_region() -> None:
    # BERT's `attention.output` adds the layer's input to what `attention.self` made of it.
    assert "phage:model.bert.encoder.layer.0.attention.output" not in phages(traced("bert"))


class Block(nn.Module):
    """A residual block without a norm; `other` enters the sum inside the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)
        self.outer = nn.Linear(6, 4)

    def forward(self, x: Tensor, other: Tensor | float = 0.0) -> Tensor:
        out: Tensor = x + self.outer(functional.relu(self.inner(x)) + other)
        return out


class Memory(nn.Module):
    """Two blocks of a decoder that both read an encoder's output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.encoder = nn.Linear(5, 6)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        seen = self.encoder(memory)
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, seen)
        out: Tensor = self.head(x)
        return out


def test_values_from_another_stream_are_side_inputs() -> None:
    model = trace(Memory(), (torch.randn(3, 4), torch.randn(3, 5)))
    found = phages(model)
    assert [p.id for p in found.values() if p.bypassable] == [
        "phage:blocks",
        "phage:blocks.0",
        "phage:blocks.1",
    ]
    assert model.nodes[found["phage:blocks.0"].entry].meta["module"] == "stem"


class Tapped(nn.Module):
    """An inner value of the block is an output as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.block = Block()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        inner = functional.relu(self.block.inner(x))
        return x + self.block.outer(inner), inner


def test_second_exit_is_no_branch() -> None:
    assert not any(p.branch for p in phages(trace(Tapped(), (torch.randn(3, 4),))).values())


class Sized(nn.Module):
    """Blocks around an input whose batch size is read inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x.view(x.shape[0], 2, 2).reshape(x.shape[0], 4))
        return x


def test_symbolic_sizes_are_context() -> None:
    found = phages(trace(Sized(), (torch.randn(3, 4),)))
    assert [p.id for p in found.values() if p.bypassable] == ["phage:blocks.0", "phage:blocks.1"]


def test_memory_is_plain_and_a_removed_id_retires() -> None:
    model = copy.deepcopy(traced("gpt2"))
    found = phages(model)
    memory = model.identities.regions
    assert list(memory["phage:model.transformer.h.0.mlp"]) == ["path", "kind", "exit"]
    assert memory.keys() == found.keys()
    # A part that is gone keeps its ID for ever, and a new part does not get it.
    model.identities.regions["phage:model.transformer.h.9"] = {
        "path": "model.transformer.h.9",
        "kind": "module",
        "exit": "add_99",
    }
    phages(model)
    assert "phage:model.transformer.h.9" in model.identities.retired
    del model.identities.regions["phage:model.transformer.h.1"]
    model.identities.retired.add("phage:model.transformer.h.1")
    assert "phage:model.transformer.h.1.2" in phages(model)


class _Dead(nn.Module):
    """A sum that nothing reads, as in the last layer of WaveNet."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        _ = x + torch.tanh(self.inner(x))
        result: Tensor = self.out(x)
        return result


def test_a_sum_that_nothing_reads_ends_no_branch() -> None:
    model = trace(_Dead(), (torch.randn(3, 4),))
    assert any(node.target is torch.ops.aten.add.Tensor for node in model.graph.nodes)
    assert not any(name.endswith("/branch") for name in phages(model))
