"""MiniLM: the published figures, and an evaluation that every form of the module can take."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from esper.errors import QualityError
from examples import minilm


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    return minilm.factory()


def test_published_figures(encoder: nn.Module) -> None:
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    whole = minilm.metrics(encoder, limit=160)
    assert whole.wordsim == pytest.approx(0.729, abs=1e-3)
    assert whole.simlex == pytest.approx(0.446, abs=1e-3)
    assert whole.lee == pytest.approx(0.656, abs=1e-3)
    cut = minilm.metrics(encoder)
    assert (cut.wordsim, cut.simlex) == pytest.approx((whole.wordsim, whole.simlex), abs=1e-9)
    assert cut.lee == pytest.approx(0.649, abs=1e-3)
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, before[key])


def pretend(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Hidden states that depend on the token alone, [batch, tokens, 5]."""
    frequencies = torch.tensor([0.001, 0.01, 0.1, 0.5, 1.0])
    return torch.cos(input_ids[..., None] * frequencies) + attention_mask[..., None]


class Fixed:
    """A callable that takes one shape only, as a graph traced without dynamic sizes does."""

    def __init__(self, rows: int | None) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        if input_ids.shape[1] != 64 or self.rows not in (None, len(input_ids)):
            raise RuntimeError(f"expected 64 tokens, got {tuple(input_ids.shape)}")
        return {"last_hidden_state": pretend(input_ids, attention_mask)}


def test_fixed_shapes_give_the_same_value() -> None:
    reference = minilm.evaluate(lambda **batch: (pretend(**batch),))
    assert minilm.evaluate(Fixed(None)) == pytest.approx(reference, abs=1e-12)
    assert minilm.evaluate(Fixed(8)) == pytest.approx(reference, abs=1e-12)
    with pytest.raises(QualityError, match="--dynamic"):
        minilm.evaluate_full(Fixed(8))


def test_errors_of_the_module_are_not_swallowed() -> None:
    def broken(**batch: Tensor) -> Any:
        raise ZeroDivisionError("inside the module")

    with pytest.raises(ZeroDivisionError, match="inside the module"):
        minilm.evaluate(broken)
    with pytest.raises(QualityError, match="no tensor but str"):
        minilm.evaluate(lambda **batch: ("text",))


def test_not_finite_gives_nan() -> None:
    assert math.isnan(minilm.evaluate(lambda **batch: pretend(**batch) * math.nan))


def test_inputs_and_calibration() -> None:
    args, kwargs = minilm.inputs()
    assert args == ()
    assert {key: tuple(value.shape) for key, value in kwargs.items()} == {
        "input_ids": (8, 64),
        "attention_mask": (8, 64),
    }
    assert int(kwargs["attention_mask"].sum()) == 8 * 64
    first, again = minilm.calibration(batches=4), minilm.calibration(batches=4)
    assert len(first) == 4
    judged = {tuple(ids[:64]) for _, ids in minilm.judged_tokens()}
    for (_, call), (_, repeated) in zip(first, again, strict=True):
        assert torch.equal(call["input_ids"], repeated["input_ids"])
        for ids, mask in zip(call["input_ids"], call["attention_mask"], strict=True):
            assert 3 <= int(mask.sum()) <= 64
            assert tuple(ids[mask.bool()].tolist()) not in judged


def test_rank_correlation() -> None:
    x = np.array([1.0, 2.0, 2.0, 5.0])
    assert minilm.spearman(x, x**3) == pytest.approx(1.0)
    assert minilm.spearman(x, -x) == pytest.approx(-1.0)
    # Ranks 1, 2.5, 2.5, 4 against 2, 1, 3, 4, each less its mean.
    y = np.array([2.0, 1.0, 3.0, 4.0])
    a, b = np.array([1, 2.5, 2.5, 4]) - 2.5, np.array([2, 1, 3, 4]) - 2.5
    assert minilm.spearman(x, y) == pytest.approx(float(a @ b / np.sqrt((a @ a) * (b @ b))))
    assert math.isnan(minilm.spearman(x, np.full(4, 7.0)))
