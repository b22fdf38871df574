"""From made-up times to cells, documents, tables, pictures and comparisons."""

from __future__ import annotations

import json
import random
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import readme
from esper.errors import InputError, UsageError
from esper_kernel_bench.calibration import raised
from esper_kernel_bench.cells import cells, finished
from esper_kernel_bench.command import select
from esper_kernel_bench.comparison import compare
from esper_kernel_bench.document import FORMAT, Document, document, dumps, read
from esper_kernel_bench.pictures import pictures
from esper_kernel_bench.printing import show, show_comparison
from esper_kernel_bench.sampling import Effort, Group
from esper_kernel_bench.suite import Findings
from esper_kernels.roofline import Device, Work
from tests.kernels.bench.fakes import LAYER, FakeClock, contender, problem

ROOF = Device("measured", {"fp32": 1000.0}, 5000.0, 0.01, "made up")


def noisy(seconds: float, seed: int) -> Any:
    """A script of times around a median."""
    rng = np.random.default_rng(seed)
    return lambda visit: seconds * float(np.exp(rng.normal(0, 0.005))) if visit >= 0 else seconds


def findings(ours: float = 0.5, base: float = 1.0, seed: int = 0) -> Findings:
    """One of ours beside the dense layer and three peers, one of them of another density."""
    group = Group(
        problem(),
        [
            contender("dense", noisy(base, seed + 1), role="dense"),
            contender("dense, again", noisy(base, seed + 2), role="again"),
            contender("best", noisy(0.8 * base, seed + 3)),
            contender(
                "other", noisy(0.1 * base, seed + 4), compression="128x64@0.5", density=0.5
            ),
            contender("gone", 1.0, refuses="not installed"),
            contender(
                "esper vnm_linear", noisy(ours, seed + 5), role="esper",
                compression="128:1:4x16", density=0.25,
            ),
        ],
        FakeClock(),
        Effort(placements=3, seconds=60.0, least=6, most=6, longest=1e9),
        random.Random(seed),
    )  # fmt: skip
    found = Findings(None, ROOF, "none", 1)
    for rows in group.measure():
        panel = finished(LAYER, [LAYER.id, "toy/twin"], "fp32", rows)
        assert panel is not None
        found.panels.append(panel)
    found.skipped.append("toy/up fp32 4096: no time left")
    return found


def made(**options: float) -> Document:
    selection = select(shapes="bert-base/up", m="3,40", dtypes="fp32", device="cpu")
    return document(selection, findings(**options), "esper bench kernels")  # type: ignore[arg-type]


def test_a_cell_is_judged_by_the_dense_layer_and_by_the_fastest_that_applies() -> None:
    found = findings()
    small = cells(found.panels[0], None, ROOF)
    (cell,) = small
    assert (cell.op, cell.compression, cell.m) == ("vnm_linear", "128:1:4x16", 3)
    assert cell.dense.outcome == cell.best.outcome == "FAST"
    assert cell.dense.ratio == pytest.approx(2.0, rel=0.02)
    assert cell.peer == "best"  # "other" is faster, but of another density
    assert cell.best.ratio == pytest.approx(1.6, rel=0.02)
    assert cell.fraction_specification is None
    assert cell.fraction_calibrated == pytest.approx(0.3 / 0.5, rel=0.02)  # 300 of 1000 a second


def test_a_panel_without_a_dense_layer_is_none() -> None:
    group = Group(
        problem(),
        [contender("dense", 1.0, role="dense", refuses="broken"), contender("esper x", 1.0)],
        FakeClock(),
        Effort(placements=3, least=3, longest=1e9),
        random.Random(0),
    )
    assert [finished(LAYER, [], "fp32", rows) for rows in group.measure()] == [None, None]


def test_roofs_are_raised_by_what_was_reached() -> None:
    higher = raised(ROOF, [(Work(4000, 20000, "fp32"), 1.0), (Work(70, 1, "int8"), 1.0)])
    assert higher.peaks == {"fp32": 4000.0, "int8": 70.0}
    assert higher.bandwidth == 20000


