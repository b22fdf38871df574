"""Growth that preserves the function, and cuts that undo it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils import _pytree as pytree

import esper
from esper.ir.model import Model
from esper.propose import PruneUnits, WidenUnits
from esper_passes.growth_init import share
from esper_passes.widen import Widen
from tests import oracle
from tests.live.training import OPTIMIZERS, batch, step
from tests.live.training import traced as network
from tests.models import MODELS
from tests.passes.support import drive

# Kinds that are widened, model by model; those of one family in a row share what they show.
WIDENED = {
    "bert": {"heads", "neurons", "head-size"},
    "gpt2": {"heads", "neurons", "head-size"},  # fused q, k, v
    "llama": {"kv-groups", "query-heads", "neurons", "head-size"},
    "resnet_bottleneck": {"channels"},  # the residual stream with its batch norms too
    "efficientnet": {"channels"},  # depthwise, squeeze and excite
    "convnext": {"neurons"},
    "unet_interpolate": {"channels"},  # concatenated
}


def _model(name: str) -> tuple[Model, tuple[Any, ...], dict[str, Any]]:
    module, args, kwargs = MODELS[name](torch.float64)
    return esper.trace(module, args, kwargs).eval(), args, kwargs


def _wide(model: Model, **fields: Any) -> tuple[Model, Any]:
    wide = copy.deepcopy(model)
    return wide, esper.PassManager(wide).apply(WidenUnits(**fields))


def _losses(model: Model, args: Any, kwargs: Any) -> dict[str, torch.Tensor]:
    """Gradients of a loss by parameter name."""
    model.zero_grad()
    outputs = [t for t in pytree.tree_leaves(model(*args, **kwargs)) if t.is_floating_point()]
    torch.autograd.backward(sum((t.sin() * t).sum() for t in outputs))
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("init", ["zero", "net2net"])
@pytest.mark.parametrize("name", WIDENED)
def test_the_function_stays(name: str, init: Any) -> None:
    model, args, kwargs = _model(name)
    gradients = _losses(model, args, kwargs)
    kinds = set()
    for axis in model.anatomy.axes.values():
        wide, record = _wide(model, axis=axis.id, count=min(2, axis.size), init=init, seed=3)
        if record.kind != "passed":
            assert record.kind == "missed", record.line()
            continue
        kinds.add(axis.kind)
        grown = wide.anatomy.axes[axis.id]
        assert grown.size == axis.size + min(2, axis.size)
        assert grown.unit_ids[: axis.size] == axis.unit_ids
        for found, expected in zip(
            oracle.run(wide, args, kwargs), oracle.run(model, args, kwargs), strict=True
        ):
            oracle.close(found, expected, axis.id)
        if init == "zero":  # what was there also learns as it did
            own = _losses(wide, args, kwargs)
            plan = wide.plan(PruneUnits(axis=axis.id, units=grown.unit_ids[axis.size :]))
            assert isinstance(plan, esper.plan.Plan)
            for parameter, gradient in gradients.items():
                kept = own[parameter]
                for op in plan.state.ops.get(parameter, ()):
                    kept = op(kept)  # type: ignore[operator]
                oracle.close(kept, gradient, parameter)
    assert kinds == WIDENED[name]


@pytest.mark.parametrize("name", WIDENED)
def test_growing_and_cutting_restores_every_bit(name: str) -> None:
    model, _, _ = _model(name)
    for axis in model.anatomy.axes.values():
        wide, record = _wide(model, axis=axis.id, count=3)
        if record.kind != "passed":
            continue
        born = wide.anatomy.axes[axis.id].unit_ids[axis.size :]
        assert set(born).isdisjoint(axis.unit_ids)
        manager = esper.PassManager(wide)
        assert manager.apply(PruneUnits(axis=axis.id, units=born)).kind == "passed"
        assert str(wide) == str(model)
        for (_, one), (_, other) in zip(wide.all_tensors(), model.all_tensors(), strict=True):
            assert torch.equal(one, other)
        assert manager.apply(WidenUnits(axis=axis.id, count=1)).kind == "passed"
        assert wide.anatomy.axes[axis.id].unit_ids[-1] == max(born) + 1  # never reused


@given(
    st.lists(st.floats(-1e6, 1e6, width=32).filter(lambda x: x == 0 or abs(x) > 1e-30), min_size=1),
    st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    st.integers(0, 99),
)
@settings(deadline=None)
def test_a_share_and_the_rest_are_the_weight(
    values: list[float], dtype: torch.dtype, seed: int
) -> None:
    weights = torch.tensor(values, dtype=torch.float64).to(dtype)
    weights = weights[torch.isfinite(weights) & ((weights == 0) | (weights.abs() > 1e-4))]
    part = share(weights, torch.Generator().manual_seed(seed))
    rest = weights - part
    assert torch.equal(part + rest, weights)
    assert bool(((part.abs() <= weights.abs()) & (part * weights >= 0)).all())


def test_copies_part_ways() -> None:
    model = network()
    wide, record = _wide(model, axis="axis:block.0/neurons", count=12, init="net2net")
    assert record.kind == "passed"
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        step(wide, optimizer, batch(generator))
    rows = wide.get_parameter("block.0.weight").detach()
    assert len(torch.unique(rows, dim=0)) > 20  # a ReLU that never fires learns nothing


@pytest.mark.parametrize(
    ("name", "policy", "init"),
    [
        ("adamw", "keep", "zero"),
        ("adamw", "keep", "net2net"),
        ("adamw", "asymmetric", "net2net"),
        ("adamw", "zero", "random"),
        ("momentum", "asymmetric", "net2net"),
        ("adafactor", "keep", "net2net"),
        ("adafactor", "asymmetric", "zero"),
        ("adagrad", "keep", "zero"),
        ("adagrad", "zero", "net2net"),
    ],
)
def test_growth_in_training(name: str, policy: Any, init: Any) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        step(model, optimizer, batch(generator))
    session = esper.Session(model, optimizer)
    objects, inputs = dict(model.named_parameters()), batch(generator)
    model.eval()
    before = model(inputs[0])
    with session.boundary() as boundary:
        for axis in ("axis:block.0/neurons", "axis:stem/neurons"):
            (record,) = boundary.submit(
                WidenUnits(axis=axis, count=2, init=init), policy=esper.StatePolicy(moments=policy)
            )
            assert record.kind == "passed", record.line()
    if init != "random":
        torch.testing.assert_close(model(inputs[0]), before)
    model.train()
    for parameter_name, parameter in model.named_parameters():
        assert parameter is objects[parameter_name]
    new = model.get_parameter("block.0.weight").detach()[-2:].clone()
    for _ in range(3):
        assert torch.isfinite(torch.tensor(step(model, optimizer, batch(generator))))
    assert not torch.equal(model.get_parameter("block.0.weight").detach()[-2:], new)  # it learns
    session.check()


class Tied(nn.Module):
    """One matrix there and back."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode and decode."""
        hidden = torch.relu(nn.functional.linear(x, self.weight))
        return hidden @ self.weight


