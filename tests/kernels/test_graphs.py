"""Operators in compiled and exported programs, and what fake tensors say of wrong arguments."""

from __future__ import annotations

import copy
import dataclasses
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from esper_kernels import ops
from esper_kernels.int8 import quantize
from esper_kernels.sparse24 import Sparse24
from tests.kernels.problems import PROBLEMS, Problem, Sizes, dense, sparse
from tests.kernels.weights import two_of_four


@pytest.fixture(autouse=True)
def compiled_anew() -> None:
    torch.compiler.reset()


# One gated layer stands for all: they differ in which operators they call.
CHOSEN = {
    name: problem
    for name, problem in PROBLEMS.items()
    if name.startswith("gated") <= (name == "gated_linear sparse")
}
EACH = pytest.mark.parametrize("problem", CHOSEN.values(), ids=CHOSEN)


@EACH
def test_opcheck(problem: Problem) -> None:
    arguments = problem.trainable(Sizes(inputs=26, rows=6), torch.float32)
    torch.library.opcheck(problem.op, tuple(arguments))


@EACH
def test_symbolic_sizes(problem: Problem) -> None:
    """A graph of one size is a graph of all."""

    def call(*arguments: Any) -> Any:
        return problem.op(*arguments)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)
    for samples in (3, 5):
        arguments = problem.arguments(Sizes(samples=samples), torch.float32)
        torch.testing.assert_close(compiled(*arguments), problem.op(*arguments))


class Network(nn.Module):
    """Every operator, one behind another."""

    def __init__(self) -> None:
        super().__init__()
        sizes = Sizes(inputs=16, outputs=16, rows=8, run=4)
        self.sparse = sparse(sizes, torch.float32)
        self.values = nn.Parameter(self.sparse.values)
        self.register_buffer("index", self.sparse.index)
        self.down, self.up = nn.Parameter(dense(4, 16)), nn.Parameter(dense(16, 4))
        self.heads = nn.Parameter(dense(32, 16))
        self.bias = nn.Parameter(torch.randn(16))
        integers, scale = quantize(dense(16, 16))
        self.register_buffer("integers", integers)
        self.register_buffer("scale", scale)
        packed, packed_scale = quantize(self.sparse.values)
        self.register_buffer("packed", packed)
        self.register_buffer("packed_scale", packed_scale)
        halves = Sparse24.pack(two_of_four(16, 16, torch.float16))
        self.register_buffer("halves", halves.values)
        self.register_buffer("metadata", halves.metadata)

    def forward(self, x: Tensor) -> Tensor:
        pattern = self.sparse.rows, self.sparse.run
        x = ops.vnm_linear(x, self.values, self.index, self.bias, *pattern)
        x = ops.low_rank_linear(torch.relu(x), self.down, self.up, self.bias)
        x = ops.int8_linear(x, self.integers, self.scale, self.bias)
        x = ops.vnm_int8_linear(x, self.packed, self.packed_scale, self.index, None, *pattern)
        x = x + ops.sparse24_linear(x.half(), self.halves, self.metadata, None, 16, 16).float()
        x = ops.vnm_dynamic_linear(x, self.packed, self.packed_scale, self.index, None, *pattern)
        x = x + ops.gated_linear(
            x, self.values, self.values, None, None, self.index, self.index, "silu", *pattern
        )
        q, k, v = ops.attention_projections(x, self.heads, None, 4, 2, 4)
        return nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def test_compiled_forward_and_backward() -> None:
    network = Network()
    other = copy.deepcopy(network)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 6, 16)
    for module in (network, compiled):
        module(x).square().sum().backward()
    torch.testing.assert_close(compiled(x), network(x), rtol=1e-4, atol=1e-5)
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        assert one.grad is not None
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
def test_compiled_by_inductor() -> None:
    problem = PROBLEMS["vnm_linear"]
    arguments = problem.trainable(Sizes(bias=False), torch.float32)

    def call(*arguments: Any) -> Any:
        return problem.op(*arguments)

    compiled = torch.compile(call, fullgraph=True)
    found, expected = compiled(*arguments), problem.op(*arguments)
    assert torch.equal(found, expected)
    leaves, direction = arguments[:2], torch.randn_like(found)
    ours = torch.autograd.grad(found, leaves, direction)
    theirs = torch.autograd.grad(expected, leaves, direction)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


# torch 2.11 warns of its own buffer when it loads a program.
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
def test_exported_saved_and_loaded() -> None:
    network, x = Network().eval(), torch.randn(2, 6, 16)
    program = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    names = {str(node.target) for node in loaded.graph.nodes if node.op == "call_function"}
    assert {f"esper.{name}.default" for name in ops.__all__} <= names
    for batch in (2, 5):
        x = torch.randn(batch, 6, 16)
        assert torch.equal(loaded.module()(x), network(x))
    assert loaded.state_dict.keys() == network.state_dict().keys()


