"""Every bypassable region of the zoo can be dropped; the pass drops what matters least."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper.errors import UsageError
from esper.ir.graphs_equal import graphs_equal
from esper.ir.model import Model
from esper.ir.trace import trace
from esper.manager import PassManager
from esper.passbase import Batch, Context
from esper.propose import DropRegion as Proposal
from esper_passes.drop_regions import DropRegions, drifts
from tests.models import MODELS
from tests.passes.support import apply, drift, drive, outputs, refusal, refused, same_state, traced


@cache
def zoo(name: str) -> tuple[Model, tuple[Any, ...], dict[str, Any]]:
    module, args, kwargs = MODELS[name](dtype=torch.float64)
    return trace(module, args, kwargs), args, kwargs


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("unet")])
def test_each_region_of_the_zoo_can_go_and_come_back(name: str) -> None:
    model, args, kwargs = zoo(name)
    changed = copy.deepcopy(model)
    manager = PassManager(changed, verify="full")
    expected = outputs(model, args, kwargs)
    bypassable = [phage for phage in changed.anatomy.phages.values() if phage.bypassable]
    assert bypassable
    for phage in bypassable:
        with manager.transaction() as transaction:
            record = manager.apply(Proposal(region=phage.id))
            assert record.kind == "passed", record.line()
            assert record.figures["parameters_removed"] == phage.parameters
            assert not set(phage.nodes) & changed.nodes.keys()
            assert all(t.isfinite().all() for t in outputs(changed, args, kwargs))
            transaction.roll_back()
        assert graphs_equal(changed, model) is None, phage.id
        same_state(changed, model)
        assert changed.anatomy.phages == model.anatomy.phages
        assert changed.identities.regions == model.identities.regions
        assert changed.identities.retired == model.identities.retired
    for now, before in zip(outputs(changed, args, kwargs), expected, strict=True):
        assert torch.equal(now, before)


class Without(nn.Module):
    """A zoo module of which one part is replaced by what hands its input on."""

    def __init__(self, module: nn.Module, path: str) -> None:
        super().__init__()
        self.module = copy.deepcopy(module)
        owner, _, leaf = path.rpartition(".")
        setattr(self.module.get_submodule(owner), leaf, nn.Identity())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("resnet_basic", "layers.1"),
        ("resnet_bottleneck", "layers.3"),
        ("efficientnet", "blocks.2"),
        ("efficientnet", "blocks.1.se"),
        ("convnext", "stage2.0"),
    ],
)
def test_dropping_is_replacing_by_the_identity(name: str, path: str) -> None:
    module, args, kwargs = MODELS[name](dtype=torch.float64)
    model, _, _ = zoo(name)
    changed, record = apply(model, Proposal(region=f"phage:{path}"))
    assert record.kind == "passed"
    assert record.figures["tolerance"] == "lossy"
    assert drift(Without(module, path), changed, args, kwargs) < 1e-12
    assert not any(key.startswith(f"{path}.") for key in changed.state_dict())


def test_dropping_a_branch_of_gpt2_zeroes_its_last_layer() -> None:
    module, args, kwargs = MODELS["gpt2"](dtype=torch.float64)
    changed, _ = apply(zoo("gpt2")[0], Proposal(region="phage:model.transformer.h.1.mlp"))
    zeroed = copy.deepcopy(module)
    for parameter in zeroed.get_submodule("model.transformer.h.1.mlp.c_proj").parameters():
        nn.init.zeros_(parameter)
    assert drift(zeroed, changed, args, kwargs) < 1e-12
    # The norm in front of the branch has gone with it.
    assert "model.transformer.h.1.ln_2.weight" not in changed.state_dict()


def test_graph_equals_the_model_without_the_layer() -> None:
    model, args, kwargs = zoo("llama_native_norm")
    changed, _ = apply(model, Proposal(region="phage:model.model.layers.1"))
    module, _, _ = MODELS["llama_native_norm"](dtype=torch.float64)
    layers = module.get_submodule("model.model.layers")
    assert isinstance(layers, nn.ModuleList)
    del layers[1]
    assert graphs_equal(changed, trace(module, args, kwargs)) is None
    assert drift(module, changed, args, kwargs) == 0.0


def test_identities_of_other_regions_stay() -> None:
    model, _, _ = zoo("bert")
    before = list(model.anatomy.phages)
    layer = "phage:model.bert.encoder.layer"
    changed, _ = apply(model, Proposal(region=f"{layer}.0/branch"))
    after = list(changed.anatomy.phages)
    assert set(before) - set(after) == {f"{layer}.0/branch"}
    assert set(after) <= set(before)
    changed, _ = apply(changed, Proposal(region=f"{layer}.0"))
    left = {name for name in before if not name.startswith(f"{layer}.0")}
    assert set(changed.anatomy.phages) == left
    record = refused(changed, Proposal(region=f"{layer}.0"))
    assert record.code == "retired-target"
    # The anatomy of a copy, and of a copy of a copy, is the same.
    assert list(copy.deepcopy(changed).anatomy.phages) == list(changed.anatomy.phages)


def test_gradients_flow_past_what_was_dropped() -> None:
    model, args, kwargs = zoo("bert")
    changed, _ = apply(model, Proposal(region="phage:model.bert.encoder.layer.1"))
    changed(*args, **kwargs).sum().backward()
    missing = [name for name, p in changed.named_parameters() if p.grad is None]
    assert not missing


# -- refusals ----------------------------------------------------------------------------------


def test_shape_changing_region_is_refused_with_its_shapes() -> None:
    record = refused(zoo("resnet_basic")[0], Proposal(region="phage:layers.2"))
    assert record.code == "not-bypassable"
    assert "8, 8, 8] enters" in record.reason
    assert record.remedy


def test_unknown_region_is_refused_with_a_suggestion() -> None:
    record = refused(zoo("resnet_basic")[0], Proposal(region="phage:layer.1"))
    assert record.code == "unknown-target"
    assert "phage:layers.1" in record.remedy


class Writing(nn.Module):
    """A block that writes into its hidden value through a view; `loose` drops the result."""

    def __init__(self, loose: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.block = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
        self.loose = loose

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.block["a"](x)
        written = y.t().mul_(2)
        out: Tensor = x + self.block["b"](y if self.loose else y + written.t())
        return out


def test_region_that_writes_is_refused() -> None:
    model = traced(Writing(loose=False), torch.randn(3, 4).double())
    (region,) = (phage.id for phage in model.anatomy.phages.values() if phage.branch)
    why = refusal(model, Proposal(region=region))
    assert why.code == "mutation"
    assert why.remedy


def test_write_whose_result_goes_nowhere_is_a_second_exit() -> None:
    model = traced(Writing(loose=True), torch.randn(3, 4).double())
    assert not any(phage.branch for phage in model.anatomy.phages.values())


# -- the pass ----------------------------------------------------------------------------------


class Residual(nn.Module):
    """x + scale * outer(relu(inner(x)))."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.inner, self.outer, self.scale = nn.Linear(4, 6), nn.Linear(6, 4), scale

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.outer(self.inner(x).relu()) * self.scale
        return out


