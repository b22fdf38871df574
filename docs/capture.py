"""Runs the commands of the README's tour and keeps what they print in docs/captures/NAME.txt.

    python -m docs.capture [NAME...]

The commands run in a scratch directory that holds the examples and one small real model. Nothing
is edited afterwards; `python -m benchmarks.readme` puts the files into the pages.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from examples import assets

ROOT = Path(__file__).resolve().parents[1]
CAPTURES = ROOT / "docs" / "captures"

_MODEL = "digits.pth --model examples.digits:ccexam_architecture --inputs examples/digits.py:inputs"
COMMANDS = {
    "passes": ["esper-opt --list-passes"],
    "inspect": [f"esper inspect {_MODEL}"],
    "optimise": [
        f"""esper-opt {_MODEL} \\
    --data examples/digits.py:calibration --eval examples/digits.py:evaluate --max-loss 1% \\
    --passes 'search{{steps=3}}(prune{{saliency=taylor scope=global}},reconstruct)' \\
    --backend eager --report report.html -o smaller.pt2"""
    ],
    "errors": [
        "esper-opt digits.pth",
        f"esper-opt {_MODEL} --passes 'prune{{ratio=0.3}},recontruct'",
    ],
}
SESSIONS = {
    "python": """
import esper
from examples import digits
module = digits.ccexam_factory()
model = esper.trace(module, *digits.inputs())
model.find("*/neurons")
axis = model.anatomy.axes["axis:classifier.0/neurons"]
axis.size, axis.members
proposal = esper.propose.PruneUnits(axis=axis.id, units=(3, 7))
print(model.plan(proposal).text())
smaller, record = model.apply(proposal)
print(record.line())
smaller.anatomy.axes[axis.id].unit_ids[:8]
digits.evaluate(model), digits.evaluate(smaller)
labels = "axis:classifier.2/neurons"
print(model.check(esper.propose.PruneUnits(axis=labels, units=(0,))).reason)
result = esper.optimize(
    model, "prune{ratio=0.5},reconstruct", data=digits.calibration(), evaluate=digits.evaluate
)
print(result.summary())
""",
}


def command(lines: list[str], folder: Path) -> str:
    """What the commands print, standard output and error together, with exit codes that matter."""
    parts = []
    environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1"}
    for line in lines:
        words = shlex.split(line.replace("\\\n", " "))
        program = {"esper-opt": "esper.cli.opt", "esper": "esper.cli.main"}[words[0]]
        done = subprocess.run(
            [sys.executable, "-m", program, *words[1:]],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode not in (0, 2, 3):
            raise RuntimeError(f"{line} ended with {done.returncode}:\n{done.stdout}")
        text = f"$ {line}\n{done.stdout.rstrip()}"
        parts.append(text + (f"\n(exit code {done.returncode})" if done.returncode else ""))
    return "\n\n".join(parts) + "\n"


def session(text: str) -> str:
    """A transcript of an interactive session: each statement, then what it prints or is."""
    space: dict[str, object] = {}
    lines: list[str] = []
    for node in ast.parse(text).body:
        source = ast.get_source_segment(text, node) or ""
        first, *rest = source.splitlines()
        lines += [f">>> {first}", *(f"... {line}" for line in rest)]
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(ast.Interactive([node]), "<session>", "single"), space)  # noqa: S102
        lines += out.getvalue().rstrip().splitlines()
    return "\n".join(lines) + "\n"


def capture(name: str, folder: Path) -> str:
    """The text of one capture."""
    text = session(SESSIONS[name]) if name in SESSIONS else command(COMMANDS[name], folder)
    for place in (str(folder), str(ROOT)):
        if place in text:
            raise ValueError(f"the output of {name} names a path of this machine: {place}")
    return text


def main() -> None:
    CAPTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "examples").symlink_to(ROOT / "examples")
        (folder / "digits.pth").write_bytes(assets.ccexam_weights("mnist").read_bytes())
        for name in sys.argv[1:] or [*COMMANDS, *SESSIONS]:
            text = capture(name, folder)
            (CAPTURES / f"{name}.txt").write_text(text)
            print(f"captured {name}", flush=True)


if __name__ == "__main__":
    main()
