"""What is named on the command line, and what is not understood."""

from __future__ import annotations

import pytest

from esper.errors import UsageError
from esper_kernel_bench import compression, layers
from esper_kernel_bench.command import select
from esper_kernel_bench.compression import Compression


@pytest.mark.parametrize(
    ("text", "family", "density", "int8"),
    [
        ("dense", "dense", 1.0, False),
        ("int8", "int8", 1.0, True),
        ("2:4", "2:4", 0.5, False),
        ("128:1:4x16", "runs", 0.25, False),
        ("128:2:4x8+int8", "runs", 0.5, True),
        ("64:1:8", "runs", 0.125, False),
        ("128x64@0.25", "blocks", 0.25, False),
        ("128x64@0.25+int8", "blocks", 0.25, True),
        ("low-rank@0.5", "low-rank", 0.5, False),
    ],
)
def test_words(text: str, family: str, density: float, int8: bool) -> None:
    found = Compression.parse(text)
    assert (found.family, found.density, found.int8) == (family, density, int8)


@pytest.mark.parametrize(
    "text",
    [
        "denze", "dense@0.5", "low-rank", "low-rank@2", "low-rank@x", "int8+int8", "1:4",
        "2:4+int8", "128x64", "128:1:4x16@0.5", "4:4", "128x64@0", "128x64@1.5", "",
    ],
)  # fmt: skip
def test_what_is_no_word_is_refused_with_it(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--patterns: "):
        Compression.parse(text)


def test_globs_choose_from_the_table_and_new_words_stand_for_themselves() -> None:
    texts = [c.text for c in compression.choose(["128:1:4x*", "64:1:2x32", "128:1:4x8"])]
    assert texts == ["128:1:4x8", "128:1:4x16", "128:1:4x64", "128:1:4x16+int8", "64:1:2x32"]


def test_quick_words_are_in_the_table() -> None:
    assert set(compression.QUICK) <= set(compression.ALL)
    assert {layer.id for layer in layers.LAYERS} >= set(layers.QUICK)


def test_every_model_has_a_source_and_layers() -> None:
    assert {layer.model for layer in layers.LAYERS} == set(layers.SOURCES)
    assert len({layer.id for layer in layers.LAYERS}) == len(layers.LAYERS)


def test_sizes_of_grouped_queries() -> None:
    by_id = {layer.id: layer for layer in layers.LAYERS}
    assert (by_id["llama-3-8b/qkv"].outputs, by_id["llama-3-8b/qkv"].inputs) == (6144, 4096)
    assert by_id["qwen2.5-7b/projections"].heads == (28, 4, 128)
    assert by_id["qwen2.5-7b/qkv"].outputs == 4608
    assert by_id["bert-base/qkv"].outputs == 2304


def test_layers_of_equal_size_are_measured_once() -> None:
    found = layers.merged(layers.choose(["bert-base", "vit-b16", "mixer-b16/channel-up"]))
    stands = {layer.id: ids for layer, ids in found.items()}
    assert stands["bert-base/up"] == ["bert-base/up", "vit-b16/up", "mixer-b16/channel-up"]
    assert stands["vit-b16/head"] == ["vit-b16/head"]
    assert len(found) == 5


def test_a_pattern_that_does_not_fit_says_why() -> None:
    runs = Compression.parse("128:1:4x16")
    assert runs.misfit(768, 768) == ""
    assert "1000 outputs" in runs.misfit(1000, 768)
    assert "196 inputs" in runs.misfit(384, 196)
    assert Compression.parse("int8").misfit(1000, 196) == ""


def test_options_become_a_selection() -> None:
    found = select(shapes="bert-base/up", m="16,1,16", patterns="int8", dtypes="fp32", device="cpu")
    assert [layer.id for layer in found.layers] == ["bert-base/up"]
    assert list(found.rows) == [1, 16]
    assert found.dtypes == ["fp32"]
    quick = select(quick=True, device="cpu")
    assert quick.effort.placements * quick.effort.most < found.effort.placements * 16
    assert len(quick.layers) == len(layers.QUICK)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shapes": "lama-3-8b"}, "did you mean 'llama-3-8b'"),
        ({"shapes": "zzzz"}, "models are llama-3-8b"),
        ({"shapes": "bert-base,,vit-b16"}, "between two commas"),
        ({"m": "0"}, "'0' is no number of rows"),
        ({"m": "1,many"}, "'many' is no number of rows"),
        ({"dtypes": "fp8"}, "'fp8' is none of fp32, fp16, bf16"),
        ({"patterns": "3:4:4"}, "no pattern"),
        ({"device": "tpu"}, "cpu, cuda or auto"),
        ({"budget": 0.0}, "positive"),
    ],
)
def test_what_means_nothing_is_refused(options: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        select(**{"device": "cpu", **options})  # type: ignore[arg-type]
