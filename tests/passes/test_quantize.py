"""Quantised layers compute what rounded weights would; what is refused, exported, and undone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import esper
from esper.cli.outputs import prepare, write_output
from esper.errors import OutputError
from esper.ir.ecology import SlotLife
from esper.ir.graphs_equal import graphs_equal
from esper.ir.model import Model
from esper.ir.verifier import verify
from esper.propose import DequantizeLayers, PruneUnits, QuantizeLayers, QuantizePhage, parse
from esper_passes.integer_layer import integer_layer
from esper_passes.quantization import GROUP, int4, int8
from esper_passes.quantize import Quantize
from tests import oracle
from tests.live.training import Net
from tests.passes.support import drift, drive, ops, refusal, refused, traced

F64 = torch.float64
MODES_BY_LAYER: tuple[Any, ...] = ("weight-int8", "dynamic-int8", "weight-int4")


class Mixed(nn.Module):
    """Convolutions, a linear layer over the last of three dimensions, and a matmul."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(3, 8, 3, padding=1, groups=1)
        self.mix = nn.Linear(64, 32)
        self.out = nn.Linear(32, 6, bias=False)
        self.matrix = nn.Parameter(torch.randn(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, 8, 8) -> (batch, 8, 5)."""
        x = torch.relu(self.image(x)).flatten(2)
        return torch.relu(self.out(torch.relu(self.mix(x)))) @ self.matrix


@pytest.fixture(scope="module")
def mixed() -> tuple[Model, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8, dtype=F64)
    return traced(Mixed(), x), x


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [0, 1])
def test_int8_is_within_half_a_step(outputs: int) -> None:
    weight = torch.randn(7, 9, 3, dtype=F64)
    weight.select(outputs, 2).zero_()
    values, scale = int8(weight, outputs)
    assert (values.dtype, values.shape) == (torch.int8, weight.shape)
    assert scale.shape == tuple(n if d == outputs else 1 for d, n in enumerate(weight.shape))
    assert bool(((values * scale - weight).abs() <= scale / 2 + 1e-12).all())
    assert int(values.abs().amax()) == 127


def test_int4_is_within_half_a_step() -> None:
    weight = torch.randn(3, 2 * GROUP, dtype=F64)
    packed, scale = int4(weight)
    assert (packed.dtype, packed.shape, scale.shape) == (torch.uint8, (3, GROUP), (3, 2, 1))
    whole = torch.stack([packed & 15, packed >> 4], -1).reshape(3, 2, GROUP).to(torch.int8) - 8
    assert bool(((whole * scale - weight.reshape(3, 2, GROUP)).abs() <= scale / 2 + 1e-12).all())


def rounded(model: Model, names: dict[str, int], bits: int = 8) -> Model:
    """A copy with weights rounded in place: names -> the dimension of outputs."""
    reference = copy.deepcopy(model)
    for name, outputs in names.items():
        weight = reference.get_parameter(name)
        if bits == 8:
            values, scale = int8(weight.detach(), outputs)
            weight.data = values * scale
        else:
            packed, scale = int4(weight.detach())
            halves = torch.stack([packed & 15, packed >> 4], -1)
            whole = halves.reshape(len(weight), -1, GROUP).to(torch.int8) - 8
            weight.data = (whole * scale).reshape(weight.shape)
    return reference


# -- weight-only -----------------------------------------------------------------------------------

LAYERS = {"image.weight": 0, "mix.weight": 0, "out.weight": 0, "matrix": 1}


def test_the_layer_computes_what_rounded_weights_would(mixed: tuple[Model, Tensor]) -> None:
    model, x = mixed
    found, records, remarks = drive(Quantize(mode="weight-int8", least=1), model)
    assert [r.kind for r in records] == ["passed"] * 4
    assert not remarks
    reference = rounded(model, LAYERS)
    for mine, theirs in zip(
        oracle.run(found, (x,), {}), oracle.run(reference, (x,), {}), strict=True
    ):
        assert torch.equal(mine, theirs)
    own, other = (oracle.gradients(m, (x,), {}) for m in (found, reference))
    assert set(own) == {"image.bias", "mix.bias"}
    for name, gradient in own.items():
        assert gradient is not None
        oracle.close(gradient, other[name], name)  # type: ignore[arg-type]
    assert found.nbytes() < 0.2 * model.nbytes()
    again, records, remarks = drive(Quantize(mode="weight-int8", least=1), found)
    assert (records, [r.code for r in remarks]) == ([], ["nothing-to-quantise"])
    assert str(again) == str(found)


class Grouped(nn.Module):
    """Convolutions in several groups, one of them depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 4, h, w) -> (batch, 2, h, w)."""
        y: Tensor = self.head(torch.relu(self.second(torch.relu(self.first(x)))))
        return y


def test_convolutions_in_groups_have_a_scale_for_each_output() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6, dtype=F64)
    model = traced(Grouped(), x)
    found, records, remarks = drive(Quantize(mode="weight-int8", least=1), model)
    assert ([r.kind for r in records], remarks) == (["passed"] * 3, [])
    reference = rounded(model, {f"{name}.weight": 0 for name in ("first", "second", "head")})
    assert torch.equal(found(x), reference(x))
    back, record = found.apply(DequantizeLayers(nodes=("conv2d", "conv2d_1", "conv2d_2")))
    assert record.kind == "passed", record.line()
    assert torch.equal(back(x), reference(x))
    axes = [a.id for a in model.anatomy.axes.values() if a.cuttable]
    assert axes == [a.id for a in found.anatomy.axes.values() if a.cuttable]
    for mode in ("weight-int4", "dynamic-int8"):
        wish = QuantizeLayers(nodes=("conv2d",), mode=mode)
        assert refused(model, wish).code == "grouped-convolution"


def test_two_weights_a_byte(mixed: tuple[Model, Tensor]) -> None:
    model, x = mixed
    found, records, remarks = drive(Quantize(mode="weight-int4", least=1), model)
    assert [r.proposal.targets for r in records if r.proposal] == [("linear",), ("linear_1",)]
    assert [r.code for r in remarks] == ["no-integer-kernel", "odd-inputs"]
    reference = rounded(model, {"mix.weight": 0, "out.weight": 0}, bits=4)
    assert torch.equal(oracle.run(found, (x,), {})[0], oracle.run(reference, (x,), {})[0])
    assert records[0].figures["bytes_after"] == 32 * 32 + 8 * 32 * 2


@pytest.mark.parametrize("mode", ["weight-int8", "weight-int4"])
def test_the_way_back_gives_the_rounded_weights(mode: Any, mixed: tuple[Model, Tensor]) -> None:
    model, x = mixed
    nodes = ("linear", "linear_1")
    small, record = model.apply(QuantizeLayers(nodes=nodes, mode=mode))
    assert record.kind == "passed", record.line()
    back, record = small.apply(DequantizeLayers(nodes=nodes))
    assert record.kind == "passed", record.line()
    assert set(back.state_dict()) == set(model.state_dict())
    assert graphs_equal(back, model) is None
    assert torch.equal(back(x), small(x))
    bits = 8 if mode == "weight-int8" else 4
    reference = rounded(model, {"mix.weight": 0, "out.weight": 0}, bits)
    for name, parameter in back.named_parameters():
        assert torch.equal(parameter, reference.get_parameter(name))
        assert parameter.requires_grad
    frozen, _ = small.apply(DequantizeLayers(nodes=nodes, trainable=False))
    assert "mix.weight" not in dict(frozen.named_parameters())
    assert refused(back, DequantizeLayers(nodes=nodes)).code == "not-quantised"


def test_units_of_quantised_layers_can_be_cut(mixed: tuple[Model, Tensor]) -> None:
    model, x = mixed
    small, _ = model.apply(QuantizeLayers(nodes=("linear", "linear_1")))
    oracle.assert_exact_cut(small, {"axis:mix/neurons": [0, 5, 31]}, (x,), {}, train=False)
    assert small.apply(PruneUnits(axis="axis:mix/neurons", units=(1,)))[1].kind == "passed"


def test_precision_follows_the_model(mixed: tuple[Model, Tensor]) -> None:
    model, x = mixed
    small, _ = model.apply(QuantizeLayers(nodes=("linear",)))
    assert small.float()(x.float()).dtype == torch.float32
    assert small.tensor("mix.weight_int8").dtype == torch.int8  # type: ignore[union-attr]


# -- integer products ------------------------------------------------------------------------------


def imitated(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What a layer of integers computes, in floating point: rows and outputs rounded."""
    step = (x.abs().amax(-1, keepdim=True)).clamp_min(1e-12) / 127
    values, scale = int8(weight, 0)
    return nn.functional.linear((x / step).round() * step, values * scale, bias)


