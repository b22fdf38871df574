"""Pages of storyboards: figures over paired seeds, as text and as HTML."""

from __future__ import annotations

import math
import re

import pytest

from esper.demo.figures import smooth
from esper.demo.page import Arm, Curve, Excerpt, Mark, Page, Table, median_curve
from esper.demo.paired import Paired, quartiles
from esper.report.storyboard import render
from tests.report.parsing import Page as Parsed

HOSTILE = "<script>window.broken=1</script>"


def _page() -> Page:
    arm = Arm(f"grown {HOSTILE}", (0.9, 0.8, 0.7), (1.0, 2.0, 3.0), (10, 20, 30), (1, 2, 9), 1)
    return Page(
        stage="stage1",
        claim="growth helps",
        holds=True,
        finding=f"it does {HOSTILE}",
        metric="accuracy",
        arms=(arm,),
        pairs=(Paired("with minus without", (0.1, 0.2, -0.05, 0.0)),),
        tables=(Table("Every seed", ("seed", "accuracy"), (("0", "0.9"), ("1", HOSTILE))),),
        curves=(
            Curve("grown", ((0.0, 2.0), (1.0, math.nan), (2.0, 1.0))),
            Curve("plain", ((0.0, 2.0), (2.0, 1.5))),
        ),
        marks=(Mark(1, f"planted {HOSTILE}", "ABCD1234"),),
        excerpts=(Excerpt("esper why", f"because\n  {HOSTILE}"),),
        notes=("a note",),
        command="esper demo stage1",
    )


def test_text_holds_every_figure() -> None:
    text = _page().text()
    assert text.startswith("stage1: growth helps\n\nshown: it does")
    row = next(line for line in text.splitlines() if "grown" in line and "of 3" in line)
    assert re.search(r"0\.8\s+0\.75\s+2\s+20\s+2\s+1 of 3$", row)
    for part in ("with minus without: median +0.05", "Every seed", "esper why", "note: a note"):
        assert part in text


def test_html_is_well_formed_inert_and_the_same_every_time() -> None:
    written = render(_page(), {"torch": "2"})
    assert written == render(_page(), {"torch": "2"})
    parsed = Parsed(written)
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert parsed.count("script") == 1  # the page's own
    assert parsed.count("polyline") == 4  # two curves, wide and narrow
    for part in ("ABCD1234", "grown", "with minus without", "a note", "esper demo stage1"):
        assert part in parsed.text
    assert set(re.findall(r"https?://[^\"'\s<]+", written)) <= {"http://www.w3.org/2000/svg"}


def test_a_page_without_pictures_is_a_page() -> None:
    bare = Page("stage0", "claim", False, "nothing", "accuracy")
    assert "not shown: nothing" in bare.text()
    assert "nothing" in Parsed(render(bare)).text


# -- statistics ------------------------------------------------------------------------------------


def test_paired_figures() -> None:
    pair = Paired("x", (0.1, 0.3, 0.2, -0.1, 0.0, 0.4))
    assert pair.median == pytest.approx(0.15)
    assert (pair.won, pair.lost) == (4, 1)
    assert pair.p == pytest.approx(6 / 32)
    low, high = pair.interval
    assert low <= pair.median <= high
    assert pair.interval == pair.interval
    assert "4 better, 1 worse, 1 equal" in pair.sentence()


def test_lower_may_be_better() -> None:
    pair = Paired("loss", (-0.1, -0.2, 0.3), higher=False)
    assert (pair.won, pair.lost) == (2, 1)


def test_one_seed_claims_nothing() -> None:
    assert Paired("x", (0.2,)).p == 0.5
    assert Paired("x", (0.0,)).p == 1.0


def test_quartiles_and_curves() -> None:
    assert quartiles([4.0, 1.0, 3.0, 2.0]) == (2.5, 1.75)
    runs = [[(0.0, 1.0), (1.0, 5.0)], [(0.0, 3.0), (1.0, 7.0), (2.0, 9.0)]]
    assert median_curve("m", runs).points == ((0.0, 2.0), (1.0, 6.0))
    spiky = [(float(i), 100.0 if i == 5 else 1.0) for i in range(11)]
    assert {y for _, y in smooth(spiky)} == {1.0}