class Stack(nn.Module):
    """Residual blocks of very different weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(map(Residual, (1.0, 1e-6, 1e-2, 0.5)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x


def stack() -> tuple[Model, Context]:
    data: list[Batch] = [((torch.randn(5, 4).double(),), {}) for _ in range(2)]
    return traced(Stack(), data[0][0][0]), Context(data=data)


def test_least_missed_regions_go_first() -> None:
    model, context = stack()
    changed, records, remarks = drive(DropRegions(count=2, only="phage:blocks.?"), model, context)
    assert [r.proposal.targets for r in records if r.proposal] == [
        ("phage:blocks.1",),
        ("phage:blocks.2",),
    ]
    assert not remarks
    first, second = (r.proposal.evidence["drift"] for r in records if r.proposal)
    assert float(first) < 1e-4 < float(second)
    assert "phage:blocks.0" in changed.anatomy.phages


def test_drift_is_the_relative_output_error() -> None:
    model, context = stack()
    assert context.data is not None
    ((region, score),) = drifts(model, ["phage:blocks.3"], context.data, context)
    changed, _ = apply(model, Proposal(region=region))
    error = size = 0.0
    for args, kwargs in context.data:
        with torch.no_grad():
            new, old = changed(*args, **kwargs), model(*args, **kwargs)
        error += float((new - old).square().sum())
        size += float(old.square().sum())
    assert score == pytest.approx((error / size) ** 0.5, rel=1e-9)


class Equals(nn.Module):
    """Two branches that add nothing, one of them larger."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.large = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))
        self.small = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.large(x) * 0
        out: Tensor = x + self.small(x) * 0
        return out


def test_smaller_change_goes_first_on_ties() -> None:
    x = torch.randn(3, 4).double()
    _, records, _ = drive(
        DropRegions(only="phage:*l*"), traced(Equals(), x), Context(data=[((x,), {})])
    )
    (record,) = records
    assert record.proposal is not None
    assert record.proposal.targets == ("phage:small",)
    assert record.proposal.evidence["drift"] == 0.0


def test_ratio_bounds_the_share_of_parameters() -> None:
    model, context = stack()
    total = sum(p.numel() for p in model.parameters())
    changed, records, _ = drive(DropRegions(ratio=0.5), model, context)
    left = sum(p.numel() for p in changed.parameters())
    assert records
    assert total * 0.5 <= left < total
    # One more of the blocks would not have fitted.
    assert left - min(p.parameters for p in changed.anatomy.phages.values()) < total * 0.5


def test_nothing_to_drop_is_said() -> None:
    model, context = stack()
    changed, records, remarks = drive(DropRegions(only="phage:nowhere*"), model, context)
    assert not records
    assert [(remark.kind, remark.code) for remark in remarks] == [("missed", "nothing-bypassable")]
    same_state(changed, model)
    _, records, remarks = drive(DropRegions(count=9, only="phage:blocks.?"), model, context)
    assert len(records) == 4
    assert [remark.code for remark in remarks] == ["fewer-regions"]


def test_proposing_changes_nothing() -> None:
    model, context = stack()
    before = copy.deepcopy(model)
    next(DropRegions().propose(model, context))
    assert graphs_equal(model, before) is None
    same_state(model, before)


def test_options_and_data_are_checked() -> None:
    with pytest.raises(UsageError, match="not both"):
        DropRegions(count=1, ratio=0.5)
    with pytest.raises(UsageError, match="at least 1"):
        DropRegions(count=0)
    with pytest.raises(UsageError, match="between 0 and 1"):
        DropRegions(ratio=1.0)
    with pytest.raises(UsageError, match="calibration data"):
        next(DropRegions().propose(stack()[0], Context()))
