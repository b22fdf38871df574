"""The code blocks of a page, run in order; their printed output is part of the page.

    python -m docs.blocks docs/how-a-rewrite-travels.md     # writes the output that blocks have now

A fence ```python is a block of one script. ```python file=NAME is saved as NAME in a directory that
is importable, so blocks can import what the page shows as files; any other language with `file=`
is saved, too. A fence ```text right after a script's block is what that block prints.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import tempfile
import tomllib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_DIGITS = re.compile(r"-?\d+\.\d{5,}(?:e[+-]?\d+)?")
_HASH = re.compile(r"\b[0-9a-f]{16,32}\b")  # of tensors whose last bits differ between processors
_SYMBOL = re.compile(r"\bs\d+\b")  # torch numbers symbolic sizes as it likes


@dataclass(frozen=True)
class Block:
    """A fence: `start` and `end` delimit its content within the page."""

    language: str
    file: str | None
    content: str
    start: int
    end: int


@dataclass(frozen=True)
class Step:
    """A script block that ran: what it printed, and the block that shows it, if there is one."""

    code: Block
    printed: str
    shown: Block | None


def blocks(page: str) -> list[Block]:
    """The fences of a page in order."""
    found = []
    for match in _FENCE.finditer(page):
        file = re.search(r"file=(\S+)", match[2])
        name = file[1] if file is not None else None
        found.append(Block(match[1], name, match[3], match.start(3), match.end(3)))
    return found


def save_files(page: str, folder: Path) -> None:
    """Write the blocks that are files; a `pyproject.toml` makes them an installed distribution."""
    for block in blocks(page):
        if block.file is not None:
            (folder / block.file).write_text(block.content)
            if block.file == "pyproject.toml":
                _install(tomllib.loads(block.content)["project"], folder)


def _install(project: dict[str, Any], folder: Path) -> None:
    """What an installer would write of it: name, version and entry points."""
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    header = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(header)
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def steps(page: str) -> Iterator[Step]:
    """Run the script blocks of a page in one namespace, each when it is asked for."""
    script = types.ModuleType("page")
    fences = blocks(page)
    for position, block in enumerate(fences):
        if block.language != "python" or block.file is not None:
            continue
        after = fences[position + 1] if position + 1 < len(fences) else None
        close = after is not None and page[block.end : after.start].count("\n") <= 3
        shown = after if after is not None and close and after.language == "text" else None
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block.content, "<page>", "exec"), vars(script))  # noqa: S102
        yield Step(block, out.getvalue(), shown)


def same(printed: str, shown: str) -> bool:
    """Equal up to trailing blanks, last digits, content hashes and numbers of symbolic sizes."""
    return _plain(printed) == _plain(shown)


def _plain(text: str) -> list[str]:
    text = _DIGITS.sub(lambda match: f"{float(match[0]):.4g}", text)
    text = _SYMBOL.sub("s0", _HASH.sub("HASH", text))
    return [line.rstrip() for line in text.strip().splitlines()]


def refreshed(page: str) -> str:
    """The page with every shown output replaced by what its block prints."""
    changes = [(step.shown, step.printed) for step in steps(page) if step.shown is not None]
    for block, printed in reversed(changes):
        lines = [line.rstrip() for line in printed.strip("\n").splitlines()]
        page = page[: block.start] + "\n".join(lines) + "\n" + page[block.end :]
    return page


def links(page: str) -> list[str]:
    """Targets of links to files, without anchors."""
    found = re.findall(r"\]\(([^)\s]+)\)", page)
    return [t.partition("#")[0] for t in found if "://" not in t and not t.startswith("#")]


def main() -> None:
    import torch

    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        path = Path(name)
        with tempfile.TemporaryDirectory() as folder:
            save_files(path.read_text(), Path(folder))
            sys.path.insert(0, folder)
            path.write_text(refreshed(path.read_text()))
            sys.path.remove(folder)


if __name__ == "__main__":
    main()
