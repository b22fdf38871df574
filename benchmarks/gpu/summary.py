"""What a run of `benchmarks/gpu_suite.sh` found, on one page.

    python benchmarks/gpu/summary.py OUT

Reads the JSON and JUnit files that the parts left in OUT, prints the page and writes it to
OUT/summary.md. A part that left nothing is named.
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import readme

PARTS = {
    "kernels.json": "Kernels",
    "gpu_end_to_end.json": "End to end",
    "tuned.json": "Tuning",
}


def tests(path: Path) -> list[str]:
    """Counts, and the failed tests by name."""
    if not path.exists():
        return ["The tests left no result."]
    suites = list(ET.parse(path).getroot().iter("testsuite"))
    counts = {
        k: sum(int(s.get(k, 0)) for s in suites) for k in ("tests", "failures", "errors", "skipped")
    }
    lines = [", ".join(f"{count} {name}" for name, count in counts.items()) + "."]
    for case in (case for suite in suites for case in suite.iter("testcase")):
        for kind in ("failure", "error"):
            if (found := case.find(kind)) is not None:
                first = (found.get("message") or "").strip().splitlines()
                lines.append(f"- {case.get('name')}: {first[0] if first else kind}")
    return lines


def page(out: Path) -> str:
    """The page as markdown."""
    parts = ["# GPU suite", "", "## Tests", "", *tests(out / "tests.xml")]
    for file, title in PARTS.items():
        parts += ["", f"## {title}", ""]
        path = out / file
        if not path.exists():
            parts.append("Left no result: see the log.")
            continue
        data: dict[str, Any] = json.loads(path.read_text())
        parts.append(readme.render(data))
        if "by_pattern" in data:
            parts += ["", readme.render(data, {"table": "by_pattern"})]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    text = page(folder)
    (folder / "summary.md").write_text(text)
    print(text)
