"""Shapes of recurrent layers are those that PyTorch computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper.ir.recurrent_shapes import SHAPES

aten = torch.ops.aten
LAYERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "lstm": (nn.LSTM, aten.lstm.input, {}),
    "lstm, two ways": (nn.LSTM, aten.lstm.input, {"bidirectional": True, "num_layers": 2}),
    "lstm, projected": (nn.LSTM, aten.lstm.input, {"proj_size": 2, "num_layers": 2}),
    "gru": (nn.GRU, aten.gru.input, {"batch_first": True, "bias": False}),
    "rnn": (nn.RNN, aten.rnn_tanh.input, {"bidirectional": True}),
    "rnn, relu": (nn.RNN, aten.rnn_relu.input, {"nonlinearity": "relu"}),
}


def arguments(name: str) -> tuple[Any, tuple[Any, ...]]:
    kind, op, options = LAYERS[name]
    layer = kind(4, 5, **options)
    directions = layer.num_layers * (2 if layer.bidirectional else 1)
    batch = 3 if layer.batch_first else 6
    state: Any = torch.randn(directions, batch, layer.proj_size or 5)
    if kind is nn.LSTM:
        state = [state, torch.randn(directions, batch, 5)]
    weights = list(layer._flat_weights)
    counts = (layer.bias, layer.num_layers, 0.0, False, layer.bidirectional, layer.batch_first)
    return op, (torch.randn(3, 6, 4), state, weights, *counts)


@pytest.mark.parametrize("name", LAYERS)
def test_shapes_are_those_of_the_op(name: str) -> None:
    op, args = arguments(name)
    with torch.no_grad():
        expected = op(*args)
    for mine, theirs in zip(SHAPES[op](*args), expected, strict=True):
        assert mine.shape == theirs.shape
        assert mine.stride() == theirs.stride()
        assert mine.dtype == theirs.dtype


@pytest.mark.parametrize("name", LAYERS)
def test_weights_that_do_not_fit_are_an_error(name: str) -> None:
    op, (x, state, weights, *rest) = arguments(name)
    for position, weight in enumerate(weights):
        shorter: list[Tensor] = [*weights]
        shorter[position] = weight[:-1]
        with pytest.raises(ValueError, match="weights of a recurrent layer"):
            SHAPES[op](x, state, shorter, *rest)
    wrong = [s[..., :-1] for s in state] if isinstance(state, list) else state[..., :-1]
    with pytest.raises(ValueError, match="weights of a recurrent layer"):
        SHAPES[op](x, wrong, weights, *rest)


def test_a_state_for_other_layers_is_an_error() -> None:
    op, (x, state, weights, *rest) = arguments("gru")
    with pytest.raises(ValueError, match="initial state"):
        SHAPES[op](x, torch.cat([state, state]), weights, *rest)
