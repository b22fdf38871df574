"""Record real A/A samples for the permanent no-op test.

    python benchmarks/gate/record_noop.py -o tests/gate/data

Each file holds log seconds of three identical contenders, [process][round][3], with the device.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gate.workload import CELLS
from esper.gate.environment import environment
from esper.gate.gate import Gate
from esper.gate.inputs import normalise
from esper.gate.launcher import Launcher
from esper.gate.prepared import Workshop
from esper.gate.statistics import Samples


def main() -> None:
    parser = argparse.ArgumentParser(description="Record samples of a change that is none.")
    parser.add_argument("--processes", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--suffix", default="", help="told apart by, for example, load")
    parser.add_argument("--conditions", default="", help="what else ran, for the record")
    parser.add_argument("--cell", action="append", help="only this cell (repeatable)")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    gate = Gate(backend="eager", threads=options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    for cell in CELLS:
        if options.cell and cell.name not in options.cell:
            continue
        calls, weights = normalise([cell.call()])
        with (
            Launcher() as launcher,
            Workshop(launcher, calls, weights, gate.context, gate.effort, ()) as shop,
        ):
            model = cell.build(0)
            sides = [shop.prepare(model, "eager") for _ in range(2)]
            sampler = shop.sampler([sides[0], sides[0], sides[1]], seed=0)
            drawn = Samples(tuple(sampler.draw() for _ in range(options.processes)))
        record = {
            "cell": cell.name,
            "conditions": options.conditions,
            "environment": environment(gate.context, ["eager"]).model_dump(),
            "samples": [[[round(v, 4) for v in row] for row in b] for b in drawn.to_lists()],
        }
        path = options.output / f"{cell.name}{options.suffix}.json"
        path.write_text(json.dumps(record, separators=(",", ":")) + "\n")
        print(f"{path.name}: {len(drawn)} processes, {drawn.rounds} rounds")


if __name__ == "__main__":
    main()
