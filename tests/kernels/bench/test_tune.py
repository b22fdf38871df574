"""Questions for a config are written down and answered one by one; no GPU is asked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks.gpu import tune
from esper_kernels import autotune, launch
from esper_kernels.config import Config, Problem

CPU = torch.device("cpu")
CONFIGS = (Config(16, 64, 64), Config(16, 128, 64), Config(64, 64, 64))
FIRST = Problem("vnm_linear", 8, 256, 256, torch.bfloat16)
SECOND = Problem("low_rank_linear", 8, 256, 64, torch.bfloat16)


class Op:
    """An op that asks for two configs, as one with two products does."""

    def __init__(self) -> None:
        self.got: list[tuple[Config, Config]] = []

    def __call__(self) -> None:
        first = launch.choose(FIRST, CONFIGS, CPU)
        self.got.append((first, launch.choose(SECOND, CONFIGS, CPU)))


def test_every_question_of_a_call_is_found() -> None:
    op = Op()
    assert tune.questions(op) == [(FIRST, CONFIGS), (SECOND, CONFIGS)]
    assert tune.questions(op) == [(FIRST, CONFIGS), (SECOND, CONFIGS)]  # nothing stays answered


def test_one_question_is_answered_with_each_config_and_others_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fake(
        problem: Problem,
        configs: tuple[Config, ...],
        device: torch.device,
        run: Callable[[Config], object],
    ) -> Config:
        for config in configs:
            run(config)
        return configs[-1]

    monkeypatch.setattr(autotune, "tune", fake)
    op = Op()
    usual = launch.choose(SECOND, CONFIGS, CPU)
    assert tune.tuned(op, (FIRST, CONFIGS)) == CONFIGS[-1]
    assert op.got == [(config, usual) for config in CONFIGS]
    assert launch.choose(FIRST, CONFIGS, CPU) == launch.rule_of_thumb(FIRST, CONFIGS, 90, 1)
