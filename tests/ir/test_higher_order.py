"""Regions of their own in exported graphs: inlined where that can be, named where it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.map import map as map_over
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop

import esper
from esper.ir import higher_order
from esper.ir.model import Model
from esper.ir.verifier import verify
from tests import oracle, zoo

# Outside of tracing, PyTorch compiles regions and warns of what it does itself.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute", "ignore::DeprecationWarning")

Inside = Callable[[nn.Linear, Tensor], Any]  # a layer, and what comes in


class Around(nn.Module):
    """Two linear layers around some code that keeps the shape (batch, 5, 8)."""

    def __init__(self, inside: Inside) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.o(self.inside(self.b, self.a(x)).to(x.dtype))
        return out


def traced(
    inside: Inside, length: int = 5, dynamic: bool = False
) -> tuple[Model, nn.Module, Tensor]:
    torch.manual_seed(0)
    module, x = Around(inside).eval(), torch.randn(3, length, 6)
    model = esper.trace(module, (x,), dynamic={"x": (1,)} if dynamic else "batch")
    verify(model)
    return model, module, x


def ops(model: Model) -> list[str]:
    return [str(n.target) for n in model.graph.nodes if n.op == "call_function"]


def higher(model: Model) -> list[str]:
    return [
        str(node.target)
        for node in model.graph.nodes
        if isinstance(node.target, torch._ops.HigherOrderOperator)
    ]


def running(layer: nn.Linear, x: Tensor) -> Any:
    def step(state: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.tanh(layer(state) + item)
        return state, state * 2

    rows = scan(step, torch.zeros_like(x[:, 0]), x.transpose(0, 1))[1]
    return rows.transpose(0, 1)


def each(layer: nn.Linear, x: Tensor) -> Any:
    over: Any = map_over  # its types are those of one operand
    return over(lambda item, bias: item.relu() + bias, x.transpose(0, 1), layer.bias)


def half(layer: nn.Linear, x: Tensor) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        y = y * y.prod(-1, keepdim=True)
        return torch.cat([y, x], 1)[:, :5]


def unhalf(layer: nn.Linear, x: Tensor) -> Any:
    with torch.autocast("cpu", enabled=False):
        return layer(x)


def silent(layer: nn.Linear, x: Tensor) -> Any:
    with torch.no_grad():
        return layer(x)


def choice(layer: nn.Linear, x: Tensor) -> Any:
    return torch.cond(x.sum() > 0, lambda v: v.relu(), lambda v: v * 2, (x,))


def choice_without_gradient(layer: nn.Linear, x: Tensor) -> Any:
    with torch.no_grad():
        return choice(layer, x)


def loop(layer: nn.Linear, x: Tensor) -> Any:
    start = torch.zeros((), dtype=torch.int64)
    return while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, torch.tanh(v)), (start, x))[1]  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("inside", [running, each, half, unhalf, silent])
def test_an_inlined_region_computes_the_same(inside: Inside) -> None:
    model, module, x = traced(inside)
    assert higher(model) == []
    assert not any(isinstance(m, torch.fx.GraphModule) for m in model.children())
    torch.testing.assert_close(model(x), module(x))


@pytest.mark.parametrize("inside", [running, each, unhalf, silent])
def test_axes_run_through_an_inlined_region(inside: Inside) -> None:
    model, _, x = traced(inside)
    model = oracle.as_float64(model)
    axes = zoo.cuttable(model)
    assert "axis:a/neurons" in axes
    removed = {name: zoo.some_units(axis) for name, axis in axes.items()}
    oracle.assert_exact_cut(model, removed, (x.double(),), {})


def test_gradients_stop_where_they_were_switched_off() -> None:
    model, module, x = traced(silent)
    for each_model in (model, module):
        each_model(x).sum().backward()
        grads = {name: p.grad for name, p in each_model.named_parameters()}
        assert grads["a.weight"] is None
        assert grads["o.weight"] is not None


def test_autocast_becomes_the_casts_that_it_makes() -> None:
    model, _, _ = traced(half)
    dtypes = {n.name: n.meta["val"].dtype for n in model.graph.nodes if n.op == "call_function"}
    assert dtypes["linear_1"] == torch.bfloat16  # on the list of ops in lower precision
    assert dtypes["prod"] == torch.float32  # on the list of ops in full precision
    assert dtypes["cat"] == torch.float32  # widened to its widest operand
    assert "aten.to.dtype" in ops(model)


def product(layer: nn.Linear, x: Tensor) -> Any:
    return layer(x) @ x.transpose(1, 2) @ x


def attention(layer: nn.Linear, x: Tensor) -> Any:
    return nn.functional.scaled_dot_product_attention(layer(x), x, x)


def normed(layer: nn.Linear, x: Tensor) -> Any:
    return nn.functional.layer_norm(layer(x), (8,), layer.bias)


def rms(layer: nn.Linear, x: Tensor) -> Any:
    return nn.functional.rms_norm(layer(x), (8,))


@pytest.mark.parametrize(
    ("op", "kept"),
    [
        (product, []),
        (normed, []),
        (rms, []),
        (attention, ["wrap_with_autocast"]),  # what it casts inside is no operand
    ],
)
def test_autocast_over_operands_of_mixed_dtypes(op: Inside, kept: list[str]) -> None:
    def inside(layer: nn.Linear, x: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return op(layer, x)

    model, module, x = traced(inside)
    assert higher(model) == kept
    torch.testing.assert_close(model(x), module(x), rtol=0, atol=0)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.lstm = nn.Linear(6, 8), nn.LSTM(8, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out: Tensor = self.lstm(self.enter(x))[0]
        return out


def test_a_recurrent_layer_under_autocast_stays_there() -> None:
    torch.manual_seed(0)
    module, x = Recurrent().eval(), torch.randn(3, 5, 6)
    model = esper.trace(module, (x,))
    verify(model)
    assert higher(model) == ["wrap_with_autocast"]
    torch.testing.assert_close(model(x), module(x), rtol=0, atol=0)


def _fail() -> None:
    raise RuntimeError("cannot be computed")


@pytest.mark.parametrize(("part", "instead"), [("_computes", lambda *_: False), ("_Seen", _fail)])
def test_a_region_that_casts_cannot_spell_out_stays(
    part: str, instead: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(higher_order, part, instead)
    model, module, x = traced(half)
    assert higher(model) == ["wrap_with_autocast"]
    torch.testing.assert_close(model(x), module(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("inside", "name"),
    [(choice, "cond"), (choice_without_gradient, "cond"), (loop, "while_loop")],
)
def test_what_depends_on_data_stays_and_is_named(inside: Inside, name: str) -> None:
    model, module, x = traced(inside)
    assert higher(model) == [name]
    torch.testing.assert_close(model(x), module(x))
    reason = model.anatomy.axes["axis:a/neurons"].frozen_reason
    assert reason is not None
    assert f"no axis rule for {name}" in reason


def test_a_loop_over_a_symbolic_length_stays() -> None:
    model, module, x = traced(running, dynamic=True)
    assert higher(model) == ["scan"]
    torch.testing.assert_close(model(x[:, :4]), module(x[:, :4]))


def test_a_long_loop_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(higher_order, "MOST_NODES", 20)
    assert higher(traced(running)[0]) == ["scan"]
