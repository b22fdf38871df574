"""`optimize`: what it returns, and that what goes in is never changed."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import esper
from esper.errors import QualityError, UsageError
from esper.ir.model import Model
from esper.pipeline import parse
from tests import oracle, zoo
from tests.snapshots import assert_same, snapshot

SAME = 1e-9


class Net(nn.Module):
    """Convolution, batch norm, a dead channel, a linear head behind a literal view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.mix = nn.Conv2d(8, 12, 1)
        self.fc = nn.Linear(12 * 4, 3)
        with torch.no_grad():
            self.mix.weight[7] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.conv(x)))
        h = torch.relu(self.mix(h) + 0.1)
        out: Tensor = self.fc(h[:, :, ::2, ::2].reshape(-1, 12 * 4))
        return out


@cache
def _net() -> Model:
    torch.manual_seed(4)
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    return esper.trace(Net().double().eval(), (x,))


def net() -> Model:
    return copy.deepcopy(_net())


def batches(count: int = 2) -> list[Any]:
    generator = torch.Generator().manual_seed(6)
    return [
        ((torch.randn(4, 2, 4, 4, dtype=torch.float64, generator=generator),), {})
        for _ in range(count)
    ]


def outputs(model: Any) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(*args, **kwargs) for args, kwargs in batches()])


def test_the_input_model_is_never_changed() -> None:
    model = net()
    before = snapshot(model)
    result = esper.optimize(
        model, "prune{ratio=0.5 align=1},fuse-conv-bn", data=batches(), max_loss=9.0
    )
    assert result.committed
    assert result.baseline is model
    assert result.model is not model
    assert_same(before, snapshot(model))
    mine = {id(t) for _, t in model.all_tensors()}
    assert not mine & {id(t) for _, t in result.model.all_tensors()}


def test_exact_result_equals_its_reference() -> None:
    result = esper.optimize(net(), "prune{ratio=0.4 align=1 saliency=random}")
    assert result.exact
    assert len(result.committed) == 2
    drift = (outputs(result.model) - outputs(result.reference)).abs().max()
    assert drift < SAME
    assert (outputs(result.model) - outputs(result.baseline)).abs().max() > 1e-3
    assert result.reference.nbytes() >= result.baseline.nbytes()


def test_constants_that_were_folded_are_not_masked_in_the_reference() -> None:
    model = net()
    result = esper.optimize(model, "prune{axes=axis:mix/* ratio=0.1 align=1}")
    (record,) = result.committed
    if record.figures.get("folded_units"):
        assert (outputs(result.model) - outputs(model)).abs().max() < SAME
    assert (outputs(result.model) - outputs(result.reference)).abs().max() < SAME


@pytest.mark.parametrize("name", ["llama_native_norm", "bert_eager", "unet"])
def test_models_of_the_zoo_equal_their_reference(name: str) -> None:
    model, args, kwargs = zoo.traced(name)
    result = esper.optimize(model, "prune{ratio=0.5 align=1 saliency=random}", seed=3)
    assert result.exact
    assert result.committed
    for mine, theirs in zip(
        oracle.run(result.model, args, kwargs),
        oracle.run(result.reference, args, kwargs),
        strict=True,
    ):
        oracle.close(mine, theirs, "output")
    result.model.train()
    oracle.run(result.model, args, kwargs)[0].sum().backward()  # type: ignore[no-untyped-call]


def test_repeated_pruning_has_one_reference() -> None:
    pipeline = "repeat{n=3}(prune{ratio=0.2 align=1 saliency=random fold-constants=false})"
    result = esper.optimize(net(), pipeline)
    assert len(result.committed) > 3
    assert (outputs(result.model) - outputs(result.reference)).abs().max() < SAME


def test_lossy_result_is_not_called_exact() -> None:
    model, _, _ = zoo.traced("bert_eager")
    result = esper.optimize(model, "prune{axes=embedding ratio=0.2 align=1}")
    assert result.committed
    assert not result.exact


def test_fusing_reassociates_and_is_not_called_exact() -> None:
    result = esper.optimize(net(), "fuse-conv-bn")
    assert [r.figures["tolerance"] for r in result.committed] == ["reassociates"]
    assert not result.exact


def test_nothing_done_is_said() -> None:
    model = net()
    result = esper.optimize(model, "prune{axes=heads}")
    assert result.committed == []
    assert result.exact
    assert result.speedup is None
    assert "the model is unchanged" in result.summary()
    assert [(r.kind, r.code) for r in result.records] == [("missed", "no-axis")]
    assert torch.equal(outputs(result.model), outputs(model))


def test_empty_pipeline() -> None:
    result = esper.optimize(net(), "")
    assert result.records == []
    assert "the model is unchanged" in result.summary()


def test_summary_counts_and_weighs() -> None:
    result = esper.optimize(net(), "prune{ratio=0.5 align=1}")
    text = result.summary()
    assert text.startswith("2 proposals committed, 0 refused, 0 failed\n")
    before, after = result.baseline.nbytes(), result.model.nbytes()
    assert after < before
    assert f"{before / 1e6:.2f} MB -> {after / 1e6:.2f} MB" in text
    assert "step time was not measured" in text


