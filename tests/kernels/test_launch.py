"""Which config is chosen, and how measured ones are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from esper_kernels import launch, measured
from esper_kernels.config import Config, Problem
from esper_kernels.launch import choose, rule_of_thumb

CONFIGS = (
    Config(16, 128, 64),
    Config(16, 32, 64),
    Config(16, 32, 64, split=4),
    Config(64, 64, 64),
    Config(128, 128, 64),
    Config(128, 256, 64, capability=90),
)


def problem(m: int, n: int = 4096, rows: int | None = None) -> Problem:
    return Problem("vnm_linear", m, n, 4096, torch.bfloat16, "128x16:64", rows)


def rule(m: int, n: int = 4096, rows: int | None = None, capability: int = 90) -> Config:
    return rule_of_thumb(problem(m, n, rows), CONFIGS, capability, processors=132)


def test_many_outputs_take_wide_tiles_and_few_take_narrow_or_split_ones() -> None:
    assert rule(1, n=16384) == CONFIGS[0]
    assert rule(1, n=4096) == CONFIGS[1]
    assert rule(1, n=1024) == CONFIGS[2]


def test_tiles_are_as_high_as_the_rows_ask_for() -> None:
    assert {rule(m).block_m for m in (1, 5, 16)} == {16}
    assert {rule(m).block_m for m in (17, 64)} == {64}
    assert rule(4096) == CONFIGS[5]
    assert rule(4096, n=128).block_m == 64, "128 high, there would be too few"


def test_a_tile_does_not_cross_a_group_nor_run_where_it_does_not_fit() -> None:
    assert rule(4096, rows=128) == CONFIGS[4]
    assert rule(1, n=16384, rows=32) == CONFIGS[1]
    assert rule(1, rows=7).block_n == 32, "none fits: the one that wastes least"
    assert rule(4096, capability=80) == CONFIGS[4]


def test_a_problem_is_known_by_its_class_of_shapes() -> None:
    assert problem(5).key == problem(8).key == "vnm_linear bfloat16 128x16:64 m8 n4096 k4096"
    assert problem(9).key != problem(8).key
    assert problem(1).shape_class.startswith("m1 ")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured._load.cache_clear()
    choose.cache_clear()
    return tmp_path / "esper" / "kernels"


def test_what_was_measured_is_found_again(cache: Path) -> None:
    device = torch.device("cpu")
    assert choose(problem(1), CONFIGS, device) != CONFIGS[2]
    measured.keep(problem(1), CONFIGS, "cpu", CONFIGS[2])
    measured.keep(problem(4), CONFIGS, "cpu", CONFIGS[0])
    measured._load.cache_clear()
    choose.cache_clear()
    assert choose(problem(1), CONFIGS, device) == CONFIGS[2]
    assert choose(problem(3), CONFIGS, device) == CONFIGS[0]
    assert measured.recall(problem(1), CONFIGS[:3], "cpu") is None, "another choice"
    assert measured.recall(problem(1), CONFIGS, "other") is None, "another device"
    assert [file.suffix for file in cache.iterdir()] == [".json"]


def test_a_file_that_is_no_table_counts_as_none(cache: Path) -> None:
    cache.mkdir(parents=True)
    for text in ("{", "[]", '{"key": {"block_q": 1}}'):
        measured._file("cpu", CONFIGS).write_text(text)
        measured._load.cache_clear()
        assert measured.recall(problem(1), CONFIGS, "cpu") is None
    measured.keep(problem(1), CONFIGS, "cpu", CONFIGS[0])
    assert measured.recall(problem(1), CONFIGS, "cpu") == CONFIGS[0]


def test_a_shipped_table_comes_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured.keep(problem(1), CONFIGS, "cpu", CONFIGS[2])
    monkeypatch.setattr(launch, "shipped", lambda name: {problem(1).key: CONFIGS[0]})
    assert choose(problem(1), CONFIGS, torch.device("cpu")) == CONFIGS[0]


def test_no_table_is_shipped_before_something_was_measured() -> None:
    assert launch.shipped("NVIDIA H100 80GB HBM3") == {}


def test_tables_go_through_json() -> None:
    table = {problem(1).key: CONFIGS[5]}
    assert measured.read_table(json.loads(json.dumps(measured.write_table(table)))) == table


def test_measuring_needs_a_device() -> None:
    from esper_kernels.autotune import tune

    with pytest.raises(ValueError, match="measured on a CUDA device"):
        tune(problem(1), CONFIGS, torch.device("cpu"), lambda config: None)
