"""The masked-reference oracle over every model of the test zoo, counted.

    python benchmarks/structure/exactness.py

For each model and each cuttable axis alone, then all together: 30% of the units are cut and
outputs, gradients and buffers are held against the masked original in float64, after NaN was
written into everything that the removed units own.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.utils import _pytree as pytree

import esper
from benchmarks.result_file import write
from tests import oracle
from tests.models import MODELS


def main() -> None:
    """Run the oracle everywhere and write the result file."""
    rows: list[dict[str, Any]] = []
    for name, build in MODELS.items():
        module, args, kwargs = build()
        model = oracle.as_float64(esper.trace(module.eval(), args, kwargs))
        args, kwargs = pytree.tree_map(_double, (args, kwargs))
        axes = [axis for axis in model.anatomy.axes.values() if axis.cuttable]
        removed = {a.id: a.unit_ids[1 : 1 + max(1, int(a.size * 0.3))] for a in axes}
        start, violations = time.perf_counter(), []
        cases: list[dict[str, Any]] = [{axis: units} for axis, units in removed.items()]
        for case in [*cases, removed]:
            try:
                oracle.assert_exact_cut(model, case, args, kwargs)
            except AssertionError as error:
                violations.append(f"{', '.join(case)}: {str(error).splitlines()[0]}")
        held = {member for a in axes for member, _ in a.members}
        parameters = dict(model.named_parameters())
        reached = sum(p.numel() for n, p in parameters.items() if n in held)
        rows.append(
            {
                "model": name,
                "axes": len(model.anatomy.axes),
                "cuttable": len(axes),
                "parameters reached": round(
                    reached / sum(p.numel() for p in parameters.values()), 3
                ),
                "cuts checked": len(cases) + 1,
                "violations": len(violations),
                "seconds": round(time.perf_counter() - start, 1),
            }
        )
        print(rows[-1], *violations, sep="\n  ", flush=True)
    write(
        "exactness",
        "Cuts held against the masked original in float64",
        rows,
        command="python benchmarks/structure/exactness.py",
        notes=[
            f"{sum(r['cuts checked'] for r in rows)} cuts checked.",
            f"{sum(r['violations'] for r in rows)} violations.",
            f"The tolerance is {oracle.TOLERANCE:g} of the largest value.",
        ],
    )


def _double(value: Any) -> Any:
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if floating else value


if __name__ == "__main__":
    main()