def test_integers_compute_what_rounded_rows_and_weights_would() -> None:
    first, second = nn.Linear(20, 12).double(), nn.Linear(12, 3, bias=False).double()
    module = nn.Sequential(first, nn.ReLU(), second)
    x = torch.randn(4, 5, 20, dtype=F64)
    model = traced(module, x)
    found, records, _ = drive(Quantize(least=1), model)
    assert [r.kind for r in records] == ["passed", "passed"]
    assert ops(found).count("_int_mm") == 2
    hidden = torch.relu(imitated(x, first.weight.detach(), first.bias.detach()))
    expected = imitated(hidden, second.weight.detach(), None)
    oracle.close(found(x).detach(), expected, "integers")
    assert 0 < drift(found, model, (x,)) < 0.05
    assert found(torch.randn(7, 5, 20, dtype=F64)).shape == (7, 5, 3)  # the batch stays dynamic
    zero = found(torch.zeros_like(x))
    assert bool(zero.isfinite().all())
    _, records, remarks = drive(Quantize(least=1), found)
    assert (records, [r.code for r in remarks]) == ([], ["nothing-to-quantise"])
    ends = [n.name for n in found.graph.nodes if n.target is torch.ops.aten.reshape.default][1::2]
    back, record = found.apply(DequantizeLayers(nodes=tuple(ends)))
    assert record.kind == "passed", record.line()
    assert set(back.state_dict()) == set(model.state_dict())
    assert graphs_equal(back, model) is None
    oracle.close(back(x), rounded(model, {"0.weight": 0, "2.weight": 0})(x), "the way back")
    for near in ("relu", *(n.name for n in found.graph.nodes if "stepped" in n.name)):
        assert refusal(found, DequantizeLayers(nodes=(near,))).code == "not-quantised"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_in_float32_and_results_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(512, 48, dtype=dtype), nn.Linear(48, 8, dtype=dtype)
    x = torch.randn(64, 512).to(dtype)
    x[3] = 0  # which float16 would divide by zero
    x[4] *= 1e-3
    for module, given in ((first, x), (second, torch.randn(2, 5, 48).to(dtype))):
        model = esper.trace(nn.Sequential(module).eval(), (given,))
        found, (record,), _ = drive(Quantize(least=1), model)
        assert record.kind == "passed", record.line()
        assert found.tensor("0.weight_scale").dtype == torch.float32  # type: ignore[union-attr]
        got = found(given)
        assert got.dtype == dtype
        step = given.float().abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
        integers = (given.float() / step).round()  # quotients near a half hang on the precision
        assert int(integers.abs().max()) == 127
        values, scale = int8(module.weight.detach().float(), 0)
        bias = module.bias.detach().double()
        rows, weight = integers.double() * step, values.double() * scale
        expected = nn.functional.linear(rows, weight, bias)
        # Half an ulp for the result, and what float32 is off before.
        limit = torch.finfo(dtype).eps / 2
        torch.testing.assert_close(got.double(), expected, rtol=limit, atol=2e-5)
        (end,) = (n.name for n in found.graph.nodes if integer_layer(n) is not None)
        back, record = found.apply(DequantizeLayers(nodes=(end,)))
        assert record.kind == "passed", record.line()
        assert graphs_equal(back, model) is None
        assert {p.dtype for p in back.parameters()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_within_half_a_step_of_the_scale_they_have(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(40, 64) * torch.logspace(-4, 0, 40)[:, None]).to(dtype)
    weight[7] = 0
    groups = weight.reshape(40, -1, GROUP).double()
    packed, coarse = int4(weight)
    halves = torch.stack([packed & 15, packed >> 4], -1).reshape(groups.shape)
    values, scale = int8(weight, 0)
    for integers, steps, wanted, largest in (
        (values, scale, weight, 127),
        (halves.to(torch.int8) - 8, coarse, groups, 7),
    ):
        assert steps.dtype == dtype
        assert bool((steps > 0).all())
        off = (integers * steps.double() - wanted.double()).abs()
        # A scale that was rounded down leaves the largest weight out of reach by as much.
        slack = (wanted.double().abs() - largest * steps.double()).clamp_min(0)
        assert bool((off <= steps.double() / 2 * 1.001 + slack).all())


def test_one_input_is_refused() -> None:
    torch.manual_seed(0)
    x = torch.randn(128, 1, dtype=F64)
    model = traced(nn.Sequential(nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 2)), x)
    wish = QuantizeLayers(nodes=("linear",), mode="dynamic-int8")
    assert refused(model, wish).code == "no-integer-kernel"
    found, records, remarks = drive(Quantize(least=1), model)
    assert [r.kind for r in records] == ["passed"]
    assert [r.code for r in remarks] == ["no-integer-kernel"]
    assert 0 < drift(model, found, (x,)) < 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["autocast", "to"])
