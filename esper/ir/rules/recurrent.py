"""Recurrent layers (PyTorch docs, `nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells).

Gates lie one after the other along the first dim of each weight, so that dim is gates x hidden.
All layers and directions share the sizes of one initial state, hence one axis of hidden units
(and one of projected ones): unit 7 goes in every layer. Inside the op a hidden unit is consumed
by the recurrent weight and by the next layer's; masking the column there masks the unit.
"""

from __future__ import annotations

from typing import Any

import torch

from esper.ir.axes import Dims, Rule, Rules
from esper.ir.unify import Dim

aten = torch.ops.aten
GATES = "gates of a recurrent cell"


def _layer(gates: int, states: int) -> Rule:
    """x (T, N, I) or (N, T, I), states (layers x directions, N, H), weights -> y, states."""

    def rule(r: Rules) -> list[Dims]:
        x, weights, biases = r.of(r.arg(0)), list(r.arg(2)), r.arg(3)
        layers, both, batch_first = r.arg(4), r.arg(7), r.arg(8)
        state = [r.of(s) for s in (r.arg(1) if states > 1 else [r.arg(1)])]
        directions = 2 if both else 1
        each = len(weights) // (layers * directions)
        projected = each - 2 - 2 * bool(biases) == 1
        hidden = r.fresh(r.shape(weights[0])[0] // gates)
        r.role(hidden, "hidden")
        output = hidden
        if projected:
            # PyTorch knows by unequal state sizes that there are projections at all.
            r.freeze(hidden, "projections must stay narrower than it")
            output = r.fresh(r.shape(weights[1])[1])
            r.role(output, "hidden")
        for dims, last in zip(state, (output, hidden), strict=False):
            r.unify(dims[-1], last)
            r.freeze(dims[0], "layers of a recurrent net")
            r.unify(dims[1], x[0 if batch_first else 1])
        taken = x[-1]
        r.use((0,), 2, taken)
        for layer in range(layers):
            for direction in range(directions):
                at = (layer * directions + direction) * each
                block = weights[at : at + each]
                _cell_weights(r, block[:2], block[2:4] if biases else (), gates, hidden)
                r.unify(r.of(block[0])[1], taken)
                if layer:
                    r.use((2, at), 1, taken)
                r.unify(r.of(block[1])[1], output)
                r.use((2, at + 1), 1, output)
                if projected:
                    weight = r.of(block[-1])
                    r.unify(weight[0], output)
                    r.unify(weight[1], hidden)
                    r.use((2, at + each - 1), 1, hidden)
            taken = r.total([output] * directions)
        r.freeze(x[1 if batch_first else 0], "steps of a recurrent net")
        return [[*x[:2], taken], *state]

    return rule


def _cell_weights(r: Rules, weights: Any, biases: Any, gates: int, hidden: Dim) -> None:
    for tensor in [*weights, *biases]:
        first = r.of(tensor)[0]
        if gates == 1:
            r.unify(first, hidden)
        else:
            r.unify(first, r.product([r.fresh(gates, GATES), hidden]))


def _cell(gates: int, states: int) -> Rule:
    """x (N, I), states (N, H), weights (gates x H, I) and (gates x H, H) -> states."""

    def rule(r: Rules) -> Any:
        x = r.of(r.arg(0))
        state = [r.of(s) for s in (r.arg(1) if states > 1 else [r.arg(1)])]
        hidden = r.fresh(r.shape(r.arg(3))[1])
        r.role(hidden, "hidden")
        biases = [r.arg(i) for i in (4, 5) if r.arg(i) is not None]
        _cell_weights(r, (r.arg(2), r.arg(3)), biases, gates, hidden)
        r.unify(r.of(r.arg(2))[1], x[-1])
        r.use((0,), len(x) - 1, x[-1])
        r.unify(r.of(r.arg(3))[1], hidden)
        r.use((3,), 1, hidden)
        for dims in state:
            r.unify(dims[-1], hidden)
            for mine, theirs in zip(dims[:-1], x[:-1], strict=True):
                r.unify(mine, theirs)
        return state if states > 1 else state[0]

    return rule


TABLE: dict[Any, Rule] = {
    aten.lstm.input: _layer(4, 2),
    aten.gru.input: _layer(3, 1),
    aten.rnn_tanh.input: _layer(1, 1),
    aten.rnn_relu.input: _layer(1, 1),
    aten.lstm_cell.default: _cell(4, 2),
    aten.gru_cell.default: _cell(3, 1),
    aten.rnn_tanh_cell.default: _cell(1, 1),
    aten.rnn_relu_cell.default: _cell(1, 1),
}
