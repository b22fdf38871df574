"""Recurrent networks: stacked, bidirectional, projected, with states, cells, and loops."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the customary name

from tests.zoo.entry import Entry
from tests.zoo.patterns.make import ids, pattern, series, tokens


class Tagger(nn.Module):
    """Embedding, bidirectional stacked LSTM, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 4, num_layers=2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.lstm(self.embed(ids))[0])


class LastState(nn.Module):
    """The classifier reads the last hidden state of the upper layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 6, num_layers=2, batch_first=True)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, last = self.gru(x)
        return self.out(last[-1])


class Projected(nn.Module):
    """LSTM with projections, as in speech."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 6, num_layers=2, proj_size=4, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0][:, -1])


class Seq2Seq(nn.Module):
    """An encoder hands its states to a decoder, which attends to it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(8, 6, batch_first=True)
        self.decoder = nn.LSTM(4, 6, batch_first=True)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        memory, state = self.encoder(x)
        told, _ = self.decoder(y, state)
        scores = torch.softmax(told @ memory.transpose(1, 2), -1)
        return self.out(torch.cat([told, scores @ memory], -1))


class Unrolled(nn.Module):
    """An LSTM cell in a Python loop, with learned initial states."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(8, 6)
        self.start = nn.Parameter(torch.randn(6))
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.start.expand(x.shape[0], -1)
        memory = torch.zeros_like(hidden)
        steps = []
        for step in x.unbind(1):
            hidden, memory = self.cell(step, (hidden, memory))
            steps.append(self.out(hidden))
        return torch.stack(steps, 1)


class MinimalGated(nn.Module):
    """A gated recurrence written by hand with one fused projection."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 12)
        self.back = nn.Linear(6, 12, bias=False)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.zeros(x.shape[0], 6, dtype=x.dtype)
        for t in range(x.shape[1]):
            gate, value = (self.inner(x[:, t]) + self.back(hidden)).chunk(2, -1)
            gate = torch.sigmoid(gate)
            hidden = gate * hidden + (1 - gate) * torch.tanh(value)
        return self.out(hidden)


class ConvRecurrent(nn.Module):
    """CRNN: convolutions over a spectrum, then a GRU over time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm1d(6)
        self.gru = nn.GRU(6, 4, batch_first=True, bidirectional=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x))).transpose(1, 2)
        return self.out(self.gru(y)[0].mean(1))


class Scan(nn.Module):
    """A diagonal linear recurrence as a cumulative sum of logs (linear attention, state spaces)."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(8, 6)
        self.decay = nn.Linear(8, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        decay = F.logsigmoid(self.decay(x)).cumsum(1)
        state = (self.value(x) * torch.exp(-decay)).cumsum(1) * torch.exp(decay)
        return self.out(state)


TABLE: tuple[Entry, ...] = (
    pattern("rnn_tagger", Tagger, ids(3), reach={"embedding": 1, "hidden": 1}, fast=True),
    pattern("gru_last_state", LastState, tokens(3), reach={"hidden": 1}),
    pattern(
        "lstm_projected",
        Projected,
        tokens(3),
        reach={"hidden": 1},
        stops={"axis:lstm/hidden": "projections must stay narrower than it"},
        onnx="the exporter writes no projections",
    ),
    pattern("seq2seq", Seq2Seq, tokens(3), tokens(2, 4), reach={"hidden": 1}),
    pattern("lstm_cell_loop", Unrolled, tokens(3), reach={"hidden": 1}),
    pattern("gated_by_hand", MinimalGated, tokens(3), reach={"neurons": 1}),
    pattern("conv_gru", ConvRecurrent, series(4), reach={"channels": 1, "hidden": 1}),
    pattern("linear_recurrence", Scan, tokens(), reach={"neurons": 1}),
)
