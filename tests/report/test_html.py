"""The page: well-formed, self-contained, inert, complete, the same every time."""

from __future__ import annotations

import re

import pytest

from esper.report.data import ReportData
from esper.report.html import render
from tests.report import sample
from tests.report.parsing import Page

CASES = {
    "complete": sample.complete(),
    "hostile": sample.hostile(),
    "empty": sample.empty(),
    "refused": sample.refused(),
}


@pytest.mark.parametrize("name", CASES)
def test_page_is_well_formed_with_unique_ids(name: str) -> None:
    page = Page(render(CASES[name]))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for reference in (attributes.get("aria-labelledby") or "").split():
            assert reference in ids
        link = attributes.get("href") or ""
        assert not link or link.removeprefix("#") in ids


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_loaded_from_elsewhere(name: str) -> None:
    text = render(CASES[name])
    page = Page(text)
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "img", "image", "base", "use"}
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    addresses = set(re.findall(r"https?://[^\"'\s<]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # the name of a language, never fetched
    assert set(re.findall(r"url\(([^)]*)", text)) <= {
        f"#{prefix}-{name}"
        for prefix in ("anatomy-wide", "anatomy-narrow", "plot-wide", "plot-narrow")
        for name in ("cut", "grown")
    }
    assert "@import" not in text


def test_hostile_names_stay_text() -> None:
    text = render(sample.hostile())
    page = Page(text)
    assert page.count("script") == 1
    assert page.count("img") == 0
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert "<script>window.broken=1</script>" in page.text
    assert "\x00" not in text
    assert "\u202e" not in text
    assert "\\u202e" in page.text


def test_only_the_script_of_the_page_may_run() -> None:
    policies = [
        attributes["content"] or ""
        for tag, attributes in Page(render(sample.complete())).elements
        if tag == "meta" and "http-equiv" in attributes
    ]
    assert len(policies) == 1
    assert "default-src 'none'" in policies[0]
    assert re.search(r"script-src 'sha256-[\w+/]+=*'", policies[0])


@pytest.mark.parametrize("name", CASES)
def test_page_is_deterministic_and_a_function_of_the_json(name: str) -> None:
    data = CASES[name]
    again = ReportData.model_validate_json(data.model_dump_json())
    assert again == data
    assert render(again) == render(data)


def test_infinite_bounds_survive_json_and_show() -> None:
    verdict = sample.VERDICT.model_copy(update={"upper": float("inf"), "p": float("nan")})
    data = ReportData(title="x", before=sample.model(()), verdicts=(verdict,))
    again = ReportData.model_validate_json(data.model_dump_json())
    assert again.verdicts[0].upper == float("inf")
    assert "[1.58, \N{INFINITY}]" in Page(render(again)).text


def test_everything_is_on_the_page() -> None:
    data = sample.complete()
    page = Page(render(data))
    for section in (
        "measurements",
        "proposals",
        "anatomy",
        "plot",
        "time",
        "notes",
        "environment",
        "records",
    ):
        assert any(a.get("id") == section for tag, a in page.elements if tag == "section"), section
    for record in data.records:
        assert record.reason in page.text
        assert record.code in page.text
        assert record.remedy in page.text
    rows = [a["data-kind"] for tag, a in page.elements if tag == "tr" and "data-kind" in a]
    assert sorted(map(str, rows)) == ["analysis", "failure", "missed", "passed"]
    for figure in (
        "\N{MULTIPLICATION SIGN}1.62",
        "[1.58, 1.66]",
        "< 0.001",
        "12.4 ms",
        "7.66 ms",
        "onnxruntime",
        "openvino",
        "31.2 s",
    ):
        assert figure in page.text
    assert '"units": [ 1, 3 ]' in page.text  # the records as JSON


def test_long_passes_start_folded() -> None:
    records = sample.records()[1:2] * 13
    data = ReportData(title="x", before=sample.model(()), records=records)
    page = Page(render(data))
    folds = [a for tag, a in page.elements if tag == "details" and a.get("class") == "pass"]
    assert len(folds) == 1
    assert "open" not in folds[0]
    short = Page(render(data.model_copy(update={"records": records[:12]})))
    folds = [a for tag, a in short.elements if tag == "details" and a.get("class") == "pass"]
    assert len(folds) == 1
    assert "open" in folds[0]


def test_empty_sections_are_absent_and_said() -> None:
    page = Page(render(sample.empty()))
    assert "Nothing was measured." in page.text
    assert "No pass proposed anything." in page.text
    sections = {a.get("id") for tag, a in page.elements if tag == "section"}
    assert sections == {"measurements", "proposals", "anatomy"}
