"""A small model, passes and records, without the manager."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, cast

import torch
from torch import fx

from esper.ir.model import Model
from esper.passbase import Pass
from esper.propose import EliminateDead, PruneUnits
from esper.records import Kind, Record


class Text(fx.GraphModule):
    """Prints as told; the rest is a graph of one linear layer (3 nodes, 6 parameters)."""

    def __init__(self, text: str = "graph") -> None:
        linear = torch.nn.Linear(2, 2)
        super().__init__({"linear": linear}, _graph())
        self.text = text

    def __str__(self) -> str:
        return self.text


def _graph() -> fx.Graph:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_module("linear", (x,)))
    return graph


def model(text: str = "graph") -> Model:
    return cast(Model, Text(text))


def change(of: Model, text: str) -> None:
    cast(Text, of).text = text


@dataclass(frozen=True)
class Shrink(Pass):
    """Shrink."""

    name: ClassVar[str] = "shrink"
    ratio: float = field(default=0.5, metadata={"doc": "share"})


@dataclass(frozen=True)
class Tidy(Pass):
    """Tidy."""

    name: ClassVar[str] = "tidy"
    aim: ClassVar[Literal["speed", "repair", "cleanup"]] = "cleanup"


PROPOSAL = PruneUnits(axis="axis:fc/out", units=(1, 2))
OTHER = EliminateDead(nodes=("relu", "add"))


def record(kind: Kind = "passed", code: str = "applied", reason: str = "2 units cut") -> Record:
    return Record(kind=kind, code=code, reason=reason, proposal=PROPOSAL)
