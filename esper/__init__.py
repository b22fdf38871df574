"""Esper changes the structure of PyTorch models and keeps a change only when it measurably pays.

Everything public is here and is imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper import propose as propose
    from esper.ecology.blueprints import register_blueprint as register_blueprint
    from esper.errors import BoundaryError as BoundaryError
    from esper.errors import EsperError as EsperError
    from esper.gate.gate import Gate as Gate
    from esper.gate.verdict import Verdict as Verdict
    from esper.ir.artifact import load as load
    from esper.ir.artifact import save as save
    from esper.ir.marker import Slot as Slot
    from esper.ir.model import Model as Model
    from esper.ir.rules import register_axis_rule as register_axis_rule
    from esper.ir.trace import trace as trace
    from esper.live.governor import Governor as Governor
    from esper.live.layouts import register_optimizer_layout as register_optimizer_layout
    from esper.live.lifecycle import Lifecycle as Lifecycle
    from esper.live.policy import StatePolicy as StatePolicy
    from esper.live.recording import Recording as Recording
    from esper.manager import PassManager as PassManager
    from esper.optimization import Result as Result
    from esper.optimization import optimize as optimize
    from esper.recorder.calls import program as program
    from esper.recorder.calls import replayable as replayable
    from esper.recorder.generators import Generators as Generators
    from esper.recorder.writer import Recorder as Recorder
    from esper.session import Session as Session

_EXPORTS = {
    "BoundaryError": "esper.errors",
    "EsperError": "esper.errors",
    "Gate": "esper.gate.gate",
    "Generators": "esper.recorder.generators",
    "Governor": "esper.live.governor",
    "Lifecycle": "esper.live.lifecycle",
    "Model": "esper.ir.model",
    "PassManager": "esper.manager",
    "Recorder": "esper.recorder.writer",
    "Recording": "esper.live.recording",
    "Result": "esper.optimization",
    "Session": "esper.session",
    "Slot": "esper.ir.marker",
    "StatePolicy": "esper.live.policy",
    "Verdict": "esper.gate.verdict",
    "load": "esper.ir.artifact",
    "optimize": "esper.optimization",
    "program": "esper.recorder.calls",
    "register_axis_rule": "esper.ir.rules",
    "register_blueprint": "esper.ecology.blueprints",
    "register_optimizer_layout": "esper.live.layouts",
    "replayable": "esper.recorder.calls",
    "save": "esper.ir.artifact",
    "trace": "esper.ir.trace",
}

__all__ = ["propose", *_EXPORTS]  # noqa: PLE0604 - every key is a str
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "propose":
        return importlib.import_module("esper.propose")
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'esper' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
