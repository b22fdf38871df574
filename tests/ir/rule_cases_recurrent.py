"""Cases of `tests.ir.test_rules`: recurrent layers and cells."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.ir.rule_case import Case, linears, rows, tokens


def _head(m: Any, x: Tensor) -> Any:
    return m.o(m.r(x)[0])


CASES: dict[str, Case] = {
    "lstm": Case(
        _head,
        lambda: {"r": nn.LSTM(4, 6, batch_first=True), "o": nn.Linear(6, 2)},
        tokens(),
        {"r/hidden": 6},
    ),
    "lstm, stacked and bidirectional": Case(
        _head,
        lambda: {
            "r": nn.LSTM(4, 3, 2, batch_first=True, bidirectional=True),
            "o": nn.Linear(6, 2),
        },
        tokens(),
        {"r/hidden": 3},
    ),
    "lstm with projections": Case(
        _head,
        lambda: {
            "r": nn.LSTM(4, 6, 2, proj_size=3, bias=False),
            "o": nn.Linear(3, 2),
        },
        lambda: torch.randn(5, 3, 4),
        {"r/hidden.2": 3},
        {"r/hidden": "projections must stay narrower than it"},
    ),
    "gru": Case(
        lambda m, x: m.o(m.r(m.l(x))[0] + m.r(m.l(x))[1].mean(0, keepdim=True).transpose(0, 1)),
        lambda: {
            "l": nn.Linear(4, 5),
            "r": nn.GRU(5, 6, batch_first=True),
            "o": nn.Linear(6, 2),
        },
        tokens(),
        {"l/neurons": 5, "r/hidden": 6},
    ),
    "rnn with an initial state": Case(
        lambda m, x: m.o(m.r(x, m.l(x[:, 0])[None])[0]),
        lambda: {
            "l": nn.Linear(4, 6),
            "r": nn.RNN(4, 6, batch_first=True, nonlinearity="relu"),
            "o": nn.Linear(6, 2),
        },
        tokens(),
        {"l/hidden": 6},
    ),
    "cells": Case(
        lambda m, x: m.l1(m.r(m.c(m.g(x), m.l0(x)))[1]),
        linears(
            4,
            6,
            2,
            g=lambda: nn.GRUCell(4, 6),
            c=lambda: nn.RNNCell(6, 6),
            r=lambda: nn.LSTMCell(6, 6),
        ),
        rows(),
        {"l0/hidden": 6, "l1/hidden": 6, "g/hidden": 6},
    ),
}
