"""The page in a real browser: it lays out, filters, prints, and neither complains nor calls out."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from esper.report.data import ReportData
from esper.report.html import render
from tests.report import sample
from tests.report.browser import Browser
from tests.report.parsing import Page

ROWS = "[...document.querySelectorAll('tr[data-kind]')]"
SHOWN = f"{ROWS}.filter((row) => row.offsetParent !== null).map((row) => row.dataset.kind)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser") / "profile") as running:
        yield running


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return write(tmp_path, sample.complete())


def write(folder: Path, data: ReportData) -> Path:
    path = folder / "report.html"
    path.write_text(render(data), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [360, 1100])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_layout(browser: Browser, page: Path, width: int, scheme: str) -> None:
    browser.open(page, width, scheme)
    assert browser.run("document.documentElement.scrollWidth") <= width
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    light = sum(int(part) for part in background[4:-1].split(","))
    assert (light > 600) == (scheme == "light")
    drawn = "[...document.querySelectorAll('figure')].filter((f) => f.offsetParent).length"
    assert browser.run(drawn) == 2  # of each picture the one for this width
    picture = browser.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]
    content = base64.b64decode(picture)
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">I", content[16:20]) == (width,)
    assert browser.problems == []
    assert browser.requests == [page.as_uri()]


@pytest.mark.parametrize("data", [sample.complete(), sample.hostile()], ids=["plain", "hostile"])
def test_text_in_pictures_stays_inside(browser: Browser, tmp_path: Path, data: ReportData) -> None:
    page = write(tmp_path, data)
    outside = """[...document.querySelectorAll('svg text')].filter((text) => {
      const box = text.getBoundingClientRect();
      const frame = text.ownerSVGElement.getBoundingClientRect();
      return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1);
    }).map((text) => text.textContent)"""
    for width in (360, 1100):
        browser.open(page, width)
        assert browser.run(outside) == []


def test_dom_agrees_with_the_text(browser: Browser, page: Path) -> None:
    browser.open(page, 1100)
    dom = Page(browser.run("document.documentElement.outerHTML"))
    for record in sample.records():
        assert record.reason in dom.text


def test_filter_by_kind_and_by_words(browser: Browser, page: Path) -> None:
    browser.open(page, 1100)
    assert browser.run(SHOWN) == ["passed", "missed", "failure", "analysis"]
    browser.run("document.querySelector('#filter input[value=missed]').click()")
    assert browser.run(SHOWN) == ["passed", "failure", "analysis"]
    browser.run("document.querySelector('#filter input[value=missed]').click()")
    typed = """(() => { const box = document.getElementById('search'); box.value = %r;
      box.dispatchEvent(new Event('input', {bubbles: true})); })()"""
    browser.run(typed % "FROZEN output")
    assert browser.run(SHOWN) == ["missed"]
    browser.run(typed % "no such words")
    assert browser.run(SHOWN) == []
    assert browser.run("document.getElementById('no-match').offsetParent !== null")
    browser.run(typed % "")
    assert len(browser.run(SHOWN)) == 4
    assert browser.problems == []


def test_link_opens_its_record(browser: Browser, page: Path) -> None:
    browser.open(page, 1100)
    assert not browser.run("document.getElementById('record-1').open")
    browser.run("document.querySelector('a[href=\"#record-1\"]').click()")
    browser.run("new Promise((done) => setTimeout(done, 50))")
    assert browser.run("document.getElementById('record-1').open")


def test_hostile_names_do_nothing(browser: Browser, tmp_path: Path) -> None:
    path = write(tmp_path, sample.hostile())
    browser.open(path, 1100)
    assert browser.run("window.broken === undefined")
    assert browser.run("document.scripts.length") == 1
    assert browser.run("document.documentElement.scrollWidth") <= 1100
    browser.open(path, 360)
    assert browser.run("document.documentElement.scrollWidth") <= 360
    assert browser.problems == []
    assert browser.requests == [path.as_uri()]


def test_policy_stops_a_script_that_slipped_in(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    text = render(sample.complete())
    path.write_text(text.replace("</main>", "<script>window.broken = 1</script></main>"))
    browser.open(path, 1100)
    assert browser.run("window.broken === undefined")
    assert any("Content Security Policy" in problem for problem in browser.problems)
    browser.problems.clear()


def test_without_scripts_all_is_readable_and_controls_are_gone(
    browser: Browser, page: Path
) -> None:
    browser.scripts(allowed=False)
    browser.open(page, 1100)
    browser.scripts(allowed=True)
    assert len(browser.run(SHOWN)) == 4
    assert browser.run("document.getElementById('filter').offsetParent === null")


def test_prints(browser: Browser, page: Path) -> None:
    browser.open(page, 1100, "dark")
    browser.send("Emulation.setEmulatedMedia", media="print")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    pdf = base64.b64decode(browser.send("Page.printToPDF")["data"])
    assert pdf.startswith(b"%PDF")
    browser.send("Emulation.setEmulatedMedia", media="")