@pytest.mark.parametrize(
    ("axis", "fields", "code"),
    [
        ("axis:head/neurons", {}, "frozen-axis"),
        ("axis:none/neurons", {}, "unknown-target"),
        ("axis:block.0/neurons", {"count": 13, "init": "net2net"}, "too-many-copies"),
    ],
)
def test_refusals(axis: str, fields: dict[str, Any], code: str) -> None:
    _, record = _wide(network(), **{"axis": axis, "count": 1, **fields})
    assert (record.kind, record.code) == ("missed", code)


def test_more_refusals() -> None:
    tied = esper.trace(Tied(), (torch.randn(3, 4, dtype=torch.float64),))
    (hidden,) = [axis for axis in tied.anatomy.axes.values() if axis.cuttable]
    assert _wide(tied, axis=hidden.id, count=1)[1].code == "shared-tensor"
    model, _, _ = _model("bert")
    (stream,) = model.find("axis:*/embedding")
    assert _wide(model, axis=stream, count=1)[1].code == "coupled-axis"
    unet, _, _ = _model("unet")
    codes = {_wide(unet, axis=a.id, count=1)[1].code for a in unet.anatomy.axes.values()}
    assert "no-outgoing-weight" in codes  # a transposed convolution reads them
    cut, _ = network().apply(PruneUnits(axis="axis:block.0/neurons", units=tuple(range(11))))
    assert _wide(cut, axis="axis:block.0/neurons", count=1)[1].code == "coupled-axis"


def test_the_pass_widens_and_aligns() -> None:
    model = network()
    wide, records, _ = drive(Widen(multiplier=1.3, align=8), model)
    sizes = {n: a.size for n, a in wide.anatomy.axes.items()}
    assert (sizes["axis:stem/neurons"], sizes["axis:block.0/neurons"]) == (16, 16)
    assert {r.kind for r in records} == {"passed"}
    again, records, _ = drive(Widen(multiplier=1.01, align=8), wide)
    assert str(again) == str(wide)
    _, records, remarks = drive(Widen(axes="nothing"), model)
    assert (records, [r.code for r in remarks]) == ([], ["no-axis"])
    _, records, remarks = drive(Widen(multiplier=1.01), model)
    assert (records, {r.code for r in remarks}) == ([], {"nothing-to-add"})


@pytest.mark.parametrize("options", [{"multiplier": 1.0}, {"align": 0}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Widen(**options)
