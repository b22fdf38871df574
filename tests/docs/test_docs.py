"""Every page runs: its blocks in order, its files as an installed package, its output as shown."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs import blocks
from esper import passbase, propose
from esper.ecology import blueprints
from esper.ir.rules import REGISTRY

DOCS = Path(__file__).resolve().parents[2] / "docs"
# The pages that run, and how many outputs each shows at least.
PAGES = {
    "agents.md": 4,
    "axes.md": 2,
    "flight-recorder.md": 6,
    "decay.md": 5,
    "how-a-rewrite-travels.md": 4,
    "slots.md": 7,
    "growth.md": 3,
    "lowering.md": 6,
    "signals-and-masks.md": 5,
    "swaps.md": 6,
    "write-your-own-pass.md": 4,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An importable directory; what pages register is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(propose, "_others", dict(propose._others))
    monkeypatch.setattr(REGISTRY, "_rules", dict(REGISTRY._rules))
    monkeypatch.setattr(blueprints, "_TABLE", dict(blueprints.table()))
    modules = set(sys.modules)
    _forget()
    yield tmp_path
    _forget()
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) == str(tmp_path / f"{name}.py"):
            del sys.modules[name]


def _forget() -> None:
    importlib.invalidate_caches()
    passbase.passes.cache_clear()
    passbase.rewrites.cache_clear()


@pytest.mark.parametrize("name", PAGES)
def test_page(name: str, folder: Path) -> None:
    page = (DOCS / name).read_text()
    blocks.save_files(page, folder)
    shown = 0
    for step in blocks.steps(page):
        if step.shown is None:
            assert step.printed == "", f"the page does not show what this prints:\n{step.code}"
        else:
            shown += 1
            same = blocks.same(step.printed, step.shown.content)
            assert same, f"{step.code.content}\nprints now:\n{step.printed}"
    assert shown >= PAGES[name]
    for path in sorted(folder.glob("test_*.py")):
        _run_tests(path.stem)


def _run_tests(module: str) -> None:
    tests = {k: v for k, v in vars(importlib.import_module(module)).items() if k[:5] == "test_"}
    assert len(tests) >= 4
    for test in tests.values():
        test()


def test_a_wrong_output_is_noticed() -> None:
    page = "```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n"
    (step,) = blocks.steps(page)
    assert step.shown is not None
    assert not blocks.same(step.printed, step.shown.content)
    assert "```text\n2\n```" in blocks.refreshed(page)


def test_links_between_pages_lead_somewhere() -> None:
    root = DOCS.parent
    for page in (*DOCS.glob("*.md"), root / "README.md"):
        for target in blocks.links(page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