def test_what_comes_in_half_precision_is_rounded_in_float32(way: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 64), nn.Linear(64, 16))
    x = torch.randn(32, 64)
    model = esper.trace(network.eval(), (x,))
    # The last layer multiplies the kernel's result in floating point.
    text = "sparsify{pattern=16:1:2x8 only=2.*},quantize{least=1 only=2.*}"
    small = esper.optimize(model, text).model
    kernels = esper.optimize(small, "lower-kernels{choose=all}").model
    assert kernels.kernel_ops == ("esper::vnm_dynamic_linear",)
    expected = small(x)
    for found in (small, kernels):
        if way == "autocast":
            with torch.autocast("cpu", dtype):
                got = found(x)
        elif found is small:
            got = copy.deepcopy(found).to(dtype)(x.to(dtype))
        else:
            continue  # scales of kernels are float32
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), expected, rtol=0, atol=0.02)


class Columns(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.shift = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        """An addmm."""
        return torch.addmm(self.shift, x, self.matrix).tanh()


def test_integers_stored_by_columns() -> None:
    x = torch.randn(5, 8, dtype=F64)
    model = traced(Columns(), x)
    found, (record,), _ = drive(Quantize(least=1), model)
    assert record.kind == "passed"
    matrix, shift = (model.get_parameter(n).detach() for n in ("matrix", "shift"))
    oracle.close(found(x).detach(), imitated(x, matrix.T, shift).tanh(), "columns")
    back, record = found.apply(DequantizeLayers(nodes=("addmm_narrow",)))
    assert record.kind == "passed", record.line()
    oracle.close(back(x), rounded(model, {"matrix": 1})(x), "the way back")


def test_two_symbolic_sizes() -> None:
    x = torch.randn(2, 5, 8)
    sizes = {"input": [0, 1]}
    model = esper.trace(nn.Sequential(nn.Linear(8, 4)).eval(), (x,), dynamic=sizes)
    found, (record,), _ = drive(Quantize(least=1), model)
    assert record.kind == "passed", record.line()
    for shape in ((3, 9), (0, 9), (3, 0), (0, 0)):
        assert found(torch.randn(*shape, 8)).shape == (*shape, 4)


def test_rounding_would_stop_gradients() -> None:
    model = traced(
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), torch.randn(3, 4).double()
    )
    model.train()
    record = refused(model, QuantizeLayers(nodes=("linear_1",), mode="dynamic-int8"))
    assert (record.code, record.node) == ("training-mode", "linear_1")
    assert model.apply(QuantizeLayers(nodes=("linear",), mode="dynamic-int8"))[1].kind == "passed"
    assert model.apply(QuantizeLayers(nodes=("linear_1",)))[1].kind == "passed"


