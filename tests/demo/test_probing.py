"""What probes of the storyboards measure on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from esper.demo.data import images
from esper.demo.probing import PROBING, brier, cross_entropy

LABELS = torch.tensor([0, 1, 2, 1])


def _sure_of(labels: torch.Tensor) -> Any:
    return lambda _: 1000.0 * torch.nn.functional.one_hot(labels, 3).float()


def test_the_brier_score_is_bounded_and_proper_at_its_ends() -> None:
    assert float(brier(_sure_of(LABELS), (LABELS, LABELS))) == 0.0
    assert float(brier(_sure_of((LABELS + 1) % 3), (LABELS, LABELS))) == 2.0
    unsure = float(brier(lambda _: torch.zeros(4, 3), (LABELS, LABELS)))
    assert unsure == pytest.approx(1 - 1 / 3)


def test_cross_entropy_counts_positions_alike() -> None:
    logits = torch.randn(4, 5, 3)
    labels = torch.randint(3, (4, 5))
    found = cross_entropy(lambda _: logits, (logits, labels))
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels)
    torch.testing.assert_close(found, expected)


def test_probes_see_the_part_that_is_theirs() -> None:
    data = images()
    probing = PROBING["image"]
    batches = probing.batches(data)
    inputs = torch.cat([batch[0] for batch in batches])
    torch.testing.assert_close(inputs, data.probe[0][: len(inputs)])
    assert {len(batch[0]) for batch in batches[:-1]} == {probing.size}
    assert len(probing.swept(data)) < len(batches)
    held = probing.held_out(data, 0.02)
    assert (held.rule.margin, len(held.batches)) == (0.02, len(batches))
