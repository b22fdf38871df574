"""Shapes of recurrent layers without running them.

With fake tensors PyTorch decomposes these ops into one cell a step, so that every propagation
over a long sequence would take seconds. Sizes: PyTorch docs of `nn.LSTM`, `nn.GRU`, `nn.RNN`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _layers(gates: int, states: int) -> Callable[..., tuple[Tensor, ...]]:
    def shapes(
        x: Tensor,
        state: Any,
        weights: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, ...]:
        """Raises ValueError where weights do not fit each other, the input or the state."""
        given: list[Tensor] = list(state) if states > 1 else [state]
        output, hidden = given[0].shape[-1], given[-1].shape[-1]
        directions = 2 if bidirectional else 1
        taken = x.shape[-1]
        wanted: list[tuple[Any, ...]] = []
        for _ in range(num_layers):
            for _ in range(directions):
                wanted += [(gates * hidden, taken), (gates * hidden, output)]
                wanted += [(gates * hidden,)] * 2 if has_biases else []
                wanted += [(output, hidden)] if output != hidden else []
            taken = output * directions
        found = [tuple(weight.shape) for weight in weights]
        if found != wanted:
            raise ValueError(f"weights of a recurrent layer are {found}, not {wanted}")
        for part in given:
            if part.shape[0] != num_layers * directions or part.dtype != x.dtype:
                raise ValueError("the initial state of a recurrent layer does not fit it")
        batch, steps = (x.shape[0], x.shape[1]) if batch_first else (x.shape[1], x.shape[0])
        y = x.new_empty((steps, batch, taken))
        made = [x.new_empty(part.shape) for part in given]
        return (y.transpose(0, 1) if batch_first else y, *made)

    return shapes


SHAPES: dict[Any, Callable[..., Any]] = {
    aten.lstm.input: _layers(4, 2),
    aten.gru.input: _layers(3, 1),
    aten.rnn_tanh.input: _layers(1, 1),
    aten.rnn_relu.input: _layers(1, 1),
}