def test_state_dict_and_copies_hold_tensors_alone() -> None:
    network, x = Network().eval().requires_grad_(False), torch.randn(2, 12, 16)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    expected = network(x)  # keeps a layout of `values`
    assert network.state_dict().keys() == before.keys()
    again = copy.deepcopy(network)
    assert torch.equal(again(x), expected)
    again.values.mul_(2)
    assert not torch.equal(again(x), expected)
    assert torch.equal(network(x), expected)
    other = Network().eval().requires_grad_(False)
    other(x)
    other.load_state_dict(before)
    assert torch.equal(other(x), expected)


# -- wrong arguments -------------------------------------------------------------------------------

Change = Callable[[list[Any]], None]


def put(position: int, change: Callable[[Any], Any]) -> Change:
    def apply(arguments: list[Any]) -> None:
        arguments[position] = change(arguments[position])

    return apply


WRONG: list[tuple[str, Change, str]] = [
    ("vnm_linear", put(0, lambda x: x.int()), "x must be"),
    ("vnm_linear", put(0, lambda x: x[:, :5]), "fewer than"),
    ("vnm_linear", put(1, lambda v: v.half()), "values must be torch.float32"),
    ("vnm_linear", put(1, lambda v: v[:, 1:]), r"values must be \(outputs, kept \* 4\)"),
    ("vnm_linear", put(2, lambda i: i.long()), "index must be torch.int32"),
    ("vnm_linear", put(2, lambda i: i[1:]), "index must be of shape"),
    ("vnm_linear", put(3, lambda b: b[1:]), "bias must be of shape"),
    ("vnm_linear", put(3, lambda b: b.double()), "bias must be torch.float32"),
    ("vnm_linear", put(4, lambda _: 0), "groups of 0"),
    ("int8_linear", put(0, lambda x: x[:, 1:]), "values must be a matrix with 23 columns"),
    ("int8_linear", put(1, lambda v: v.float()), "values must be torch.int8"),
    ("int8_linear", put(2, lambda s: s.double()), "scale must be torch.float32"),
    ("int8_linear", put(2, lambda s: s[1:]), "scale must be of shape"),
    ("vnm_int8_linear", put(1, lambda v: v.float()), "values must be torch.int8"),
    ("vnm_int8_linear", put(3, lambda i: i[:, 1:]), "index must be of shape"),
    ("low_rank_linear", put(1, lambda d: d[:, 1:]), "down must be a matrix with 24 columns"),
    ("low_rank_linear", put(2, lambda u: u[:, 1:]), "up must be a matrix with 8 columns"),
    ("low_rank_linear", put(2, lambda u: u.half()), "up must be torch.float32"),
    ("attention_projections", put(0, lambda x: x[0]), r"x must be \(batch, sequence, inputs\)"),
    ("attention_projections", put(1, lambda w: w[1:]), "weight must be of shape"),
    ("attention_projections", put(4, lambda _: 0), "kv_heads"),
    ("gated_linear dense", put(7, lambda _: "tanh"), "activation must be one of silu"),
    ("gated_linear dense", put(2, lambda u: u[1:]), "up must be of shape"),
    ("gated_linear int8", put(4, lambda _: None), "the same format"),
    ("gated_linear sparse", put(8, lambda _: None), "need rows and run"),
    ("gated_linear sparse", put(6, lambda i: i[1:]), "index must be of shape"),
]  # fmt: skip


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize(("name", "change", "message"), WRONG, ids=[m for *_, m in WRONG])
def test_wrong_arguments(name: str, change: Change, message: str, fake: bool) -> None:
    problem = PROBLEMS[name]
    arguments = problem.arguments(dataclasses.replace(Sizes(), density=1.0), torch.float32)
    change(arguments)
    mode = FakeTensorMode()
    if fake:
        arguments = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments]
    with pytest.raises(ValueError, match=message) as raised:
        problem.op(*arguments)
    text = str(raised.value)
    assert text.startswith(f"esper::{name.split()[0]}: ")
    assert "\n" not in text


@pytest.mark.parametrize("name", ["int8_linear", "vnm_int8_linear", "gated_linear int8"])
def test_scales_do_not_train(name: str) -> None:
    arguments = PROBLEMS[name].arguments(Sizes(), torch.float32)
    position = 3 if "gated" in name else 2
    arguments[position].requires_grad_()
    with pytest.raises(ValueError, match="must not require grad"):
        PROBLEMS[name].op(*arguments)
