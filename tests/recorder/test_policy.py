"""Random streams by name, masked heads, and functions that a log may name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import esper
from esper.recorder import policy
from esper.recorder.calls import Call, config, program, replayable
from esper.recorder.decisions import HeadMask, HeadSample, Mask
from esper.recorder.generators import Generators, Stream
from esper.recorder.log import Log
from esper.recorder.writer import Recorder

HEAD = HeadMask(("keep", "cut", "grow"), (True, False, True), ("", "cooldown", ""))


# -- streams ---------------------------------------------------------------------------------------


def test_a_stream_depends_on_nothing_but_seed_name_and_cursor() -> None:
    alone = [Generators(7)["tamiyo"].uniform() for _ in range(1)]
    among = Generators(7)
    for _ in range(5):
        among["data"].bits()
    assert [among["tamiyo"].uniform()] == alone
    assert Generators(8)["tamiyo"].uniform() != alone[0]
    assert Generators(7)["emrakul"].uniform() != alone[0]
    assert Stream(1, "2").bits() != Stream(12, "").bits()


def test_these_numbers_never_change() -> None:
    stream = Generators(0)["tamiyo"]
    assert [stream.bits(), stream.below(1000), stream.cursor] == [2849124507196463891, 460, 2]
    assert stream.at(0) == 2849124507196463891


def test_numbers_are_even() -> None:
    stream = Generators(3)["even"]
    drawn = [stream.uniform() for _ in range(4000)]
    assert all(0 <= x < 1 for x in drawn)
    assert abs(sum(drawn) / len(drawn) - 0.5) < 5 * math.sqrt(1 / 12 / len(drawn))
    counts = [0, 0, 0]
    for _ in range(3000):
        counts[stream.pick((0.2, 0.0, 0.8))] += 1
    assert counts[1] == 0
    assert abs(counts[0] - 600) < 5 * math.sqrt(3000 * 0.2 * 0.8)
    assert {stream.below(3) for _ in range(50)} == {0, 1, 2}


def test_nothing_touches_the_global_generator() -> None:
    before = torch.get_rng_state()
    generators = Generators(1)
    first = torch.randn(3, generator=generators["data"].generator())
    again = torch.randn(3, generator=generators["data"].generator_at(0))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)
    assert generators.cursors == {"data": 1}


def test_streams_go_on_from_their_cursors() -> None:
    first = Generators(5, {"emrakul": 9})
    handed = first["tamiyo"]
    handed.bits()
    state = first.state_dict()
    expected = [handed.bits(), first["emrakul"].bits()]
    first.load_state_dict(state)
    assert [handed.bits(), first["emrakul"].bits()] == expected
    second = Generators.of_seeds(first.seeds)
    second.load_state_dict(state)
    assert [second["tamiyo"].bits(), second["emrakul"].bits()] == expected
    assert second["emrakul"].at(0) == Generators(9)["emrakul"].at(0)
    with pytest.raises(esper.EsperError, match="seeds"):
        Generators(6).load_state_dict(state)
    with pytest.raises(esper.EsperError, match="no integer"):
        handed.below(0)
    with pytest.raises(esper.EsperError, match="positive probability"):
        handed.pick((0.0, 0.0))


# -- heads -----------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.floats(-50, 50), st.booleans()), min_size=1, max_size=6).filter(
        lambda rows: any(ok for _, ok in rows)
    )
)
def test_a_head_agrees_with_torch(rows: list[tuple[float, bool]]) -> None:
    names = tuple(f"c{i}" for i in range(len(rows)))
    allowed = tuple(ok for _, ok in rows)
    mask = HeadMask(names, allowed, tuple("" if ok else "locked" for ok in allowed))
    logits = [logit for logit, _ in rows]
    drawn = policy.sample("op", logits, mask, Generators(1), stream="tamiyo")
    reference = torch.distributions.Categorical(
        logits=torch.tensor(
            [v if ok else -math.inf for v, ok in zip(logits, allowed, strict=True)],
            dtype=torch.float64,
        ),
        validate_args=False,
    )
    own = torch.tensor(drawn.probabilities, dtype=torch.float64)
    torch.testing.assert_close(own, reference.probs)
    expected = -(own * own.clamp_min(1e-300).log()).sum()
    assert drawn.entropy == pytest.approx(float(expected), abs=1e-12)
    logarithm = reference.logits[drawn.chosen]  # normalised by torch
    assert drawn.log_probability == pytest.approx(float(logarithm), abs=1e-9)
    assert allowed[drawn.chosen]


def test_a_forced_head_costs_a_draw_and_says_nothing() -> None:
    only = HeadMask(("a", "b"), (False, True), ("locked", ""))
    generators = Generators(0)
    drawn = policy.sample("op", (3.0, -2.0), only, generators, stream="t", given={"x": "y"})
    assert (drawn.chosen, drawn.entropy, drawn.log_probability) == (1, 0.0, 0.0)
    assert (drawn.cursor, generators.cursors, drawn.given) == (0, {"t": 1}, {"x": "y"})
    likeliest = policy.sample("op", (1.0, 9.0, 1.0), HEAD, generators)
    assert (likeliest.chosen, likeliest.generator) == (0, "")


@pytest.mark.parametrize(
    ("logits", "mask", "sentence"),
    [
        ((1.0,), HEAD, "1 logits, 3 choices"),
        ((1.0, math.nan, 0.0), HEAD, "not finite"),
        ((1.0,), HeadMask(("a",), (False,), ("locked",)), "choose nothing"),
    ],
)
def test_heads_that_cannot_be_sampled(
    logits: tuple[float, ...], mask: HeadMask, sentence: str
) -> None:
    with pytest.raises(esper.EsperError, match=sentence):
        policy.sample("op", logits, mask, Generators(0))


def test_the_mask_of_a_head_depends_on_earlier_choices() -> None:
    other = HeadMask(("keep",), (True,), ("",))
    masks = {"slot": HEAD, policy.conditional("slot", {"op": "cut"}): other}
    assert policy.mask_of(masks, "slot") is HEAD
    assert policy.mask_of(masks, "slot", {"op": "grow"}) is HEAD
    assert policy.mask_of(masks, "slot", {"op": "cut", "tempo": "short"}) is other
    with pytest.raises(esper.EsperError, match="no mask"):
        policy.mask_of(masks, "blend")


class Careful:
    """Sees one number and has one head."""

    def decide(
        self, values: Any, masks: policy.Masks, generators: Generators
    ) -> Sequence[HeadSample]:
        """One choice."""
        logits = (values["loss"], 0.0, 1.0)
        mask = policy.mask_of(masks, "op")
        return [policy.sample("op", logits, mask, generators, stream="careful")]


def test_a_decision_is_recorded_as_a_chain(tmp_path: Path) -> None:
    assert isinstance(Careful(), policy.Policy)
    with Recorder(tmp_path / "run.esperlog") as recorder:
        samples, last = policy.decide(
            Careful(),
            {"loss": 0.5},
            Mask({"op": HEAD}),
            Generators(2),
            recorder=recorder,
            agent="t",
        )
    assert policy.chosen(samples)["op"] in ("keep", "grow")
    log = Log(tmp_path / "run.esperlog")
    assert last is not None
    chain = log.causes(log.find(last.code))
    assert [event.kind for event in chain] == ["observation", "mask", "head-sample"]
    assert chain[-1].payload == samples[0]
    assert {event.agent for event in chain} == {"t"}
    same, none = policy.decide(Careful(), {"loss": 0.5}, Mask({"op": HEAD}), Generators(2))
    assert (same, none) == (samples, None)


# -- functions by name -----------------------------------------------------------------------------


@replayable
def marked(weights: Any = None, **options: Any) -> Any:
    return weights, options


@program
def run(recorder: Any, seed: int = 1, *, sizes: Sequence[int] = (2, 3)) -> Any:
    return recorder


def test_a_call_finds_its_function_again() -> None:
    call = Call.of(marked, width=3)
    assert call == Call("tests.recorder.test_policy:marked", {"width": 3})
    assert (
        Call.parse({"function": call.function, "arguments": {}, "weights": ""}).resolve() is marked
    )


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("os:system", "not marked"),
        ("nowhere:f", "cannot be imported"),
        ("tests.recorder.test_policy:none", "cannot be imported"),
        ("", "cannot be imported"),
    ],
)
def test_what_a_log_may_not_call(name: str, sentence: str) -> None:
    with pytest.raises(esper.EsperError, match=sentence):
        Call(name).resolve()


def test_what_is_no_call() -> None:
    with pytest.raises(esper.EsperError, match="module level"):
        Call.of(lambda: None)
    with pytest.raises(esper.EsperError, match="recorded as JSON"):
        Call.of(marked, net=torch.zeros(1))
    with pytest.raises(esper.EsperError, match="names no function"):
        Call.parse({"function": "x"})
    with pytest.raises(esper.EsperError, match="first parameter"):
        program(marked)
    with pytest.raises(esper.EsperError, match="not a key of your own"):
        config({"program": 1}, None, {})


def test_a_program_says_how_it_was_called(tmp_path: Path) -> None:
    recorder = run(tmp_path / "run.esperlog", seed=4)
    expected = Call("tests.recorder.test_policy:run", {"seed": 4, "sizes": [2, 3]})
    assert recorder.program == expected
    assert expected.resolve() is run
    assert list(Log(tmp_path / "run.esperlog"))[-1].kind == "finished"
    assert run(None) is None
    assert config({"a": 1}, expected, {"t": Call("m:f")}) == {
        "a": 1, "program": expected, "policies": {"t": Call("m:f")}
    }  # fmt: skip
