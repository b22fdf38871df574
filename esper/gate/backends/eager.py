"""Eager PyTorch: the graph executed op by op."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from esper.gate.backends.base import Call, Context, Runner


class Eager:
    """Carries the model as an `.esper` artifact, without pickle."""

    name = "eager"
    objectives = frozenset({"inference", "training"})
    devices = frozenset({"cpu", "cuda"})
    custom_ops = True

    def available(self) -> str | None:
        return None

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}

    def prepare(
        self, model: nn.Module, calls: Sequence[Call], directory: Path, context: Context
    ) -> None:
        from esper.gate.transport import ARTIFACT, save_model

        save_model(model, calls, directory / ARTIFACT)

    def load(self, directory: Path, calls: Sequence[Call], context: Context) -> Runner:
        from esper.gate.transport import ARTIFACT, load_model

        model = load_model(directory / ARTIFACT)
        model.to(context.device)
        return model.train() if context.objective == "training" else model.eval()
