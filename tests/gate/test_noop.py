"""A change that is none must never pass: the decision rule on samples recorded on real machines.

The files in `data/` hold three identical contenders, so every assignment of roles and every choice
of processes is another comparison of nothing.
"""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from esper.gate.statistics import Rule, Samples, decide
from esper.gate.verdict import replay

FILES = sorted((Path(__file__).parent / "data").glob("*.json"))
RULE = Rule(resamples=500)


def recorded(path: Path) -> Samples:
    return Samples.from_lists(json.loads(path.read_text())["samples"])


def test_there_are_recorded_samples() -> None:
    assert {p.stem.split("-")[0] for p in FILES} == {"cnn", "minilm"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_noop_is_refused(path: Path) -> None:
    samples = recorded(path)
    half = len(samples) // 2
    for roles in permutations(range(3)):
        cast = [block[:, list(roles)] for block in samples.processes]
        search, confirm = Samples(tuple(cast[:half])), Samples(tuple(cast[half:]))
        assert replay(search, confirm, RULE).outcome != "accept"
        assert replay(confirm, search, RULE).outcome != "accept"


def test_a_noop_is_not_even_found_more_than_once_in_a_hundred_looks() -> None:
    """The search stage alone, without the protection of a confirmation."""
    rng = np.random.default_rng(0)
    looks = found = 0
    for path in FILES:
        samples = recorded(path)
        for _ in range(60):
            chosen = rng.choice(len(samples), size=3, replace=False)
            roles = list(rng.permutation(3))
            drawn = Samples(tuple(samples.processes[i][:, roles] for i in chosen))
            looks += 1
            found += decide(drawn, RULE, RULE.alpha_per_look).call == "accept"
    assert found <= 0.01 * looks


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_same_samples_with_a_real_change_are_accepted(path: Path) -> None:
    """So that the tests above cannot pass by refusing everything."""
    samples = recorded(path)
    gain = np.array([0.0, 0.0, np.log(1.3)])
    changed = [block - gain for block in samples.processes]
    half = len(changed) // 2
    end = replay(Samples(tuple(changed[:half])), Samples(tuple(changed[half:])), RULE)
    assert end.outcome == "accept"
    assert end.decision.speedup == pytest.approx(1.3, rel=0.05)
