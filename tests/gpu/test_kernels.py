"""Every operator of `esper_kernels` on a CUDA device, against its reference in float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from esper_kernels import measured, ops
from esper_kernels.config import Config
from esper_kernels.int8 import quantize
from esper_kernels.launch import choose
from esper_kernels.run_sparse import RunSparse
from esper_kernels.sparse24 import Sparse24, gather
from tests.kernels.problems import PROBLEMS, Problem, Sizes, dense, sparse
from tests.kernels.weights import two_of_four

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset"),
]

FOR_CUDA = {name: problem for name, problem in PROBLEMS.items() if name != "vnm_dynamic_linear"}
EACH = pytest.mark.parametrize("problem", FOR_CUDA.values(), ids=FOR_CUDA)
# Norm of the error over that of the result: results are rounded to their dtype, gated and low-rank
# ones of two bytes from rounded products.
CLOSE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# Decode, small batches and prefill; with whole tiles, and with sizes that fit nothing. All meet
# bfloat16 and some the others: each pair is compiled anew.
SIZES = [
    Sizes(samples=1, inputs=512, outputs=384, rows=128, run=16),
    Sizes(samples=7, inputs=509, outputs=77, rows=48, run=8, bias=False),
    Sizes(samples=16, inputs=4096, outputs=1024, rows=128, run=64, density=0.25),
    Sizes(samples=33, inputs=1000, outputs=520, rows=64, run=8),
    Sizes(samples=130, inputs=768, outputs=640, rows=128, run=64),
    Sizes(samples=1025, inputs=1040, outputs=1000, rows=128, run=16, density=0.25),
    Sizes(samples=9, inputs=100, outputs=50, rows=10, run=3),
    Sizes(samples=3, inputs=64, outputs=20, rows=7, run=1),
]
VALUES = [(sizes, torch.bfloat16) for sizes in SIZES] + [
    (SIZES[place], dtype) for place in (0, 1, 5) for dtype in (torch.float32, torch.float16)
]
GRADIENTS = [
    (SIZES[1], torch.float32),
    (SIZES[2], torch.bfloat16),
    (SIZES[3], torch.float16),
    (SIZES[5], torch.bfloat16),
]


def _name(value: Any) -> str:
    if isinstance(value, Sizes):
        return f"{value.samples}x{value.inputs}x{value.outputs}"
    return str(value).removeprefix("torch.")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What was measured on this machine does not matter."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured._load.cache_clear()
    choose.cache_clear()
    yield
    choose.cache_clear()


def outputs(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def on_device(arguments: list[Any]) -> list[Any]:
    """The same on the device; what trains, as leaves."""

    def move(t: Tensor) -> Tensor:
        return t.detach().cuda().requires_grad_(t.requires_grad)

    moved: list[Any] = pytree.tree_map_only(Tensor, move, arguments)
    return moved


def wide(arguments: list[Any]) -> list[Any]:
    """The same in float64, where x has a dtype of floating numbers that weights share."""
    narrow = arguments[0].dtype

    def widen(t: Tensor) -> Tensor:
        return t.detach().double().requires_grad_(t.requires_grad) if t.dtype == narrow else t

    widened: list[Any] = pytree.tree_map_only(Tensor, widen, arguments)
    return widened


def agree(found: Any, expected: Any, dtype: torch.dtype) -> None:
    for ours, theirs in zip(outputs(found), outputs(expected), strict=True):
        assert ours.is_cuda
        assert ours.dtype == dtype
        assert ours.shape == theirs.shape
        error = (ours.detach().cpu().double() - theirs).norm()
        assert float(error) <= CLOSE[dtype] * float(theirs.norm()), float(error / theirs.norm())


@EACH
@pytest.mark.parametrize(("sizes", "dtype"), VALUES, ids=_name)
def test_values(problem: Problem, sizes: Sizes, dtype: torch.dtype) -> None:
    arguments = problem.arguments(sizes, dtype)
    expected = problem.reference(*wide(arguments))
    agree(problem.op(*on_device(arguments)), expected, dtype)


@EACH
@pytest.mark.parametrize(("sizes", "dtype"), GRADIENTS, ids=_name)
def test_gradients(problem: Problem, sizes: Sizes, dtype: torch.dtype) -> None:
    arguments = problem.trainable(sizes, dtype)
    host, device = wide(arguments), on_device(arguments)
    expected, found = outputs(problem.reference(*host)), outputs(problem.op(*device))
    onto = [torch.randn_like(t) for t in found]
    trains = [place for place in problem.trains if arguments[place] is not None]
    ours = torch.autograd.grad(found, [device[place] for place in trains], onto)
    theirs = torch.autograd.grad(
        expected, [host[place] for place in trains], [t.cpu().double() for t in onto]
    )
    for one, other in zip(ours, theirs, strict=True):
        error = (one.cpu().double() - other).norm()
        # Gated gradients pass through products that were rounded to x's dtype.
        assert float(error) <= 2 * CLOSE[dtype] * float(other.norm())


@EACH
def test_strides_and_empty_inputs(problem: Problem) -> None:
    x, *weights = on_device(problem.arguments(Sizes(), torch.bfloat16))
    spread = torch.randn(*x.shape[:-1], 2 * x.shape[-1], device="cuda").bfloat16()[..., ::2]
    for mine, theirs in zip(
        outputs(problem.op(spread, *weights)),
        outputs(problem.op(spread.contiguous(), *weights)),
        strict=True,
    ):
        assert torch.equal(mine, theirs)
    for out in outputs(problem.op(x[:, :0] if problem.dims == 3 else x[:0], *weights)):
        assert out.numel() == 0


@EACH
def test_the_same_bits_again(problem: Problem) -> None:
    """Nothing is added by atomics, so this holds without asking for determinism."""
    arguments = on_device(problem.trainable(SIZES[4], torch.bfloat16))
    leaves = [arguments[place] for place in problem.trains]
    runs = []
    for _ in range(3):
        found = outputs(problem.op(*arguments))
        runs.append([*found, *torch.autograd.grad([t.sum() for t in found], leaves)])
    for again in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(runs[0], again, strict=True))


@EACH
def test_compiled_and_in_a_cuda_graph(problem: Problem) -> None:
    arguments = on_device(problem.arguments(SIZES[0], torch.bfloat16))
    compiled: Any = torch.compile(problem.op, fullgraph=True, mode="reduce-overhead")
    expected = outputs(problem.op(*arguments))
    for _ in range(4):  # captured on the way
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        for mine, theirs in zip(outputs(compiled(*arguments)), expected, strict=True):
            assert torch.equal(mine, theirs)


# -- every shipped config --------------------------------------------------------------------------


def _weight(outputs: int, inputs: int, rows: int, run: int) -> RunSparse:
    sizes = Sizes(1, inputs, outputs, rows, run, density=0.3)
    packed = sparse(sizes, torch.bfloat16)
    return RunSparse(packed.values.cuda(), packed.index.cuda(), rows, run, inputs)


def _near(found: Tensor, expected: Tensor) -> None:
    error = (found.double() - expected).norm()
    assert float(error) <= CLOSE[found.dtype] * float(expected.norm()), error / expected.norm()


def _shipped(name: str) -> list[Config]:
    if not torch.cuda.is_available():
        return []
    from esper_kernels.gpu import configs

    major, minor = torch.cuda.get_device_capability()
    found: tuple[Config, ...] = getattr(configs, name)
    return [config for config in found if config.capability <= 10 * major + minor]


@pytest.mark.parametrize("config", _shipped("LINEAR_16"), ids=str)
def test_configs_of_linear(config: Config) -> None:
    from esper_kernels.attention_projections import triton as projections
    from esper_kernels.vnm_linear import triton as vnm

    weight = _weight(520, 1000, 128, 16)
    x = torch.randn(config.block_m + 3, 1000, device="cuda").bfloat16()
    found = vnm.forward(x, weight.values, weight.index, None, 128, 16, config)
    _near(found, x.double() @ weight.unpack().double().T)
    if config.split == 1:
        matrix = dense(6 * 80, 1000).bfloat16().cuda()
        q, k, v = projections.forward(x[None], matrix, None, 2, 2, 80, config)
        rows = torch.cat([t[0].transpose(0, 1).flatten(1) for t in (q, k, v)], 1)
        _near(rows, x.double() @ matrix.double().T)


@pytest.mark.parametrize("config", _shipped("LINEAR_8"), ids=str)
def test_configs_of_int8(config: Config) -> None:
    from esper_kernels.int8_linear import triton as int8

    values, scale = (t.cuda() for t in quantize(dense(520, 1000)))
    x = torch.randn(config.block_m + 3, 1000, device="cuda").bfloat16()
    found = int8.forward(x, values, scale, None, config)
    _near(found, x.double() @ (values * scale[:, None].double()).T)


@pytest.mark.parametrize("config", _shipped("GATED_16"), ids=str)
def test_configs_of_gated(config: Config) -> None:
    from esper_kernels.gated_linear import triton as gated

    gate, up = (dense(520, 1000).bfloat16().cuda() for _ in range(2))
    x = torch.randn(config.block_m + 3, 1000, device="cuda").bfloat16()
    found = gated.forward(x, gate, up, None, None, None, None, "silu", None, None, config)
    left, right = (x.double() @ w.double().T for w in (gate, up))
    _near(found, torch.nn.functional.silu(left) * right)


@pytest.mark.parametrize("config", _shipped("TRANSPOSED_16"), ids=str)
def test_configs_of_the_gradient_of_x(config: Config) -> None:
    from esper_kernels.vnm_linear import triton as vnm

    weight = _weight(520, 1000, 128, 16)
    grad = torch.randn(config.block_m + 3, 520, device="cuda").bfloat16()
    found = vnm.backward_x(grad, weight.values, weight.index, 128, 16, 1000, config)
    _near(found, grad.double() @ weight.unpack().double())


@pytest.mark.parametrize("config", _shipped("GRADIENT_16"), ids=str)
def test_configs_of_the_gradient_of_values(config: Config) -> None:
    from esper_kernels.vnm_linear import reference
    from esper_kernels.vnm_linear import triton as vnm

    weight = _weight(520, 1000, 128, 16)
    grad = torch.randn(200, 520, device="cuda").bfloat16()
    x = torch.randn(200, 1000, device="cuda").bfloat16()
    found = vnm.backward_values(grad, x, weight.index, 128, 16, config)
    _near(found, reference.backward_values(grad.double(), x.double(), weight.index, 128, 16))


@pytest.mark.parametrize("config", _shipped("LOW_RANK_16"), ids=str)
def test_configs_of_low_rank(config: Config) -> None:
    """Many launches in a row, and on several streams at a time, all wait at their barriers."""
    from esper_kernels.low_rank_linear import triton as low_rank

    down, up = dense(96, 1000).bfloat16().cuda(), dense(520, 96).bfloat16().cuda()
    x = torch.randn(config.block_m + 3, 1000, device="cuda").bfloat16()
    first = low_rank.forward(x, down, up, None, config)
    _near(first, (x.double() @ down.double().T) @ up.double().T)
    streams: list[Any] = [torch.cuda.Stream() for _ in range(3)]  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    results = []
    for _ in range(50):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(low_rank.forward(x, down, up, None, config))
    torch.cuda.synchronize()
    assert all(torch.equal(first, result) for result in results)


# -- 2:4 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("config", _shipped("SPARSE_24"), ids=str)
def test_configs_of_sparse24(config: Config, dtype: torch.dtype) -> None:
    """What mma.sp gives: here it meets a device."""
    from esper_kernels.sparse24_linear import triton as sparse24

    for tokens, outputs, inputs in ((config.block_m, 256, 512), (config.block_m + 3, 77, 501)):
        weight = two_of_four(outputs, inputs, dtype).cuda()
        packed, bias = Sparse24.pack(weight), torch.randn(outputs, device="cuda").to(dtype)
        assert torch.equal(packed.unpack() + 0.0, weight + 0.0)
        x = torch.randn(tokens, inputs, device="cuda").to(dtype)
        found = sparse24.decode(x, packed.values, packed.metadata, bias, outputs, config)
        _near(found, x.double() @ weight.double().T + bias.double())


@pytest.mark.parametrize("tokens", [1, 5, 64, 65, 1000])
@pytest.mark.parametrize("sizes", [(512, 768), (77, 501)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sparse24(tokens: int, sizes: tuple[int, int], dtype: torch.dtype) -> None:
    """Decode by mma.sp; many tokens by cuSPARSELt where it takes the sizes; gradients."""
    outputs, inputs = sizes
    weight = two_of_four(outputs, inputs, dtype).cuda()
    packed = Sparse24.pack(weight)
    values = packed.values.clone().requires_grad_()
    x = torch.randn(2, tokens, inputs, device="cuda").to(dtype)[1:].requires_grad_()
    bias = torch.randn(outputs, device="cuda").to(dtype)
    found = ops.sparse24_linear(x, values, packed.metadata, bias, inputs, outputs)
    _near(found, x.double() @ weight.double().T + bias.double())
    onto = torch.randn_like(found)
    dx, dvalues = torch.autograd.grad(found, [x, values], onto)
    _near(dx, onto.double() @ weight.double())
    full = onto[0].double().T @ x[0].double()
    _near(dvalues, gather(full, packed.metadata))


def test_a_change_of_the_weight_reaches_the_library() -> None:
    """cuSPARSELt's own copy of a weight follows what is written into the packed one."""
    weight = two_of_four(256, 256, torch.float16).cuda()
    packed, x = Sparse24.pack(weight), torch.randn(128, 256, device="cuda").half()
    arguments = (packed.values, packed.metadata, None, 256, 256)
    before = ops.sparse24_linear(x, *arguments)
    packed.values.mul_(2)
    assert torch.equal(ops.sparse24_linear(x, *arguments), 2 * before)


def test_a_measured_config_is_kept_and_taken() -> None:
    from esper_kernels.autotune import tune
    from esper_kernels.gpu import configs
    from esper_kernels.vnm_linear import triton as vnm

    weight = _weight(256, 512, 128, 16)
    x = torch.randn(4, 512, device="cuda").bfloat16()
    problem = vnm.problem(x, weight.values, weight.index, 128, 16)

    def run(config: Config) -> Tensor:
        return vnm.forward(x, weight.values, weight.index, None, 128, 16, config)

    best = tune(problem, configs.LINEAR_16, x.device, run)
    assert choose(problem, configs.LINEAR_16, x.device) == best