# -- files -----------------------------------------------------------------------------------------


def test_files(tmp_path: Any) -> None:
    module = nn.Sequential(
        nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 160)
    )
    x = torch.randn(4, 32)
    small = esper.trace(module.eval(), (x,))
    for name, mode in zip(("linear", "linear_1", "linear_2"), MODES_BY_LAYER, strict=True):
        small, record = small.apply(QuantizeLayers(nodes=(name,), mode=mode))
        assert record.kind == "passed", record.line()
    esper.save(small, tmp_path / "m.esper")
    loaded = esper.load(tmp_path / "m.esper")
    verify(loaded)
    assert torch.equal(loaded(x), small(x))
    # Both writers run what they wrote against the model.
    write_output(small, prepare(str(tmp_path / "m.pt2")), ((x,), {}))
    said = ""
    try:
        write_output(small, prepare(str(tmp_path / "m.onnx")), ((x,), {}))
    except OutputError as error:
        said = str(error)
    if said:
        # Without VNNI, onnxruntime adds pairs of products in 16 bits. That is seen, and refused.
        assert not torch.cpu._is_vnni_supported(), said
        assert "differs from the model" in said
    assert (tmp_path / "m.onnx").exists() == (not said)


# -- regions ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> Model:
    torch.manual_seed(0)
    return traced(Net(), torch.randn(4, 6, dtype=F64))


class Branches(nn.Module):
    """Residual branches that end in a layer; the second lies within a third."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(32, 32)
        self.a = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        self.b = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32))
        self.c = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 32) -> (batch, 32)."""
        x = torch.relu(self.stem(x))
        x = x + self.a(x)
        y = torch.tanh(self.c(x))
        out: Tensor = x + (y + self.b(y))
        return out


