"""The plot puts figures where they belong and says them in words too."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from esper.report.data import Point, Quality
from esper.report.plot_svg import plot

SVG = "{http://www.w3.org/2000/svg}"


def point(label: str, speedup: float, quality: float, accepted: bool = True) -> Point:
    return Point(
        label=label,
        speedup=speedup,
        lower=speedup - 0.1,
        upper=speedup + 0.1,
        quality=quality,
        accepted=accepted,
    )


def circles(picture: str) -> list[ET.Element]:
    return list(ET.fromstring(picture).iter(f"{SVG}circle"))


def test_faster_is_right_and_better_is_up() -> None:
    worse, better = circles(plot([point("a", 1.2, 0.5, False), point("b", 1.6, 0.9)]))
    assert float(better.attrib["cx"]) > float(worse.attrib["cx"])
    assert float(better.attrib["cy"]) < float(worse.attrib["cy"])
    assert (worse.attrib["class"], better.attrib["class"]) == ("es-no", "es-yes")


def test_positions_agree_with_the_ticks() -> None:
    picture = plot([point("a", 1.5, 0.5), point("b", 2.0, 0.6)])
    root = ET.fromstring(picture)
    tick = next(t for t in root.iter(f"{SVG}text") if t.text == "\N{MULTIPLICATION SIGN}2.0")
    assert float(tick.attrib["x"]) == pytest.approx(
        float(circles(picture)[1].attrib["cx"]), abs=0.1
    )


def test_every_point_says_its_figures() -> None:
    picture = plot([point("<b>", 1.5, 0.5)], Quality(metric="F1", before=0.6, floor=0.55))
    titles = [t.text for t in ET.fromstring(picture).iter(f"{SVG}title")]
    assert "<b>: \N{MULTIPLICATION SIGN}1.50 [1.40, 1.60], 0.500, accepted" in titles
    assert "as given" in titles
    assert "budget: at least 0.550" in picture


@pytest.mark.parametrize("width", [344.0, 880.0])
@pytest.mark.parametrize(
    "points",
    [
        [],
        [point("only", 1.0, 0.0)],
        [point("same", 1.5, 0.5)] * 30,
        [point("far", 1e6, -1e9), point("near", 1.0, 1e-9)],
        [point("none", float("nan"), 0.5), point("inf", float("inf"), 0.5)],
        [Point(label="open", speedup=1.2, lower=1.1, upper=float("inf"), quality=1, accepted=True)],
    ],
)
def test_odd_data_stay_inside(points: list[Point], width: float) -> None:
    root = ET.fromstring(plot(points, Quality(before=0.5), width=width))
    height = float(root.attrib["height"])
    for mark in root.iter(f"{SVG}circle"):
        assert 0 <= float(mark.attrib["cx"]) <= width
        assert 0 <= float(mark.attrib["cy"]) <= height
    for line in root.iter(f"{SVG}line"):
        if line.attrib.get("class", "").startswith("es-line"):
            continue
        assert 0 <= float(line.attrib["x1"]) <= width
        assert 0 <= float(line.attrib["x2"]) <= width
