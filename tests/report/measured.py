"""A result as `esper.optimize` returns it, with measurements made up for tests of the report."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from esper import trace
from esper.gate.statistics import Rule
from esper.gate.verdict import Environment, Recorded, Side, Verdict
from esper.judge import Judgement
from esper.manager import PassManager
from esper.optimization import Result
from esper.propose import PruneUnits


class Network(nn.Module):
    """Two layers; the neurons between them can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 10)
        self.down = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(torch.relu(self.up(x)))
        return out


def verdict(speedup: float, outcome: str = "accept") -> Verdict:
    """A verdict with these figures."""
    return Verdict.model_validate(
        {
            "outcome": outcome,
            "reason": "made up",
            "speedup": speedup,
            "lower": speedup - 0.1,
            "upper": speedup + 0.1,
            "alpha": 0.01,
            "p_sign": 0.004,
            "delta_effective": 0.01,
            "noise": 0.002,
            "stage": "confirm",
            "processes": 6,
            "rounds": 240,
            "seconds": 3.5,
            "objective": "inference",
            "baseline": Side(
                backend="eager", milliseconds=3.0, parameter_bytes=8, artifact_bytes=8
            ),
            "candidate": Side(
                backend="openvino",
                milliseconds=3.0 / speedup,
                parameter_bytes=4,
                artifact_bytes=4,
            ),
            "weights": [1.0],
            "shapes": [[[5, 6]]],
            "environment": Environment(
                device="cpu",
                device_name="Made-up processor",
                threads=1,
                python="3.11.0",
                versions={"torch": "2.0"},
            ),
            "rule": Rule(),
            "samples": Recorded(search=[], confirm=[]),
        }
    )


def result(*, refuse: bool = False) -> Result:
    """A real model with two neurons really cut (or refused), and made-up times."""
    torch.manual_seed(0)
    baseline = trace(Network().eval(), (torch.randn(5, 6),))
    model = copy.deepcopy(baseline)
    axis = "axis:model/neurons" if refuse else model.find("*up/neurons")[0]
    record = PassManager(model).apply(PruneUnits(axis=axis, units=(2, 7), proposer="test"))
    judged = [] if refuse else [("prune", Judgement(True, "accepted", "made up", {}, verdict(1.5)))]
    return Result(
        model=model,
        baseline=baseline,
        pipeline="prune",
        records=[record],
        judgements=judged,
        verdict=None if refuse else judged[0][1].verdict,
        backend="eager" if refuse else "openvino",
    )
