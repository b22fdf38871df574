"""Half precision inside, unchanged ports; context stays exact; misfits are refused."""

from __future__ import annotations

import copy
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import esper
from esper.ir.graphs_equal import graphs_equal
from esper.ir.model import Model
from esper.ir.trace import trace
from esper.propose import Cast as Proposal
from esper_passes.cast import Cast
from esper_passes.integer_layer import integer_layer
from esper_passes.quantize import Quantize
from tests.models import MODELS
from tests.passes.support import apply, drift, drive, ops, refused, same_state

# Unit roundoff is 2^-8 and 2^-11; a handful of layers adds up to less than a dozen of them.
BOUND = {"bfloat16": 12 * 2**-8, "float16": 12 * 2**-11}
Half = Literal["bfloat16", "float16"]


def floating(model: nn.Module) -> set[torch.dtype]:
    return {p.dtype for p in model.parameters()}


@pytest.mark.parametrize("name", MODELS)
def test_zoo_computes_in_bfloat16_behind_equal_ports(name: str) -> None:
    module, args, kwargs = MODELS[name]()
    model = trace(module, args, kwargs)
    lowered, records, _ = drive(Cast("bfloat16"), model)
    (record,) = records
    assert record.figures["tolerance"] == "lossy"
    assert record.figures["bytes_after"] * 2 == record.figures["bytes_before"]
    assert floating(lowered) == {torch.bfloat16}
    assert 0 < drift(model, lowered, args, kwargs) < BOUND["bfloat16"]  # compares dtypes too


@pytest.mark.parametrize("name", ["bert_eager", "llama", "resnet_basic"])
def test_float16_is_closer(name: str) -> None:
    module, args, kwargs = MODELS[name]()
    model = trace(module, args, kwargs)
    lowered, _, _ = drive(Cast("float16"), model)
    assert floating(lowered) == {torch.float16}
    assert 0 < drift(model, lowered, args, kwargs) < BOUND["float16"]


