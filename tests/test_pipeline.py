"""Pipelines: round trip, canonical text, every error with its caret, gating units, presets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper._options import options
from esper.errors import UsageError
from esper.passbase import Aim, Pass, passes
from esper.pipeline import PRESETS, Item, Pipeline, describe, parse, preset, units
from esper_passes.repeat import Repeat


@dataclass(frozen=True)
class Cut(Pass):
    """Cut something.

    Longer words on cutting.
    """

    name: ClassVar[str] = "cut"

    ratio: float = field(default=0.3, metadata={"doc": "share of the units to cut"})
    axes: str = "any"
    align: Literal["auto"] | int = "auto"
    saliency: Literal["magnitude", "taylor"] = "magnitude"
    per_layer: bool = False
    target_speedup: float | None = None
    units: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    pattern: tuple[int, int] = (2, 4)
    label: str | int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio must lie between 0 and 1, not {self.ratio}")
        if self.per_layer and self.target_speedup is not None:
            raise ValueError("per-layer and target-speedup exclude each other")


@dataclass(frozen=True)
class Need(Pass):
    """Has one option without default."""

    name: ClassVar[str] = "need"
    aim = "repair"
    what: Literal[1, 2, "many"]
    hook: Callable[[], None] | None = None


@dataclass(frozen=True)
class Tidy(Pass):
    """Clean up."""

    name: ClassVar[str] = "tidy"
    aim = "cleanup"


@dataclass(frozen=True)
class Ready(Pass):
    """Makes ready, unless it is told to be fast."""

    name: ClassVar[str] = "ready"
    aim = "prepare"
    fast: bool = field(default=False, metadata={"doc": "be judged by itself"})

    def judged_as(self) -> Aim:
        return "speed" if self.fast else self.aim


@dataclass(frozen=True)
class Void(Pass):
    """Makes zeros."""

    name: ClassVar[str] = "void"
    aim = "prepare"
    for_kernels = True


@dataclass(frozen=True)
class Lower(Pass):
    """Puts kernels in."""

    name: ClassVar[str] = "lower"
    lowers = True


TABLE: Mapping[str, type[Pass]] = {p.name: p for p in (Cut, Need, Tidy, Ready, Void, Lower, Repeat)}


def read(text: str) -> Pipeline:
    return parse(text, TABLE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("  ", ()),
        ("cut", (Cut(),)),
        ("cut{}", (Cut(),)),
        (" cut , tidy ", (Cut(), Tidy())),
        ("cut{ratio=30%}", (Cut(ratio=0.3),)),
        ("cut{ratio=33.3%}", (Cut(ratio=0.333),)),
        ("cut{ratio=2.5e1%}", (Cut(ratio=0.25),)),
        ("cut{ratio=.5 align=8}", (Cut(ratio=0.5, align=8),)),
        ("cut{align=auto, per-layer=true}", (Cut(per_layer=True),)),
        ("cut{target-speedup=2}", (Cut(target_speedup=2.0),)),
        ("cut{target-speedup=none}", (Cut(),)),
        ("cut{units=[1, 2] names=[]}", (Cut(units=(1, 2)),)),
        ('cut{names=["a b",c.0/x,"[7]"]}', (Cut(names=("a b", "c.0/x", "[7]")),)),
        ("cut{axes=*.attention/heads}", (Cut(axes="*.attention/heads"),)),
        ("cut{label=none}", (Cut(),)),
        ("cut{label=7}", (Cut(label=7),)),
        ('cut{label="none"}', (Cut(label="none"),)),
        ('cut{label="7"}', (Cut(label="7"),)),
        ("cut{pattern=[4,8]}", (Cut(pattern=(4, 8)),)),
        ("need{what=2}\n,\tneed{what=many}", (Need(2), Need("many"))),
    ],
)
def test_parse(text: str, expected: tuple[Pass, ...]) -> None:
    assert read(text) == Pipeline(tuple(Item(p) for p in expected))
    assert read(read(text).text()) == read(text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("cut{ ratio=30% }", "cut"),
        ("cut{units=[ 1,2 ],ratio=10%}", "cut{ratio=0.1 units=[1,2]}"),
        ('cut{axes="any" label="x y"}', 'cut{label="x y"}'),
        ("repeat{n=3}(cut , need{what=1})", "repeat{n=3}(cut,need{what=1})"),
        ("repeat(repeat(tidy),cut)", "repeat(repeat(tidy),cut)"),
    ],
)
def test_canonical_text(text: str, canonical: str) -> None:
    assert read(text).text() == canonical
    assert str(read(text)) == canonical


def test_nesting() -> None:
    inner = Pipeline((Item(Cut(ratio=0.1)), Item(Need(1))))
    expected = Pipeline((Item(Repeat(3), inner),))
    assert read("repeat{n=3}(cut{ratio=0.1},need{what=1})") == expected


floats = st.floats(0, 1, exclude_min=True, exclude_max=True)
cuts = st.builds(
    Cut,
    ratio=floats,
    axes=st.text(),
    align=st.integers() | st.just("auto"),
    saliency=st.sampled_from(["magnitude", "taylor"]),
    target_speedup=st.none() | st.floats(allow_nan=False),
    units=st.lists(st.integers()).map(tuple),
    names=st.lists(st.text()).map(tuple),
    pattern=st.tuples(st.integers(), st.integers()),
    label=st.none() | st.integers() | st.text(),
)
plain = cuts | st.builds(Tidy) | st.builds(Need, what=st.sampled_from([1, 2, "many"]))
items = st.recursive(
    plain.map(Item),
    lambda inner: st.builds(
        lambda n, inside: Item(Repeat(n), Pipeline(tuple(inside))),
        st.integers(1, 9),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=6,
)


@given(st.lists(items, max_size=4))
def test_parse_of_text_is_identity(parts: list[Item]) -> None:
    original = Pipeline(tuple(parts))
    text = original.text()
    assert text.isprintable()
    assert read(text) == original
    assert read(text).text() == text


@given(st.text(alphabet='cut{}()[]=,"\\ \n0.%-epan', max_size=30))
def test_any_text_parses_or_complains(text: str) -> None:
    try:
        result = read(text)
    except UsageError as error:
        message = str(error)
    else:
        message = "^"
        assert read(result.text()) == result
    assert "^" in message


@pytest.mark.parametrize(
    ("text", "message", "under"),
    [
        ("cutt", "unknown pass 'cutt'; did you mean 'cut'?", "cutt"),
        (
            "tidy,zzzzz",
            "unknown pass 'zzzzz'; known are cut, need, tidy, ready, void, lower, repeat",
            "zzzzz",
        ),
        ("repeat(tyd)", "unknown pass 'tyd'; did you mean 'tidy'?", "tyd"),
        ("cut{ration=1}", "unknown option 'ration' of cut; did you mean 'ratio'?", "ration"),
        ("cut{per_layer=true}", "of cut; did you mean 'per-layer'?", "per_layer"),
        ("tidy{n=1}", "unknown option 'n' of tidy; tidy has none", "n"),
        ("cut{ratio=0.1 ratio=0.2}", "option ratio of cut is given twice", "ratio=0.2"),
        ("cut{ratio=abc}", "option ratio of cut takes a number (0.3 or 30%), not abc", "abc"),
        ("cut{ratio=nan}", "takes a number", "nan"),
        ("cut{ratio=1e999}", "takes a number", "1e999"),
        ('cut{ratio="0.1"}', 'takes a number (0.3 or 30%), not "0.1"', '"0.1"'),
        ("cut{ratio=1.5}", "cut: ratio must lie between 0 and 1, not 1.5", "1.5"),
        ("cut{per-layer=true target-speedup=2}", "exclude each other", "cut"),
        ("cut{per-layer=yes}", "takes true or false, not yes", "yes"),
        ("cut{saliency=taylr}", "takes one of magnitude, taylor, not taylr", "taylr"),
        ("cut{align=8.0}", "takes auto or an integer, not 8.0", "8.0"),
        ("cut{units=3}", "takes a list such as [x,y], each an integer, not 3", "3"),
        ("cut{units=[1,x]}", "takes an integer, not x", "[1,x]"),
        ("cut{pattern=[1,2,3]}", "takes a list [an integer, an integer], not [1,2,3]", "[1,2,3]"),
        ("cut{ratio=[1]}", "takes a number (0.3 or 30%), not [1]", "[1]"),
        ("need{hook=x what=1}", "takes a Callable (Python only) or none, not x", "x"),
        ("need", "need needs option what: need{what=...}", "need"),
        ("repeat{n=0}(cut)", "repeat: n must be at least 1, not 0", "0"),
        ("repeat", "repeat needs inner passes: repeat(PASS,...)", "repeat"),
        ("repeat()", "repeat needs inner passes", "()"),
        ("cut(tidy)", "cut takes no inner passes", "(tidy)"),
        ("cut,,tidy", "the name of a pass is expected, but ',' is here", ",tidy"),
        (",cut", "the name of a pass is expected", ","),
        ("cut}", "'}' is not expected after a pass", "}"),
        ("cut tidy", "'t' is not expected after a pass", "tidy"),
        ("cut{ratio 0.1}", "'=' and a value are expected after option ratio of cut", "0.1"),
        ("cut{ratio=}", "a value of option ratio is expected, but '}' is here", "}"),
        ("cut{=1}", "an option of cut or '}' is expected", "="),
        ("cut{ratio=0.1,}", "an option of cut is expected after ','", "}"),
        ("cut{units=[1;2]}", "takes an integer, not 1;2", "[1;2]"),
        ("cut{units=[1 2]}", "',' or ']' is expected in the list, but '2' is here", "2"),
        ('cut{axes="a}', "this string is not closed", '"a}'),
        (r'cut{axes="\q"}', "this string has an unknown escape", r'"\q"'),
        ("repeat(cut tidy)", "',' or ')' is expected among the inner passes", "tidy"),
        ("tidy,\ncutt", "unknown pass 'cutt'", "cutt"),
    ],
)
def test_error_points_at_the_place(text: str, message: str, under: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(text)
    first, line, carets = str(caught.value).split("\n")
    assert message in first
    column = carets.index("^")
    assert line[column:].startswith(under) or line[column:] == under
    assert carets.strip("^ ") == ""
    assert line.strip() in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cut,", "the name of a pass is expected, but the pipeline ends here"),
        ("cut{", "an option of cut or '}' is expected, but the pipeline ends here"),
        ("cut{ratio=", "a value of option ratio is expected, but the pipeline ends here"),
        ("cut{units=[1", "',' or ']' is expected in the list, but the pipeline ends here"),
        ("repeat(cut", "',' or ')' is expected among the inner passes of repeat"),
    ],
)
def test_error_at_the_end_points_behind_the_text(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(text)
    first, line, carets = str(caught.value).split("\n")
    assert message in first
    assert carets == " " * len(line) + "^"


def test_nesting_and_list_depth_are_bounded() -> None:
    with pytest.raises(UsageError, match="passes are nested more than 16 deep"):
        read("repeat(" * 5000 + "cut" + ")" * 5000)
    with pytest.raises(UsageError, match="lists are nested more than 16 deep"):
        read("cut{units=" + "[" * 5000)
    assert read("repeat(" * 15 + "cut" + ")" * 15).text().count("repeat") == 15


def test_long_pipeline_is_shown_around_the_place() -> None:
    with pytest.raises(UsageError) as caught:
        read("tidy," * 500 + "cutt" + ",tidy" * 500)
    _, line, carets = str(caught.value).split("\n")
    assert len(line) < 110
    assert line[carets.index("^") :].startswith("cutt")
    assert carets.strip() == "^^^^"


def test_carets_account_for_wide_characters() -> None:
    with pytest.raises(UsageError) as caught:
        read("cut{axes=模型 ratio=x}")
    assert str(caught.value).split("\n")[2] == "  " + " " * 20 + "^"


def test_value_outside_its_type_has_no_text() -> None:
    wrong: Any = [1, 2]
    with pytest.raises(UsageError, match="option units of cut cannot be written as text"):
        Pipeline((Item(Cut(units=wrong)),)).text()
    with pytest.raises(UsageError, match="cannot be written"):
        Pipeline((Item(Cut(target_speedup=math.nan)),)).text()


def test_items_are_checked_in_python_too() -> None:
    with pytest.raises(UsageError, match="repeat needs inner passes"):
        Item(Repeat())
    with pytest.raises(UsageError, match="cut takes no inner passes"):
        Item(Cut(), Pipeline((Item(Tidy()),)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("tidy", ["tidy"]),
        ("cut,cut", ["cut", "cut"]),
        ("tidy,tidy,cut", ["tidy,tidy,cut"]),
        ("cut,tidy", ["cut,tidy"]),
        ("cut,tidy,cut", ["cut", "tidy,cut"]),
        ("cut,need{what=1},cut", ["cut,need{what=1}", "cut"]),
        ("cut,tidy,need{what=1},cut", ["cut,tidy,need{what=1}", "cut"]),
        ("need{what=1},cut", ["need{what=1}", "cut"]),
        ("tidy,need{what=1},tidy,cut", ["tidy,need{what=1}", "tidy,cut"]),
        ("repeat(cut,tidy),tidy", ["repeat(cut,tidy),tidy"]),
        ("cut,repeat(need{what=1})", ["cut,repeat(need{what=1})"]),
        ("repeat(tidy),cut", ["repeat(tidy),cut"]),
        ("ready,cut", ["ready,cut"]),
        ("cut,ready", ["cut", "ready"]),
        ("cut,ready,cut", ["cut", "ready,cut"]),
        ("ready,tidy,ready,cut", ["ready,tidy,ready,cut"]),
        ("cut,tidy,ready", ["cut", "tidy,ready"]),
        ("cut,ready,need{what=1},cut", ["cut", "ready,need{what=1},cut"]),
        ("cut,ready,need{what=1},need{what=2}", ["cut", "ready,need{what=1},need{what=2}"]),
        ("repeat(ready),cut", ["repeat(ready),cut"]),
        ("ready{fast=true},cut", ["ready{fast=true}", "cut"]),
        ("void,cut", ["void,cut"]),
        ("void,lower,cut", ["void,lower", "cut"]),
        ("void,cut,lower,cut", ["void,cut,lower", "cut"]),
        ("repeat(void),cut,tidy,repeat(lower)", ["repeat(void),cut,tidy,repeat(lower)"]),
        ("void,need{what=1},cut,lower", ["void,need{what=1},cut,lower"]),
        ("void,lower,cut,lower", ["void,lower", "cut", "lower"]),
        ("ready,cut,lower", ["ready,cut", "lower"]),
    ],
)
def test_units(text: str, expected: list[str]) -> None:
    groups = units(read(text))
    assert [unit.text() for unit in groups] == expected
    assert ",".join(unit.text() for unit in groups) == read(text).text()


def test_unit_aim_and_steps() -> None:
    (unit,) = units(read("tidy,repeat{n=2}(cut,repeat{n=2}(need{what=1}))"))
    assert unit.aim == "speed"
    names = [step.name for step in unit.steps()]
    assert names == ["tidy", *["cut", "need", "need"] * 2]
    assert units(read("tidy,need{what=1}"))[0].aim == "repair"
    assert units(read("tidy"))[0].aim == "cleanup"
    assert units(read("tidy,ready"))[0].aim == "prepare"
    assert units(read("ready,need{what=1}"))[0].aim == "repair"


def test_every_preset_parses_with_the_installed_passes() -> None:
    for level, text in PRESETS.items():
        assert preset(level).text() == text
    assert [unit.text() for unit in units(preset("O1"))][-1].endswith("select-backend")


def test_unknown_level() -> None:
    with pytest.raises(UsageError, match="unknown level -O9; known are -O0, -O1, -O2, -O3"):
        preset("O9")


def test_installed_passes_are_named_as_registered_and_described() -> None:
    for name, cls in passes().items():
        assert cls.name == name
        text = describe(cls)
        for option in options(cls).values():
            assert f"  {option.name} = " in text
            assert option.doc, f"option {option.name} of {name} says nothing"


def test_describe() -> None:
    text = describe(Cut)
    assert text.startswith("cut: Cut something.\n\nLonger words on cutting.\n")
    assert "speed: kept only when it pays at the gate" in text
    assert "  ratio = a number (0.3 or 30%); default 0.3\n      share of the units to cut" in text
    assert "  target-speedup = a number (0.3 or 30%) or none; default none" in text
    assert "  what = one of 1, 2, many; required" in describe(Need)
    assert describe(Tidy).endswith("no options")
    assert "prepare: no faster by itself" in describe(Ready)
    assert "combinator of inner passes" in describe(Repeat)
