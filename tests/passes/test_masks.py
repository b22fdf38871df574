"""Masks on weights against the model whose weights are zero there, in float64, behind NaN."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper import pipeline
from esper.ir.emptied import unfed, unheard
from esper.ir.model import Model
from esper.ir.sparsity import masks
from esper.ir.verifier import verify
from esper.manager import PassManager
from esper.passbase import Context
from esper.propose import (
    ClearMask,
    DropRegion,
    FoldMask,
    GateCells,
    ProposalBase,
    PruneUnits,
    RegrowMask,
    SetMask,
    WidenUnits,
    parse,
)
from esper_kernels.run_sparse import RunSparse
from esper_passes.compact import Compact
from esper_passes.sparsify import Sparsify
from tests import oracle
from tests.passes.support import apply, drive, refusal, refused, same_state


class Mixed(nn.Module):
    """Weights of a linear layer, a convolution, a grouped one, and a product from the right."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Conv1d(4, 8, 3, padding=1)
        self.mix = nn.Conv1d(8, 8, 1, groups=2)
        self.fc = nn.Linear(40, 8)
        self.pre = nn.Linear(8, 8)
        self.right = nn.Parameter(torch.randn(8, 6))
        self.last = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [batch, 4]."""
        x = torch.relu(self.mix(torch.relu(self.up(x))))
        x = torch.relu(self.pre(torch.relu(self.fc(x.flatten(1)))))
        logits: torch.Tensor = self.last(torch.relu(torch.matmul(x, self.right)))
        return logits


@pytest.fixture(scope="module")
def mixed() -> tuple[Model, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    return esper.trace(Mixed().double(), (x,)), x


def _mask(model: Model, *patterns: tuple[str, str]) -> Model:
    masked = copy.deepcopy(model)
    manager = PassManager(masked, verify="full")
    for tensor, pattern in patterns:
        record = manager.apply(SetMask(tensor=tensor, pattern=pattern))
        assert record.kind == "passed", record.line()
    return masked


ALL = (
    ("up.weight", "4:2:4"),
    ("mix.weight", "1:2"),
    ("fc.weight", "2:4"),
    ("pre.weight", "4:1:2x4"),
    ("right", "2x2"),
)


def test_a_masked_weight_is_one_with_zeros(mixed: tuple[Model, torch.Tensor]) -> None:
    model, x = mixed
    masked = _mask(model, *ALL)
    found = masks(masked)
    assert {name: mask.life.pattern for name, mask in found.items()} == dict(ALL)
    assert {name: mask.life.dim for name, mask in found.items()} == {
        "up.weight": 1, "mix.weight": 1, "fc.weight": 1, "pre.weight": 1, "right": 0
    }  # fmt: skip
    assert all(mask.intact and mask.density == 0.5 for mask in found.values())
    reference, poisoned = copy.deepcopy(model), copy.deepcopy(masked)
    for name, mask in found.items():
        zeroed = reference.get_parameter(name)
        zeroed.data = torch.where(mask.value, zeroed.data, 0.0)
        bad = poisoned.get_parameter(name)
        bad.data = torch.where(mask.value, bad.data, float("nan"))
    wanted = oracle.gradients(reference, (x,), {})
    for candidate in (masked, poisoned):
        assert torch.equal(candidate(x), reference(x))
        for name, gradient in oracle.gradients(candidate, (x,), {}).items():
            other = wanted[name]
            assert gradient is not None
            assert other is not None
            if name in found:
                assert not gradient[~found[name].value].any()
                other = torch.where(found[name].value, other, 0.0)
            assert torch.equal(gradient, other), name
    folded, record = apply(poisoned, FoldMask(tensor="up.weight"))
    assert record.kind == "passed"
    assert torch.equal(folded(x), reference(x))
    assert torch.equal(folded.get_parameter("up.weight"), reference.get_parameter("up.weight"))


def test_masks_come_and_go_without_a_trace(mixed: tuple[Model, torch.Tensor]) -> None:
    model, x = mixed
    masked = _mask(model, *ALL)
    for tensor, _ in ALL:
        cleared, record = apply(_mask(model, *ALL), ClearMask(tensor=tensor))
        assert record.kind == "passed"
        assert tensor not in masks(cleared)
    manager = PassManager(masked)
    for tensor, _ in ALL:
        manager.apply(ClearMask(tensor=tensor))
    assert str(masked) == str(model)
    same_state(masked, model)
    assert masked.ecology.lives == {}
    assert torch.equal(masked(x), model(x))
    again = _mask(model, ("fc.weight", "2:4"))
    record = PassManager(again).apply(SetMask(tensor="fc.weight", pattern="2:4"))
    assert (record.kind, record.code) == ("missed", "no-change")
    other = _mask(again, ("fc.weight", "1:4"))
    came = masks(other)["fc.weight"].value & ~masks(again)["fc.weight"].value
    assert not came.any()  # among what was on already
    assert masks(other)["fc.weight"].life.mask == masks(again)["fc.weight"].life.mask


def test_masks_follow_cuts_and_growth(mixed: tuple[Model, torch.Tensor]) -> None:
    model, x = mixed
    masked = _mask(model, *ALL)
    for axis in ("axis:up/channels", "axis:fc/neurons", "axis:pre/neurons", "axis:root/neurons"):
        cut = PruneUnits(axis=axis, units=(1, 2))
        one, record = apply(masked, cut)
        assert record.kind == "passed", record.line()
        manager = PassManager(one)
        for tensor in list(masks(one)):
            manager.apply(FoldMask(tensor=tensor))
        other = copy.deepcopy(masked)
        manager = PassManager(other)
        for tensor in list(masks(other)):
            manager.apply(FoldMask(tensor=tensor))
        manager.apply(cut)
        same_state(one, other)
        assert torch.equal(one(x), other(x))
        wide, record = apply(masked, WidenUnits(axis=axis, count=4))
        assert record.kind == "passed", record.line()
        oracle.close(wide(x), masked(x), axis)
        born = wide.anatomy.axes[axis].unit_ids[-4:]
        back, record = apply(wide, PruneUnits(axis=axis, units=born))
        assert str(back) == str(masked)
        same_state(back, masked)
    narrow, _ = apply(masked, PruneUnits(axis="axis:pre/neurons", units=(0,)))
    assert not masks(narrow)["right"].intact  # seven inputs of a 2x2 pattern
    for proposal in (RegrowMask(tensor="right", grow="random"), GateCells(tensor="right")):
        assert refused(narrow, proposal).code == "pattern-broken"


def test_masks_are_saved(mixed: tuple[Model, torch.Tensor], tmp_path: Path) -> None:
    model, x = mixed
    masked = _mask(model, *ALL)
    esper.save(masked, tmp_path / "masked.esper")
    loaded = esper.load(tmp_path / "masked.esper")
    verify(loaded)
    same_state(loaded, masked)
    oracle.close(loaded(x), masked(x), "loaded")
    assert {n: m.life for n, m in masks(loaded).items()} == {
        n: m.life for n, m in masks(masked).items()
    }
    assert loaded.get_buffer("fc.weight_mask").dtype == torch.bool
    exported = torch.export.export(masked, (x,))
    oracle.close(exported.module()(x), masked(x), "exported")
    again = esper.trace(masked, (x,))
    oracle.close(again(x), masked(x), "traced again")


@pytest.mark.parametrize(
    ("proposal", "code"),
    [
        (SetMask(tensor="fc.wieght", pattern="2:4"), "unknown-target"),
        (SetMask(tensor="fc.bias", pattern="2:4"), "no-weight"),
        (SetMask(tensor="fc.weight", pattern="2/4"), "unknown-pattern"),
        (SetMask(tensor="fc.weight", pattern="3:7"), "pattern-size"),
        (SetMask(tensor="fc.weight", pattern="2:4", scores="nowhere"), "missing-payload"),
        (RegrowMask(tensor="last.weight"), "no-mask"),
        (GateCells(tensor="last.weight"), "no-mask"),
        (ClearMask(tensor="last.weight"), "no-mask"),
        (FoldMask(tensor="last.weight"), "no-mask"),
        (RegrowMask(tensor="fc.weight"), "missing-payload"),
        (RegrowMask(tensor="fc.weight", grow="random", fraction=0.001), "too-few-cells"),
        (GateCells(tensor="right", off=(99,)), "unknown-cell"),
        (GateCells(tensor="right", on=(0, 0)), "unknown-cell"),
        (GateCells(tensor="fc.weight", off=(0, 1, 2, 3)), "unknown-cell"),
    ],
)
def test_refusals(mixed: tuple[Model, torch.Tensor], proposal: ProposalBase, code: str) -> None:
    masked = _mask(mixed[0], ("fc.weight", "2:4"), ("right", "2x2"))
    record = refused(masked, proposal)
    assert record.code == code
    assert record.remedy
    assert parse(proposal.model_dump_json()) == proposal


def test_more_refusals(mixed: tuple[Model, torch.Tensor]) -> None:
    masked = _mask(mixed[0], ("fc.weight", "2:4"))
    masked.ecology.tick = 7
    over = RegrowMask(tensor="fc.weight", grow="random", until=7)
    assert refused(masked, over).code == "regrowth-over"
    on = masks(masked)["fc.weight"].pattern.on(masks(masked)["fc.weight"].value).flatten()
    lit, dark = int(on.nonzero()[0]), int((~on).nonzero()[0])
    assert refused(masked, GateCells(tensor="fc.weight", off=(lit,))).code == "pattern-broken"
    assert refused(masked, GateCells(tensor="fc.weight", on=(lit,))).code == "unknown-cell"
    swap, record = apply(masked, GateCells(tensor="fc.weight", off=(lit,), on=(dark,)))
    assert record.kind == ("passed" if lit // 4 == dark // 4 else "missed")
    masked.payloads["stale"] = {"scores": torch.ones(2, 2)}
    stale = SetMask(tensor="fc.weight", pattern="2:4", scores="stale")
    assert refused(masked, stale).code == "missing-payload"
    with torch.no_grad():
        masked.get_parameter("up.weight")[0, 0, 0] = float("nan")
    assert refusal(masked, SetMask(tensor="up.weight", pattern="1:4")).code == "no-order"
    assert swap is not masked


def test_what_is_held_by_whom() -> None:
    from tests.live.training import traced

    masked = _mask(traced(), ("block.0.weight", "4:1:2"), ("head.weight", "1:2"))
    owners = {name: mask.life.owner for name, mask in masks(masked).items()}
    assert owners == {"block.0.weight": "phage:block", "head.weight": ""}
    dropped, record = apply(masked, DropRegion(region="phage:block"))
    assert record.kind == "passed"
    assert list(masks(dropped)) == ["head.weight"]  # the mask went with its weight
    proposal = SetMask(tensor="block.0.weight", pattern="1:2", phage="phage:block")
    assert proposal.targets == ("block.0.weight", "phage:block")


# -- the end ---------------------------------------------------------------------------------------


def _emptied(model: Model) -> Model:
    """Unit 2 of fc feeds nothing, unit 5 of fc and unit 3 of pre are fed by nothing."""
    masked = _mask(model, ("pre.weight", "1x1"), ("fc.weight", "1x1"))
    for tensor, dim, unit in (("pre.weight", 1, 2), ("pre.weight", 0, 3), ("fc.weight", 0, 5)):
        mask = masks(masked)[tensor]
        gone = torch.zeros_like(mask.value)
        gone.select(dim, unit).fill_(True)
        off = mask.pattern.on(gone & mask.value).flatten().nonzero().flatten().tolist()
        record = PassManager(masked).apply(GateCells(tensor=tensor, off=tuple(off)))
        assert record.kind == "passed", record.line()
    return masked


def test_compaction_keeps_the_function(mixed: tuple[Model, torch.Tensor]) -> None:
    model, x = mixed
    masked = _emptied(model)
    assert unheard(masked) == {"axis:fc/neurons": (2,)}
    assert unfed(masked) == {"axis:fc/neurons": (5,), "axis:pre/neurons": (3,)}
    compact, records, remarks = drive(Compact(), masked)
    assert {record.kind for record in records} == {"passed"}
    assert {record.proposal.type for record in records if record.proposal} == {
        "fold-mask", "prune-units"
    }  # fmt: skip
    assert masks(compact) == {}
    oracle.close(compact(x), masked(x), "output")
    assert compact.anatomy.axes["axis:fc/neurons"].unit_ids == (0, 1, 3, 4, 6, 7)
    # A product has no bias that could hold the constant.
    assert [(r.code, r.node) for r in remarks] == [("unknown-constant", "axis:pre/neurons")]
    assert not any("mask" in name for name, _ in compact.all_tensors())
    _, records, remarks = drive(Compact(), compact)
    assert (records, [remark.code for remark in remarks]) == ([], ["no-mask"])


def test_the_pass_masks_runs_of_inputs(mixed: tuple[Model, torch.Tensor]) -> None:
    text = "sparsify{pattern=4:1:2x4 only=fc.*}"
    assert pipeline.parse(text).text() == text
    (pass_,) = pipeline.parse(text).items
    sparse, records, _ = drive(pass_.instance, mixed[0])
    assert {r.kind for r in records} == {"passed"}
    weight = sparse.get_parameter("fc.weight")
    packed = RunSparse.pack(weight, 4, 4)
    assert packed.density == 0.5
    assert torch.equal(packed.unpack(), weight)


def test_the_pass_masks_what_the_pattern_divides(mixed: tuple[Model, torch.Tensor]) -> None:
    model, x = mixed
    context = Context(data=[((x,), {})])
    sparse, records, remarks = drive(Sparsify(), model)
    assert {r.kind for r in records} == {"passed"}
    assert {r.node for r in remarks} == {"last.weight"}  # six inputs
    assert masks(sparse) == {}
    for name in ("up.weight", "mix.weight", "fc.weight", "pre.weight", "right"):
        weight = sparse.get_parameter(name)
        assert (weight == 0).float().mean() == 0.5
    chosen = set()
    for saliency in ("magnitude", "taylor", "fisher", "random"):
        pass_ = Sparsify(pattern="2:4", saliency=saliency, only="fc.*", keep_masks=True)
        kept, records, _ = drive(pass_, model, context)
        assert len(records) == 1
        assert masks(kept)["fc.weight"].intact
        assert len(kept.payloads) == (saliency != "magnitude")  # to be applied again
        chosen.add(tuple(masks(kept)["fc.weight"].value.flatten().tolist()))
    assert len(chosen) == 3  # taylor and fisher rank alike on one batch
    _, records, remarks = drive(Sparsify(only="none"), model)
    assert (records, [r.code for r in remarks]) == ([], ["no-weight"])
    _, records, remarks = drive(Sparsify(pattern="block"), model)
    assert (records, {r.code for r in remarks}) == ([], {"pattern-size"})
    with pytest.raises(ValueError, match="no pattern"):
        Sparsify(pattern="half")
    assert "no faster" in Sparsify.summary()


def test_scores_say_what_zeroing_does_to_first_order(mixed: tuple[Model, torch.Tensor]) -> None:
    from esper_passes.weight_scores import weight_scores

    model, x = mixed
    context: Any = Context(data=[((x,), {})])
    taylor = weight_scores(model, ["fc.weight"], "taylor", context, "sparsify")["fc.weight"]
    fisher = weight_scores(model, ["fc.weight"], "fisher", context, "sparsify")["fc.weight"]
    torch.testing.assert_close(taylor.square(), fisher)
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, model(x).shape, generator=generator) * 2 - 1
    wanted = model(x).detach().float().square().sum().sqrt()

    def loss(weight: torch.Tensor) -> torch.Tensor:
        result = torch.func.functional_call(model, {"fc.weight": weight}, (x,))
        total: torch.Tensor = (result * signs).sum() / wanted
        return total

    weight = model.get_parameter("fc.weight").detach()
    for at in ((0, 0), (3, 17)):
        step = torch.zeros_like(weight)
        step[at] = 1e-6 * weight[at]
        slope = float((loss(weight + step) - loss(weight - step)).detach()) / 2e-6
        assert float(taylor[at]) == pytest.approx(abs(slope), rel=1e-5, abs=1e-9)