class Plain(nn.Module):
    """Convolution, norm, activation; `low` writes out what the pass should make of it."""

    def __init__(self, low: torch.dtype | None = None) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.low = low
        self.to(low or torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        if self.low is None:
            out: Tensor = self.norm(self.layer(x)).relu()
            return out
        out = self.norm(self.layer(x.to(self.low))).relu()
        return out.to(torch.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_graph_before_and_after(dtype: Half) -> None:
    x = torch.randn(2, 3, 5, 5)
    model = trace(Plain().eval(), (x,))
    expected = trace(Plain(getattr(torch, dtype)).eval(), (x,))
    lowered, _ = apply(model, Proposal(dtype=dtype))
    assert graphs_equal(lowered, expected) is None
    assert lowered.state_dict()["norm.num_batches_tracked"].dtype is torch.int64
    # Bit for bit what casting the module by hand computes.
    by_hand = Plain(getattr(torch, dtype)).eval()
    by_hand.load_state_dict(model.state_dict())
    assert drift(by_hand, lowered, (x,)) == 0.0


def test_second_run_finds_nothing() -> None:
    lowered, _ = apply(
        trace(Plain().eval(), (torch.randn(2, 3, 5, 5),)), Proposal(dtype="bfloat16")
    )
    again, records, remarks = drive(Cast(), lowered)
    assert not records
    assert [remark.code for remark in remarks] == ["nothing-to-cast"]
    same_state(again, lowered)
    assert refused(lowered, Proposal(dtype="bfloat16")).code == "nothing-to-cast"


def test_cast_model_trains() -> None:
    x = torch.randn(4, 3, 5, 5)
    lowered, _ = apply(trace(Plain().eval(), (x,)), Proposal(dtype="bfloat16"))
    lowered.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in lowered.parameters())


# -- what stays exact --------------------------------------------------------------------------


def test_rms_norms_stay_islands_of_float32() -> None:
    module, args, kwargs = MODELS["llama"]()
    lowered, record = apply(trace(module, args, kwargs), Proposal(dtype="float16"))
    assert record.figures["islands"] is True
    values = [n.meta["val"] for n in lowered.graph.nodes if "rsqrt" in n.name]
    assert [v.dtype for v in values] == [torch.float32] * 5
    # The residual stream between the norms is low: only the islands are wide.
    products = [n for n in lowered.graph.nodes if n.target is torch.ops.aten.linear.default]
    assert {n.meta["val"].dtype for n in products} == {torch.float16}


def test_islands_survive_squares_beyond_the_range_of_float16() -> None:
    module, args, kwargs = MODELS["llama"]()
    with torch.no_grad():
        embedding = module.get_parameter("model.model.embed_tokens.weight")
        embedding.mul_(500 / embedding.abs().mean())  # 500 squared is infinite in float16
    model = trace(module, args, kwargs)
    lowered, _ = apply(model, Proposal(dtype="float16"))
    assert drift(model, lowered, args, kwargs) < BOUND["float16"]


def test_rotary_tables_and_positions_stay_as_they_were() -> None:
    module, args, kwargs = MODELS["llama"]()
    model = trace(module, args, kwargs)
    lowered, _ = apply(model, Proposal(dtype="bfloat16"))
    nodes = lowered.nodes
    for node in model.graph.nodes:
        if "rotary" in str(node.meta["module"]) or not isinstance(node.meta["val"], Tensor):
            continue
        if not node.meta["val"].is_floating_point():
            assert nodes[node.name].meta["val"].dtype == node.meta["val"].dtype
    kept = [name for name, b in lowered.named_buffers() if b.dtype == torch.float32]
    assert any("inv_freq" in name for name in kept)
    assert nodes["cos"].meta["val"].dtype == torch.float32


def test_masks_of_the_lowest_number_stay_finite() -> None:
    module, args, kwargs = MODELS["bert_eager"]()
    kwargs = {**kwargs, "attention_mask": kwargs["attention_mask"].clone()}
    kwargs["attention_mask"][0] = 0  # nothing to attend to in the first row
    model = trace(module, args, kwargs)
    lowered, _ = apply(model, Proposal(dtype="float16"))
    assert "clamp" in ops(lowered)
    assert drift(model, lowered, args, kwargs) < BOUND["float16"]


class Filled(nn.Module):
    """Fills hidden scores with a number that float16 does not have, and passes its input on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = self.layer(x)
        scores = scores.masked_fill(scores > 0, -1e30)
        return scores.softmax(-1), x, torch.arange(4) / 4


def test_literals_beyond_the_range_are_clamped() -> None:
    x = torch.randn(3, 4)
    model = trace(Filled(), (x,))
    lowered, _ = apply(model, Proposal(dtype="float16"))
    with torch.no_grad():
        soft, same, table = lowered(x)
    assert soft.isfinite().all()
    assert torch.equal(same, x)  # an input that is handed on keeps every bit
    assert torch.equal(table, torch.arange(4) / 4)
    assert drift(model, lowered, (x,)) < BOUND["float16"]


def test_model_whose_raised_values_escape_is_lowered_throughout() -> None:
    # GPT-2 converts its position embeddings and adds them to the token embeddings.
    module, args, kwargs = MODELS["gpt2"]()
    lowered, record = apply(trace(module, args, kwargs), Proposal(dtype="bfloat16"))
    assert record.figures["islands"] is False
    norms = [n for n in lowered.graph.nodes if n.target is torch.ops.aten.layer_norm.default]
    assert {n.meta["val"].dtype for n in norms} == {torch.bfloat16}


class Rounded(nn.Module):
    """Layers on rows that come in, on rows inside, and on a sequence; one ends the model."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
        self.sequence, self.last = nn.Linear(32, 32, bias=False), nn.Linear(32, 32)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """`x` (batch, 32), `y` (batch, length, 32)."""
        return self.last(torch.relu(self.second(torch.tanh(self.first(x))))), self.sequence(y)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_layers_of_integers_go_on_to_round_in_full_precision(dtype: Half) -> None:
    torch.manual_seed(0)
    low, args = getattr(torch, dtype), (torch.randn(3, 32), torch.randn(2, 5, 32))
    model, _, _ = drive(Quantize(least=1), trace(Rounded().eval(), args))
    lowered, (record,), _ = drive(Cast(dtype), model)
    assert record.kind == "passed", record.line()
    assert record.figures["islands"] is True
    assert {n: t.dtype for n, t in lowered.all_tensors() if n.endswith("_scale")} == {
        f"{n}.weight_scale": torch.float32 for n in ("first", "second", "sequence", "last")
    }
    assert floating(lowered) == {low}
    layers = [layer for n in lowered.graph.nodes if (layer := integer_layer(n)) is not None]
    assert len(layers) == 4
    assert {layer.x.meta["val"].dtype for layer in layers} == {low}
    assert {layer.rows.meta["val"].dtype for layer in layers} == {torch.float32}
    (tanh,) = (n for n in lowered.graph.nodes if n.target is torch.ops.aten.tanh.default)
    assert tanh.meta["val"].dtype == low
    assert 0 < drift(model, lowered, args) < BOUND[dtype]
    assert refused(lowered, Proposal(dtype=dtype)).code == "nothing-to-cast"
    other: Half = "float16" if dtype == "bfloat16" else "bfloat16"
    again, (record,), _ = drive(Cast(other), lowered)
    assert record.kind == "passed", record.line()
    assert len([n for n in again.graph.nodes if integer_layer(n) is not None]) == len(layers)
    assert 0 < drift(model, again, args) < BOUND["bfloat16"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_kernels_of_integers_keep_their_scales(dtype: Half) -> None:
    torch.manual_seed(0)
    low, args = getattr(torch, dtype), (torch.randn(3, 32), torch.randn(2, 5, 32))
    model = trace(Rounded().eval(), args)
    for mode in ("dynamic-int8", "weight-int8"):
        quantize = f"quantize{{mode={mode} least=1}}"
        pipeline = f"sparsify{{pattern=16:1:2x8}},{quantize},lower-kernels{{choose=all}}"
        kernels = esper.optimize(model, pipeline).model
        assert len(kernels.kernel_ops) == 1
        lowered, (record,), _ = drive(Cast(dtype), kernels)
        assert record.kind == "passed", record.line()
        assert lowered.kernel_ops == kernels.kernel_ops
        scales = {t.dtype for n, t in lowered.all_tensors() if n.endswith("_scale")}
        assert scales == {torch.float32}
        assert floating(lowered) == {low}
        assert 0 < drift(kernels, lowered, args) < BOUND[dtype]
        assert refused(lowered, Proposal(dtype=dtype)).code == "nothing-to-cast"


class Guarded(nn.Module):
    """Numbers that keep divisors from zero; one that is no guard."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 8) to the same."""
        x = self.layer(x)
        unit = nn.functional.normalize(x)
        return unit + x / (x.abs().sum(-1, keepdim=True) + 1e-10) + x * 1e-9


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rows_of_zeros_are_not_divided_by_zero(dtype: Half) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 8)
    x[1] = 0
    model = trace(Guarded().eval(), (x,))
    lowered, (record,), _ = drive(Cast(dtype), model)
    assert record.kind == "passed"
    assert torch.equal(lowered(x)[1], torch.zeros(8))
    assert 0 < drift(model, lowered, (x,)) < BOUND[dtype]
    numbers = {arg for n in lowered.graph.nodes for arg in n.args if isinstance(arg, float)}
    least = {"bfloat16": {1e-12, 1e-10}, "float16": {2.0**-24}}[dtype]
    assert numbers == least | {1e-9, 2.0}  # the last one is an exponent


# -- refusals ----------------------------------------------------------------------------------


class Spectral(nn.Module):
    """A Fourier transform has no bfloat16 kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        spectrum: Tensor = torch.fft.rfft(self.layer(x))
        return spectrum.abs()


def test_op_without_a_kernel_is_refused_by_name() -> None:
    record = refused(trace(Spectral(), (torch.randn(3, 8),)), Proposal(dtype="bfloat16"))
    assert record.code == "dtype"
    assert record.node is not None
    assert "fft" in record.node
    assert "bfloat16" in record.reason
    assert "test_cast.py" in record.reason  # the line of user code
    assert record.remedy


def test_complex_model_is_refused() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, dtype=torch.complex64))
            self.scale = nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.scale * self.weight).abs()

    record = refused(trace(Complex(), (torch.randn(3, 4),)), Proposal(dtype="bfloat16"))
    assert (record.code, record.node) == ("complex", "weight")


def test_planning_changes_nothing() -> None:
    module, args, kwargs = MODELS["unet_interpolate"]()
    model: Model = trace(module, args, kwargs)
    before: Any = copy.deepcopy(model)
    model.plan(Proposal(dtype="bfloat16"))
    assert graphs_equal(model, before) is None
    same_state(model, before)
    assert not isinstance(model.nodes["x"].meta["val"].shape[0], int)
