"""Vocabularies cut down: ids and logits keep their places, and rows that go are never read."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import esper
from esper.errors import UsageError
from esper.ir.model import Model
from esper.manager import PassManager
from esper.passbase import Context
from esper.plan import Refusal
from esper.propose import KeepVocabulary as Proposal
from esper.propose import PruneUnits
from esper_passes.keep_vocabulary import KeepVocabulary, read_tokens
from tests.ir.small import perceptron
from tests.passes.support import drive

AXIS = "axis:embed/vocabulary"
KEPT = (0, 2, 3, 7, 9)


def ids(*tokens: int) -> Tensor:
    return torch.tensor([tokens, tokens[::-1]])


def cut(model: Model, tokens: tuple[int, ...] = KEPT, unknown: int = 0) -> Model:
    changed = copy.deepcopy(model)
    record = PassManager(changed, verify="full").apply(
        Proposal(axis=AXIS, tokens=tokens, unknown=unknown)
    )
    assert record.kind == "passed", record.line()
    return changed


def poisoned(model: Model, kept: tuple[int, ...]) -> Model:
    bad = copy.deepcopy(model)
    gone = [i for i in range(11) if i not in kept]
    with torch.no_grad():
        bad.get_parameter("embed.weight")[gone] = float("nan")
    return bad


def test_kept_tokens_compute_what_they_did() -> None:
    model = perceptron()
    small, x = cut(model), ids(9, 2, 0, 7, 3)
    before, after = model(x), small(x)
    torch.testing.assert_close(after["hidden"], before["hidden"], rtol=0, atol=0)
    torch.testing.assert_close(after["logits"][..., KEPT], before["logits"][..., KEPT])
    gone = [i for i in range(11) if i not in KEPT]
    assert after["logits"].shape == before["logits"].shape
    assert bool((after["logits"][..., gone] == -torch.inf).all())
    assert small.get_parameter("embed.weight").shape == (5, 6)
    clean = cut(poisoned(model, KEPT))(x)
    assert torch.equal(clean["logits"], after["logits"])


def test_tokens_that_went_count_as_unknown() -> None:
    small = cut(perceptron(), unknown=3)
    found, expected = small(ids(1, 2, 10)), small(ids(3, 2, 3))
    assert torch.equal(found["hidden"], expected["hidden"])


def test_gradients_reach_the_rows_that_stay() -> None:
    model = perceptron()
    small, x = cut(model), ids(9, 2, 0)
    for one in (model, small):
        one(x)["hidden"].square().sum().backward()
    whole = model.get_parameter("embed.weight").grad
    part = small.get_parameter("embed.weight").grad
    assert whole is not None
    assert part is not None
    torch.testing.assert_close(part, whole[list(KEPT)])


def test_a_second_time_and_after_other_cuts() -> None:
    """Tokens go by the ids of the original vocabulary, however often rows went."""
    model = perceptron()
    small = cut(cut(model), (0, 3, 9))
    assert small.anatomy.axes[AXIS].unit_ids == (0, 3, 9)
    x = ids(9, 3, 0)
    torch.testing.assert_close(small(x)["hidden"], model(x)["hidden"], rtol=0, atol=0)
    places = [0, 3, 9]
    torch.testing.assert_close(small(x)["logits"][..., places], model(x)["logits"][..., places])
    neurons = PruneUnits(axis="axis:up/neurons", units=(1, 4))
    one, _ = small.apply(neurons)
    other = cut(model.apply(neurons)[0], (0, 3, 9))
    assert torch.equal(one(x)["hidden"], other(x)["hidden"])


def test_saved_and_undone(tmp_path: Path) -> None:
    model = perceptron()
    small = cut(model)
    esper.save(small, tmp_path / "small.esper")
    loaded = esper.load(tmp_path / "small.esper")
    x = ids(9, 2, 0)
    assert torch.equal(loaded(x)["logits"], small(x)["logits"])
    assert loaded.anatomy.axes[AXIS].unit_ids == KEPT
    text, manager = str(model), PassManager(model)
    with manager.transaction() as transaction:
        manager.apply(Proposal(axis=AXIS, tokens=KEPT, unknown=0))
        transaction.roll_back()
    assert str(model) == text


class Mixed(nn.Module):
    """Logits that are consumed inside: a soft word goes back through the table."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)

    def forward(self, ids: Tensor) -> Tensor:
        soft: Tensor = (self.embed(ids) @ self.embed.weight.t()).softmax(-1)
        mixed: Tensor = soft @ self.embed.weight
        return mixed


@pytest.mark.parametrize(
    ("proposal", "code"),
    [
        (Proposal(axis="axis:up/neurons", tokens=(0, 1), unknown=0), "no-vocabulary"),
        (Proposal(axis=AXIS, tokens=(1, 2), unknown=0), "unknown-goes"),
        (Proposal(axis=AXIS, tokens=tuple(range(11)), unknown=0), "no-change"),
        (Proposal(axis=AXIS, tokens=(0, 11), unknown=0), "unknown-unit"),
        (Proposal(axis=AXIS, tokens=(0, 0), unknown=0), "repeated-unit"),
        (Proposal(axis="axis:embed/vocab", tokens=(0,), unknown=0), "unknown-target"),
    ],
)
def test_refusals(proposal: Proposal, code: str) -> None:
    refusal = perceptron().plan(proposal)
    assert isinstance(refusal, Refusal)
    assert refusal.code == code


def test_a_vocabulary_that_is_read_inside_is_refused() -> None:
    model = esper.trace(Mixed().eval(), (ids(1, 2, 3),))
    refusal = model.plan(Proposal(axis=AXIS, tokens=(0, 1), unknown=0))
    assert isinstance(refusal, Refusal)
    assert refusal.code == "vocabulary-read"
    assert refusal.node


def test_a_pinned_vocabulary_is_refused() -> None:
    model = perceptron()
    model.pin("*/vocabulary")
    refusal = model.plan(Proposal(axis=AXIS, tokens=(0, 1), unknown=0))
    assert isinstance(refusal, Refusal)
    assert refusal.code == "frozen-axis"


def test_the_pass_keeps_what_occurs_in_the_data() -> None:
    context = Context(data=[((ids(1, 5),), {}), ((ids(5, 7),), {})])
    model, (record,), _ = drive(KeepVocabulary(unknown=0), perceptron(), context)
    assert record.kind == "passed", record.line()
    assert model.anatomy.axes[AXIS].unit_ids == (0, 1, 5, 7)
    _, (again,), _ = drive(KeepVocabulary(unknown=0), model, context)
    assert again.code == "no-change"


def test_the_pass_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tokens.txt"
    path.write_text("[1, 2]\n 9")
    assert read_tokens(path) == {1, 2, 9}
    model, _, _ = drive(KeepVocabulary(unknown=0, tokens=str(path)), perceptron())
    assert model.anatomy.axes[AXIS].unit_ids == (0, 1, 2, 9)


@pytest.mark.parametrize("text", ["", "1 two 3"])
def test_bad_token_files(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens.txt"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"holds"):
        read_tokens(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_tokens(tmp_path / "nowhere")


def test_the_unknown_token_is_required() -> None:
    with pytest.raises(UsageError, match="unknown=ID"):
        KeepVocabulary()


def test_a_model_without_vocabulary_is_remarked() -> None:
    model = esper.trace(nn.Linear(3, 4).eval(), (torch.randn(2, 3),))
    _, _, (remark,) = drive(KeepVocabulary(unknown=0), model)
    assert remark.code == "no-vocabulary"
