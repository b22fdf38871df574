"""Results as JSON: everything that tables, pictures and comparisons are made of."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from esper.errors import InputError
from esper.gate.environment import device_name
from esper_kernel_bench import summaries
from esper_kernel_bench.cells import Panel, typical
from esper_kernel_bench.layers import SOURCES
from esper_kernel_bench.sampling import Track
from esper_kernel_bench.suite import Findings, Selection
from esper_kernel_bench.verdicts import RULE, SAME, estimate, log_ratios, logs
from esper_kernels.roofline import Device

FORMAT = "esper kernels 1"
Document = dict[str, Any]


def document(selection: Selection, findings: Findings, command: str) -> Document:
    """The whole result. `rows` is the map against the best peer, which pages show."""
    cells = [
        {name: _short(value) for name, value in cell.row().items()} for cell in findings.cells()
    ]
    panels = [_panel(panel) for panel in findings.panels]
    return {
        "format": FORMAT,
        "title": f"Our ops beside their fastest peer on {selection.device.upper()}",
        "command": command,
        "device": device_name(selection.device),
        "threads": torch.get_num_threads(),
        "versions": _versions(),
        "seed": selection.seed,
        "clock": findings.clock,
        "rotated_bytes": findings.rotated,
        "effort": asdict(selection.effort),
        "rule": {
            "delta": RULE.delta,
            "confidence": RULE.confidence,
            "same_within": SAME,
            "resamples": RULE.resamples,
        },
        "sources": SOURCES,
        "specification": _device(findings.specification),
        "calibration": _device(findings.roof()),
        "columns": ["dtype", "op", "pattern", *(f"M={m}" for m in sorted(selection.rows))],
        "rows": summaries.table(cells, "best"),
        "map": summaries.short_map(cells),
        "against_dense": summaries.table(cells, "dense"),
        "by_pattern": summaries.by_pattern(cells),
        "peers": summaries.peers(panels),
        "notes": summaries.notes(cells, findings.skipped),
        "cells": cells,
        "panels": panels,
        "skipped": findings.skipped,
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for name in ("esper-opt", "triton", "torchao"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _device(device: Device | None) -> dict[str, Any] | None:
    return None if device is None else {**asdict(device), "peaks": dict(device.peaks)}


def _panel(panel: Panel) -> dict[str, Any]:
    tracks = panel.rows.tracks.values()
    (dense,) = [t for t in panel.timed if t.contender.role == "dense"]
    return {
        "layer": panel.layer.id,
        "layers": list(panel.layers),
        "kind": panel.layer.kind,
        "n": panel.layer.outputs,
        "k": panel.layer.inputs,
        "m": panel.rows.m,
        "dtype": panel.dtype,
        "noise": _short(panel.noise),
        "rounds": [len(some) for some in dense.samples],
        "contenders": [_contender(t, dense) for t in panel.timed],
        "absent": {t.contender.key: t.reason for t in tracks if t.reason},
    }


def _contender(track: Track, dense: Track) -> dict[str, Any]:
    """`log` is that of the dense layer's time over this one's, with its standard error; of the
    dense layer itself, of seconds.
    """
    assert track.work is not None
    own = track is dense
    boot = estimate(logs(track.samples) if own else log_ratios(dense.samples, track.samples))
    return {
        "key": track.contender.key,
        "role": track.contender.role,
        "compression": track.contender.compression,
        "microseconds": _short(typical(track.samples) * 1e6),
        "log": _short(boot.estimate, 6),
        "log_error": _short(boot.standard_error),
        "error": _short(track.error, 2),
        **asdict(track.work),
    }


def _short(value: Any, digits: int = 4) -> Any:
    """Numbers to so many significant digits; others as they are."""
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


# -- files -----------------------------------------------------------------------------------------


def dumps(document: Document) -> str:
    """JSON with a line for each cell and contender, so that changes show as changed lines.

    Tables of many rows are columns and values, which makes half of it.
    """
    lines = []
    for key, value in document.items():
        if key == "cells":
            body = _table(value, "  ")
        elif key == "panels":
            body = ",\n  ".join(
                json.dumps({**panel, "contenders": None}).replace(
                    '"contenders": null', f'"contenders": {_table(panel["contenders"], "   ")}'
                )
                for panel in value
            )
            body = f"[\n  {body}\n ]"
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            body = "[\n  " + ",\n  ".join(json.dumps(row) for row in value) + "\n ]"
        else:
            body = json.dumps(value)
        lines.append(f" {json.dumps(key)}: {body}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _table(rows: Sequence[Mapping[str, Any]], indent: str) -> str:
    columns = list(rows[0]) if rows else []
    values = ",".join(f"\n{indent}{json.dumps(list(row.values()))}" for row in rows)
    return f'{{"columns": {json.dumps(columns)}, "values": [{values}]}}'


def read(path: Path) -> Document:
    """A result file as `document` made it. Raises InputError for what is none."""
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{path} is no result of esper bench kernels")
    try:
        data["cells"] = _rows(data["cells"])
        for panel in data["panels"]:
            panel["contenders"] = _rows(panel["contenders"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is a damaged result: its tables are not whole") from error
    return data


def _rows(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(table["columns"], values, strict=True)) for values in table["values"]]
