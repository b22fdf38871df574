"""The picture shows each axis at its size, what was cut, and why some may not be."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from esper import trace
from esper.report.anatomy_layout import block_of, common, layout
from esper.report.anatomy_svg import Shares, draw, from_model
from esper.report.data import AxisRow
from esper.report.facts import facts
from tests.models import MODELS
from tests.report import sample

SVG = "{http://www.w3.org/2000/svg}"


def widths(picture: str, style: str) -> list[float]:
    """Widths of the boxes of a style below the legend, whose swatches are 12 wide."""
    found = [
        float(box.attrib["width"])
        for box in ET.fromstring(picture).iter(f"{SVG}rect")
        if style in box.attrib.get("class", "").split()
    ]
    return found[1:]


def neurons(path: str, size: int, **more: object) -> AxisRow:
    return AxisRow.model_validate(
        {"id": f"axis:{path}/neurons", "kind": "neurons", "size": size, "modules": (path,), **more}
    )


def test_widths_are_proportional_to_units() -> None:
    picture = draw([neurons("a.up", 100), neurons("b.up", 400)])
    small, large = widths(picture, "es-fill")
    assert large == pytest.approx(4 * small, rel=1e-3)


def test_lines_are_as_long_as_shares() -> None:
    rows = [neurons("net.0.up", 10), neurons("net.1.up", 10), neurons("net.2.up", 20)]
    shares = Shares({"net.0": 0.1, "net.1": 0.2, "net.2": 0.6}, {"net.2": 0.3})
    picture = draw(rows, shares=shares, facts="3 parameters")
    together, apart = widths(picture, "es-share")  # 0 and 1 are alike and drawn as one
    (timed,) = widths(picture, "es-time")
    assert apart == pytest.approx(0.6 / 0.3 * together, rel=0.02)  # a stack is 6 pixels narrower
    assert timed == pytest.approx(apart / 2, rel=1e-3)
    assert "2 alike, 30.0% of parameters" in picture
    assert "60.0% of parameters, 30.0% of time" in picture
    assert "3 parameters" in picture
    assert "es-share" not in draw(rows).split("</style>")[1]


def test_cut_part_is_hatched_at_its_width() -> None:
    picture = draw([neurons("a.up", 400)], [neurons("a.up", 100)])
    (kept,) = widths(picture, "es-fill")
    (cut,) = widths(picture, "es-cut")
    assert cut == pytest.approx(3 * kept, rel=1e-3)
    assert "300 units were cut from 1 axes" in picture
    assert "400 \N{RIGHTWARDS ARROW} 100" in picture


def test_cut_heads_are_hatched_where_they_were() -> None:
    bars = [
        b
        for g in layout(sample.axes(), sample.axes(heads=(0, 2)))
        for k in g.blocks
        for b in k.bars
        if b.kind == "heads"
    ]
    assert [bar.cut for bar in bars] == [frozenset(), frozenset({1, 3})]
    picture = draw(sample.axes(), sample.axes(heads=(0, 2)))
    assert len(widths(picture, "es-cut")) == 2


def test_growth_and_new_and_removed_axes_show() -> None:
    before = [neurons("a.up", 100), neurons("b.up", 50)]
    after = [neurons("a.up", 150), neurons("c.up", 70)]
    picture = draw(before, after)
    assert len(widths(picture, "es-grown")) == 2
    assert len(widths(picture, "es-cut")) == 1
    assert "100 \N{RIGHTWARDS ARROW} 150" in picture
    assert "50 \N{RIGHTWARDS ARROW} 0" in picture
    assert ">new<" in picture


def test_fixed_axes_are_outlined_and_say_why() -> None:
    picture = draw([neurons("head.out", 10, frozen="graph output (contract)")])
    assert len(widths(picture, "es-fixed")) == 1
    assert "fixed: graph output (contract)</title>" in picture


def test_alike_layers_collapse_with_their_count() -> None:
    deep = [neurons(f"net.layers.{i}.up", 4096) for i in range(96)]
    (group,) = layout(deep, None)
    assert group.alike
    assert len(group.blocks) == 96
    picture = draw(deep)
    assert "96 alike" in picture
    assert len(widths(picture, "es-fill")) == 1


def test_unlike_layers_become_columns_when_many() -> None:
    deep = [neurons(f"net.layers.{i}.up", 4096) for i in range(96)]
    cut = [neurons(f"net.layers.{i}.up", 4096 - 8 * i) for i in range(96)]
    (group,) = layout(deep, cut)
    assert not group.alike
    picture = draw(deep, cut, standalone=False)
    assert "96 blocks" in picture
    assert len(widths(picture, "es-fill")) == 96
    height = float(ET.fromstring(picture).attrib["height"])
    assert height < 200
    few = layout(deep[:6], cut[:6])
    assert len(few) == 6


def test_blocks_and_common_prefixes() -> None:
    assert common(["net.a.b", "net.a.c", "net.d"]) == ("net",)
    assert common(["net", "net"]) == ()
    assert common([]) == ()
    assert block_of(("encoder", "layer", "3", "mlp", "up")) == ("encoder", "layer", "3")
    assert block_of(("enc1", "0")) == ("enc1",)
    assert block_of(("pooler", "dense")) == ("pooler",)
    assert block_of(("fc",)) == ("fc",)


@pytest.mark.parametrize("width", [344.0, 880.0])
def test_standalone_file_is_xml_and_described(width: float) -> None:
    picture = draw(sample.hostile().before.axes, width=width)
    root = ET.fromstring(picture)
    assert root.tag == f"{SVG}svg"
    assert root.attrib["role"] == "img"
    ids = {e.attrib["id"] for e in root.iter() if "id" in e.attrib}
    assert set(root.attrib["aria-labelledby"].split()) <= ids
    assert set(re.findall(r"url\(#([^)]*)\)", picture)) <= ids
    assert not list(root.iter(f"{SVG}script"))
    assert root.find(f"{SVG}style") is not None
    assert ET.fromstring(draw([], standalone=False)).find(f"{SVG}style") is None
    for label in root.iter(f"{SVG}text"):
        assert 0 <= float(label.attrib["x"]) <= width


@pytest.mark.parametrize("name", ["bert", "resnet_basic"])
def test_real_models(name: str) -> None:
    module, args, kwargs = MODELS[name]()
    model = trace(module.eval(), args, kwargs)
    rows = from_model(model)
    tensors = dict(model.named_parameters())
    assert {row.id for row in rows} <= model.anatomy.axes.keys()
    held = {module for row in rows for module in row.modules}
    assert held <= {tensor.rpartition(".")[0] for tensor in tensors}
    found = facts(model)
    assert found.parameters == sum(p.numel() for p in module.parameters())
    assert 0 < found.layers <= found.operations
    drawn = [b.id for g in layout(rows, None) for k in g.blocks for b in k.bars]
    assert sorted(drawn) == sorted(row.id for row in rows)
    ET.fromstring(draw(rows))