def test_records_are_numbered_and_say_that_time_was_not_measured() -> None:
    result = esper.optimize(net(), "prune{ratio=0.5 align=1},prune{axes=heads}")
    assert [r.number for r in result.records] == list(range(len(result.records)))
    assert {r.code for r in result.committed} == {"not-measured"}
    assert all("without measuring" in r.reason for r in result.committed)


def test_parsed_pipelines_and_text_mean_the_same() -> None:
    text = "prune{ratio=0.5 align=1}"
    one, two = (esper.optimize(net(), each) for each in (text, parse(text)))
    assert str(one.model) == str(two.model)
    assert one.pipeline == two.pipeline == text


def test_seed_decides_every_random_choice() -> None:
    def run(seed: int) -> str:
        text = "prune{ratio=0.5 align=1 saliency=random}"
        result = esper.optimize(net(), text, seed=seed)
        return repr([r.proposal for r in result.committed])

    assert run(1) == run(1)
    assert run(1) != run(2)


# -- quality -------------------------------------------------------------------------------------


def agreement(reference: Tensor) -> Any:
    """A metric: 1 at no difference, falling with the distance from the reference outputs."""

    def evaluate(model: Any) -> float:
        distance = (outputs(model) - reference).norm() / reference.norm()
        return float(1 / (1 + distance))

    return evaluate


def test_a_cut_beyond_the_budget_is_refused() -> None:
    model = net()
    result = esper.optimize(
        model, "prune{ratio=0.5 align=1}", evaluate=agreement(outputs(model)), max_loss="0.1%"
    )
    assert result.committed == []
    assert {r.code for r in result.records} == {"quality"}
    assert torch.equal(outputs(result.model), outputs(model))
    assert result.quality["quality_after"] == result.quality["quality_before"] == 1.0


def test_a_generous_budget_admits_it_and_says_the_price() -> None:
    model = net()
    result = esper.optimize(
        model, "prune{ratio=0.3 align=1}", evaluate=agreement(outputs(model)), max_loss="95%"
    )
    assert len(result.committed) == 2
    assert result.quality["quality_after"] < result.quality["quality_before"]
    assert str(result.quality["text"]) in result.summary()


def test_search_stays_within_the_budget() -> None:
    model = net()
    evaluate = agreement(outputs(model))
    result = esper.optimize(
        model,
        "search{steps=4}(prune{axes=axis:mix/* align=1})",
        evaluate=evaluate,
        max_loss="50%",
    )
    assert evaluate(result.model) >= 0.5
    assert result.committed
    assert any(r.code == "search" for r in result.records)


def test_finetuning_sees_the_cut_model_and_is_kept() -> None:
    model = net()
    seen: list[int] = []

    def finetune(candidate: Any) -> None:
        seen.append(candidate.tensor("conv.weight").shape[0])
        with torch.no_grad():
            candidate.tensor("fc.bias").add_(1.0)

    result = esper.optimize(model, "prune{ratio=0.5 align=1}", finetune=finetune)
    assert seen == [4]
    assert {r.figures["tolerance"] for r in result.committed} == {"exact"}
    assert result.finetuned
    assert not result.exact  # the cut is, but weights are no longer those of the reference
    torch.testing.assert_close(result.model.tensor("fc.bias"), model.tensor("fc.bias") + 1.0)  # type: ignore[operator]


# -- wrong input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("passes", "words"),
    [
        ("prun", "did you mean 'prune'"),
        ("prune{rato=0.5}", "did you mean 'ratio'"),
        ("prune{ratio=2}", "ratio"),
        ("prune(", "prune"),
    ],
)
def test_wrong_pipelines_are_one_clear_error(passes: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        esper.optimize(net(), passes)


def test_a_pass_that_lacks_data_says_so() -> None:
    with pytest.raises(UsageError, match="needs calibration data"):
        esper.optimize(net(), "prune{saliency=taylor}")


def test_search_without_a_budget() -> None:
    with pytest.raises(UsageError, match="quality budget"):
        esper.optimize(net(), "search(prune)")


def test_a_gate_without_inputs() -> None:
    model = net()
    model.example_inputs = None
    with pytest.raises(UsageError, match="example inputs"):
        esper.optimize(model, "prune", gate=esper.Gate())


def test_a_metric_that_is_not_a_number() -> None:
    with pytest.raises(QualityError):
        esper.optimize(net(), "prune{align=1}", evaluate=lambda m: float("nan"))


def test_an_error_leaves_the_input_model_alone() -> None:
    model = net()
    before = snapshot(model)

    def fails(candidate: Any) -> None:
        raise RuntimeError("no data left")

    with pytest.raises(RuntimeError, match="no data left"):
        esper.optimize(model, "prune{align=1}", finetune=fails)
    assert_same(before, snapshot(model))