@pytest.mark.parametrize("mode", MODES_BY_LAYER)
def test_ids_of_branches_survive_rounding_files_and_the_way_back(mode: Any, tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = traced(Branches(), torch.randn(3, 32, dtype=F64)).eval()
    wanted = {p.id: (p.path, p.merge) for p in model.anatomy.phages.values()}
    assert {"phage:a", "phage:b"} <= wanted.keys()
    slots = set(model.anatomy.slots)
    manager = esper.PassManager(model)
    for region in ("phage:a", "phage:b"):
        before = dict(model.anatomy.phages)
        with manager.transaction() as transaction:
            assert manager.apply(QuantizePhage(region=region, mode=mode)).kind == "passed"
            transaction.roll_back()
        assert dict(model.anatomy.phages) == before
        assert manager.apply(QuantizePhage(region=region, mode=mode)).kind == "passed"
    esper.save(model, tmp_path / "small.esper")
    for small in (model, esper.load(tmp_path / "small.esper")):
        found = {p.id: (p.path, p.merge) for p in small.anatomy.phages.values()}
        assert wanted.items() <= found.items()
        assert slots <= set(small.anatomy.slots)
        back = esper.PassManager(small)
        for region in ("phage:a", "phage:b"):
            for name in small.anatomy.phages[region].nodes:
                if name in small.nodes:
                    back.apply(DequantizeLayers(nodes=(name,)))
        assert not any("int" in str(tensor.dtype) for _, tensor in small.all_tensors())
        found = {p.id: (p.path, p.merge) for p in small.anatomy.phages.values()}
        assert wanted.items() <= found.items()
        assert not {name for name in small.identities.retired if name.startswith("phage")}


def test_a_phage_is_quantised_whole(network: Model) -> None:
    wish = QuantizePhage(region="phage:block")
    small, record = network.apply(wish)
    assert (record.kind, record.figures["layers"]) == ("passed", 2), record.line()
    assert {n for n, _ in small.named_parameters()} & {"block.0.weight", "block.2.weight"} == set()
    phage = small.anatomy.phages["phage:block"]
    assert phage.parameters == network.anatomy.phages["phage:block"].parameters
    assert refused(small, wish).code == "nothing-to-quantise"
    assert parse(wish.model_dump_json()) == wish


@pytest.mark.parametrize(
    ("stage", "since", "code"),
    [
        ("blending", 0, "unsettled-phage"),
        ("holding", 0, "unsettled-phage"),
        ("committed", 90, "unsettled-phage"),
        ("committed", 80, None),
    ],
)
def test_only_a_settled_seed_is_quantised(
    stage: Any, since: int, code: str | None, network: Model
) -> None:
    model = copy.deepcopy(network)
    model.ecology.tick = 100
    model.ecology.set("slot:block.out", SlotLife(stage=stage, since=since, seed="block"))
    model.ecology.set("slot:stem.out", SlotLife(stage="blending", seed="blocks"))
    refusal_ = model.check(QuantizePhage(region="phage:block"))
    assert (None if refusal_ is None else refusal_.code) == code


@pytest.mark.parametrize(
    ("proposal", "code"),
    [
        (QuantizePhage(region="phage:nowhere"), "unknown-target"),
        (QuantizePhage(region="phage:block", mode="weight-int4"), "nothing-to-quantise"),
        (QuantizeLayers(nodes=("linear", "nobody")), "unknown-target"),
        (QuantizeLayers(nodes=("relu",)), "no-weight"),
        (QuantizeLayers(nodes=("linear",), mode="weight-int4"), "odd-inputs"),
        (DequantizeLayers(nodes=("linear",)), "not-quantised"),
    ],
)
def test_refusals(proposal: Any, code: str, network: Model) -> None:
    assert refused(network, proposal).code == code
    assert parse(proposal.model_dump_json()) == proposal


def test_a_gradient_would_be_lost(network: Model) -> None:
    model = copy.deepcopy(network)
    weight = model.get_parameter("block.0.weight")
    weight.grad = torch.ones_like(weight)
    found = refusal(model, QuantizePhage(region="phage:block"))
    assert (found.code, found.node) == ("pending-gradient", "linear_1")
    assert "zero_grad" in found.remedy
    weight.grad = None
    assert not isinstance(model.plan(QuantizePhage(region="phage:block")), esper.plan.Refusal)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="least"):
        Quantize(least=0)