def test_the_document_holds_everything_and_survives_the_file(tmp_path: Path) -> None:
    found = made()
    path = tmp_path / "k.json"
    path.write_text(dumps(found))
    back = read(path)
    assert back == json.loads(json.dumps(found))
    assert json.loads(path.read_text())["cells"]["columns"] == list(found["cells"][0])
    assert back["panels"][0]["absent"] == {"gone": "not installed"}
    assert back["panels"][0]["layers"] == ["toy/up", "toy/twin"]
    assert len(back["cells"]) == 2
    assert back["skipped"] == ["toy/up fp32 4096: no time left"]
    mine = next(c for c in back["panels"][0]["contenders"] if c["role"] == "esper")
    assert back["panels"][0]["rounds"] == [6, 6, 6]
    assert mine["log"] == pytest.approx(np.log(2), abs=0.02)
    assert 0 < mine["log_error"] < 0.02


def test_pages_can_show_the_tables() -> None:
    found = made()
    text = readme.render(found)
    assert "| dtype | op | pattern | M=3 | M=40 |" in text
    assert re.search(r"\| fp32 \| vnm_linear \| 128:1:4x16 \| ▲ 1\.\d\d \| ▲ 1\.\d\d \|", text)
    assert "128:1:4x16 | ▲ 1." in readme.render(found, {"table": "map"})
    assert "over dense" in readme.render(found, {"table": "by_pattern"})


def test_peers_stand_beside_the_dense_layer() -> None:
    best, other = made()["peers"]
    assert [best["peer"], other["peer"]] == ["best", "other, 128x64@0.5"]  # not ours
    assert [best["M=3"], best["M=40"]] == pytest.approx([1.25, 1.25], rel=0.02)
    assert other["M=3"] == pytest.approx(10, rel=0.02)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no JSON"),
        ("[]", "is no result"),
        ("{}", "is no result"),
        ('{"format": "else"}', "is no result"),
        (f'{{"format": "{FORMAT}"}}', "damaged"),
        (f'{{"format": "{FORMAT}", "cells": {{"columns": ["a"], "values": [[1, 2]]}}}}', "damaged"),
        (f'{{"format": "{FORMAT}", "cells": []}}', "damaged"),
    ],
)
def test_other_files_are_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        read(path)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read(tmp_path / "absent.json")


def test_pictures_are_well_formed_and_hold_every_cell() -> None:
    found = made()
    drawn = pictures(found)
    assert set(drawn) == {
        "heat-map-fp32-dense.svg", "heat-map-fp32-best.svg", "roofline-fp32.svg",
    }  # fmt: skip
    for picture in drawn.values():
        assert ET.fromstring(picture).tag.endswith("svg")
    assert drawn["heat-map-fp32-best.svg"].count("128:1:4x16, M ") == 2
    assert drawn["roofline-fp32.svg"].count("esper vnm_linear") == 2


def test_tables_name_who_takes_no_part(capsys: pytest.CaptureFixture[str]) -> None:
    show(made())
    text = capsys.readouterr().out
    assert "gone: not installed (2)" in text
    assert "not measured: toy/up fp32 4096: no time left" in text
    assert "FAST" in text


def test_a_change_of_ours_is_found_though_the_machine_became_slower() -> None:
    before, after = made(), made(ours=0.9, base=1.5, seed=50)
    rows = {(r["contender"], r["m"]): r for r in compare(before, after)["rows"]}
    ours = rows["esper vnm_linear | 128:1:4x16", 3]
    # 0.5 of dense before and 0.6 after: slower, while the microseconds say 0.5 to 0.9.
    assert ours["ratio"] == pytest.approx(0.5 / 0.6, rel=0.03)
    assert ours["outcome"] == "SLOW"
    assert rows["best", 3]["outcome"] == "SAME"
    assert rows["dense", 3]["outcome"] == "SLOW"
    assert rows["dense", 3]["ratio"] == pytest.approx(1 / 1.5, rel=0.03)


def test_the_same_again_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    found = compare(made(), made(seed=70))
    assert {row["outcome"] for row in found["rows"]} == {"SAME"}
    show_comparison(found)
    assert "10 SAME" in capsys.readouterr().out


def test_what_two_results_do_not_share_is_said() -> None:
    before, after = made(), made()
    after["device"] = "another"
    after["panels"] = after["panels"][:1]
    notes = " ".join(compare(before, after)["notes"])
    assert "another after" in notes
    assert "1 panels are in one of the results only" in notes
    after["panels"] = []
    with pytest.raises(UsageError, match="in common"):
        compare(before, after)
