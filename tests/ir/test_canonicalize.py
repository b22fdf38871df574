"""Forms of traced graphs: in-place ops become functional only where that changes nothing."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

import esper
from tests import oracle, zoo

HEADS, SIZE = 4, 5


class Heads(nn.Module):
    """Attention written out; subclasses say how scores are made from queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(7, HEADS * SIZE)
        self.k = nn.Linear(7, HEADS * SIZE)
        self.v = nn.Linear(7, HEADS * SIZE)
        self.out = nn.Linear(HEADS * SIZE, 3)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], HEADS, SIZE).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(part(x)) for part in (self.q, self.k, self.v))
        y = self.attend(q, k, v)
        merged = y.transpose(1, 2).reshape(x.shape[0], x.shape[1], HEADS * SIZE)
        result: Tensor = self.out(merged)
        return result

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError


class InPlace(Heads):
    """Queries are scaled in place through a view, scores are masked in place."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q /= SIZE**0.5
        scores = q @ k.transpose(-1, -2)
        mask = torch.ones(1, 1, scores.shape[-1]).tril().eq(0).expand_as(scores)
        scores.masked_fill_(mask, -1e9)
        return scores.softmax(-1) @ v


class Merged(Heads):
    """Heads are merged with the batch by sizes computed from it, and come apart again."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, length, size = q.shape
        q, k, v = (x.reshape(batch * heads, length, size) for x in (q, k, v))
        y = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        return y.view(y.shape[0] // heads, heads, length, size)


@pytest.mark.parametrize("kind", [InPlace, Merged])
def test_heads_are_reached_and_cut_exactly(kind: type[Heads]) -> None:
    torch.manual_seed(0)
    module, x = kind().double().eval(), torch.randn(3, 6, 7, dtype=torch.float64)
    model = esper.trace(module, (x,))
    assert torch.equal(model(x), module(x))
    assert not any(str(node.target).endswith("_.Tensor") for node in model.graph.nodes)
    axes = zoo.cuttable(model)
    assert Counter(axis.kind for axis in axes.values()) == {"heads": 1, "head-size": 2}
    oracle.assert_exact_cut(model, zoo.joint_cut(list(axes.values())), (x,), {})
    assert model(torch.randn(5, 6, 7, dtype=torch.float64)).shape == (5, 6, 3)


class Shared(nn.Module):
    """A value is changed in place through a view, and then read by another name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(7, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        part = hidden.view(-1, 3, 4)
        part += 1.0
        y: Tensor = self.second(hidden)
        return y


def test_memory_read_by_another_name_stays_in_place() -> None:
    torch.manual_seed(0)
    module, x = Shared().double().eval(), torch.randn(3, 7, dtype=torch.float64)
    model = esper.trace(module, (x,))
    assert torch.equal(model(x), module(x))
    assert [n.target for n in model.graph.nodes if "add_" in str(n.target)] == [
        torch.ops.aten.add_.Tensor
    ]
    axes = zoo.cuttable(model)
    oracle.assert_exact_cut(model, zoo.joint_cut(list(axes.values())), (x,), {})


class Steps(nn.Module):
    """A recurrence that writes each step into a prepared result, the last one in part."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.into(x)
        result, state = torch.zeros_like(hidden), torch.zeros_like(hidden[:, 0])
        for step in range(4):
            state = 0.5 * state + hidden[:, step].tanh()
            result[:, step] = state
        result[:, 3:] += 1.0
        result[:, 1:][:, 2] = state
        y: Tensor = self.out(result)
        return y


def test_steps_written_into_a_result_are_reached_and_cut_exactly() -> None:
    torch.manual_seed(0)
    module, x = Steps().double().eval(), torch.randn(3, 5, 7, dtype=torch.float64)
    model = esper.trace(module, (x,))
    assert torch.equal(model(x), module(x))
    targets = {str(node.target) for node in model.graph.nodes}
    assert {"aten.select_scatter.default", "aten.slice_scatter.default"} <= targets
    assert not any("copy_" in target or "add_" in target for target in targets)


class Late(nn.Module):
    """A part that is written to was taken out earlier, and is read afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.into(x)
        early = hidden[:, :2]
        hidden[:, 0] = hidden[:, 1]
        y: Tensor = self.out(early)
        return y


def test_a_part_taken_out_before_it_is_written_stays_in_place() -> None:
    torch.manual_seed(0)
    module, x = Late().double().eval(), torch.randn(3, 5, 7, dtype=torch.float64)
    model = esper.trace(module, (x,))
    assert torch.equal(model(x), module(x))
    assert any(node.target is torch.ops.aten.copy_.default for node in model.graph.nodes)
    axes = zoo.cuttable(model)
    oracle.assert_exact_cut(model, zoo.joint_cut(list(axes.values())), (x,), {})
