"""State transforms: what each operation does to a tensor, and deterministic text."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.state import (
    Create,
    Drop,
    Join,
    Op,
    Part,
    Rearrange,
    Replace,
    Select,
    StateTransform,
    digest,
)


def test_select_keeps_positions_in_order_and_dtype() -> None:
    tensor = torch.arange(12, dtype=torch.float16).reshape(3, 4)
    assert torch.equal(Select(1, (0, 3))(tensor), tensor[:, [0, 3]])
    assert torch.equal(Select(0, (2,))(tensor), tensor[2:])
    assert Select(1, (1,))(tensor).dtype == torch.float16


def test_select_moves_moments_as_it_moves_the_weight() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 3))
    optimizer = torch.optim.Adam([weight])
    weight.square().sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    op = Select(0, (0, 2))
    assert weight.grad is not None
    state = optimizer.state[weight]
    for shadow in (weight.grad, state["exp_avg"], state["exp_avg_sq"]):
        assert torch.equal(op(shadow), shadow[[0, 2]])


def test_replace_takes_the_value_whatever_was_there() -> None:
    value = torch.ones(2, dtype=torch.float64)
    assert torch.equal(Replace(value)(torch.zeros(5)), value)


TURN = Rearrange(torch.tensor([[0, 2, 4], [1, 3, 5]]), (1, 0))


def test_rearranging_moves_elements_and_what_shadows_them() -> None:
    weight = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(TURN(weight), weight.T)
    assert torch.equal(TURN.shadow(weight), weight.T)
    padded = Rearrange(torch.tensor([[5, -1], [-1, 0]]), (None, None))
    assert torch.equal(padded(weight), torch.tensor([[5.0, 0.0], [0.0, 0.0]]))
    assert padded(weight.to(torch.int8)).dtype == torch.int8
    assert torch.equal(padded(torch.full((3, 2), float("nan"))).isnan(), padded.source >= 0)
    assert Rearrange(torch.full((2, 0), -1), (0, None))(torch.zeros(0, 3)).shape == (2, 0)


@given(st.data())
def test_the_inverse_gives_back_what_was_taken(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    count = shape[0] * shape[1]
    taken = data.draw(st.lists(st.integers(0, count - 1), unique=True, max_size=count))
    holes = data.draw(st.integers(0, 3))
    source = torch.tensor(data.draw(st.permutations([*taken, *[-1] * holes])), dtype=torch.int64)
    op = Rearrange(source, (None,))
    weight = torch.randn(shape)
    kept = torch.zeros(count, dtype=torch.bool).index_fill_(0, torch.tensor(taken).long(), True)
    back = op.inverse(shape)
    assert torch.equal(back(op(weight)), weight.where(kept.reshape(shape), 0))
    assert torch.equal(back.inverse(tuple(source.shape))(back(op(weight))), op(weight))


def test_dims_go_back_where_they_came_from() -> None:
    packed = Rearrange(torch.tensor([[1, 4], [0, 5]]), (1, None))
    assert packed.inverse((3, 2)).dims == (None, 0)
    assert TURN.inverse((3, 2)).dims == (1, 0)
    with pytest.raises(ValueError, match="two places"):
        Rearrange(torch.tensor([0, 0]), (None,)).inverse((2,))


def test_lines_are_sorted_by_name_and_keep_the_order_of_operations() -> None:
    ops: dict[str, tuple[Op, ...]] = {
        "b.weight": (Select(0, (1,)), Select(1, (0, 2))),
        "a.bias": (Drop(),),
        "c.scale": (Create(torch.ones(2), trainable=True),),
    }
    lines = StateTransform(ops).lines()
    assert [line.partition(":")[0] for line in lines] == [
        "a.bias",
        "b.weight",
        "b.weight",
        "c.scale",
    ]
    assert lines[0] == "a.bias: drop"
    assert lines[1].startswith("b.weight: select dim=0 keep=1 ")
    assert lines[2].startswith("b.weight: select dim=1 keep=2 ")
    assert lines[3].startswith("c.scale: create parameter torch.float32(2,) ")
    assert StateTransform(dict(reversed(ops.items()))).lines() == lines
    assert StateTransform().lines() == []


DIFFERENT: list[Op] = [
    Select(0, (1, 2)),
    Select(0, (1, 3)),
    Select(1, (1, 2)),
    Replace(torch.zeros(2)),
    Replace(torch.tensor([0.0, -0.0])),
    Replace(torch.zeros(2, dtype=torch.float64)),
    Replace(torch.zeros(1, 2)),
    TURN,
    Rearrange(TURN.source, (None, 0)),
    Rearrange(TURN.source.flatten(), (None,)),
    Rearrange(TURN.source.flip(0), (1, 0)),
    Join(("a",)),
    Join(("a", "b")),
    Part("a", 0, 1),
    Part("a", 0, 2),
    Part("b", 0, 1),
    Create(torch.zeros(2), trainable=True),
    Create(torch.zeros(2), trainable=False),
    Drop(),
]


def test_text_tells_different_operations_apart() -> None:
    assert len({op.text() for op in DIFFERENT}) == len(DIFFERENT)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(1.5),
        torch.zeros(0, 3),
        torch.arange(6).reshape(2, 3),
        torch.tensor([True, False]),
        torch.randn(4).to(torch.bfloat16),
    ],
)
def test_digest_is_of_the_content(tensor: torch.Tensor) -> None:
    assert digest(tensor) == digest(tensor.clone())
    spread = tensor.new_empty([*tensor.shape, 2])[..., 0].copy_(tensor)
    assert digest(spread) == digest(tensor)
    if tensor.numel():
        other = tensor.clone()
        other.view(-1)[0] = ~other.view(-1)[0] if tensor.dtype == torch.bool else 7
        assert digest(other) != digest(tensor)


def test_digest_of_a_parameter_needs_no_gradient() -> None:
    assert digest(torch.nn.Parameter(torch.ones(2))) == digest(torch.ones(2))


def test_tensors_are_joined_and_parted() -> None:
    a, b, c = (torch.randn(n, 3) for n in (2, 1, 4))
    joined = Join(("b", "c")).of([a, b, c])
    assert torch.equal(joined, torch.cat([a, b, c]))
    part = Part("a", 2, 3)(joined)
    assert torch.equal(part, b)
    part.zero_()
    assert torch.equal(joined[2:3], b)  # memory of its own
