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
from esper_kernel_bench.cells import Panel, fraction, typical
from esper_kernel_bench.layers import SOURCES
from esper_kernel_bench.sampling import Track
from esper_kernel_bench.suite import Findings, Selection
from esper_kernel_bench.verdicts import RULE, SAME
from esper_kernels.roofline import Device

FORMAT = "esper kernels 1"
Document = dict[str, Any]


def document(selection: Selection, findings: Findings, command: str) -> Document:
    """The whole result. `rows` is the map against the best peer, which pages show."""
    roof = findings.roof()
    cells = [cell.row() for cell in findings.cells()]
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
        "calibration": _device(roof),
        "columns": ["dtype", "op", "pattern", *(f"M={m}" for m in sorted(selection.rows))],
        "rows": summaries.table(cells, "best"),
        "against_dense": summaries.table(cells, "dense"),
        "by_pattern": summaries.by_pattern(cells),
        "notes": summaries.notes(cells, findings.skipped),
        "cells": cells,
        "panels": [_panel(panel, findings.specification, roof) for panel in findings.panels],
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


def _panel(panel: Panel, specification: Device | None, roof: Device) -> dict[str, Any]:
    tracks = panel.rows.tracks.values()
    return {
        "layer": panel.layer.id,
        "layers": list(panel.layers),
        "kind": panel.layer.kind,
        "n": panel.layer.outputs,
        "k": panel.layer.inputs,
        "m": panel.rows.m,
        "dtype": panel.dtype,
        "noise": panel.noise,
        "contenders": [_contender(t, specification, roof) for t in tracks if t.samples],
        "absent": {t.contender.key: t.reason for t in tracks if t.reason},
    }


def _contender(track: Track, specification: Device | None, roof: Device) -> dict[str, Any]:
    assert track.work is not None
    return {
        "key": track.contender.key,
        "role": track.contender.role,
        "compression": track.contender.compression,
        "microseconds": _four(typical(track.samples) * 1e6),
        "error": _four(track.error),
        **asdict(track.work),
        "fraction_specification": fraction(track, specification),
        "fraction_calibrated": fraction(track, roof),
        "samples": [[_four(second * 1e6) for second in some] for some in track.samples],
    }


def _four(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def dumps(data: Mapping[str, Any]) -> str:
    """JSON with a line for each cell and contender, so that changes show as changed lines."""
    lines = []
    for key, value in data.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            body = ",\n".join(f"  {_line(item)}" for item in value)
            lines.append(f" {json.dumps(key)}: [\n{body}\n ]")
        else:
            lines.append(f" {json.dumps(key)}: {_line(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _line(value: Any) -> str:
    if isinstance(value, dict) and "contenders" in value:
        rest = {k: v for k, v in value.items() if k != "contenders"}
        inner = ",\n   ".join(json.dumps(c) for c in value["contenders"])
        return f'{json.dumps(rest)[:-1]}, "contenders": [\n   {inner}]}}'
    return json.dumps(value)


def read(path: Path) -> Document:
    """A result file. Raises InputError for what is none."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{path} is no result of esper bench kernels")
    return data


def samples_of(panel: Mapping[str, Any]) -> dict[str, Sequence[Sequence[float]]]:
    """Samples by contender of a panel that was read."""
    return {c["key"]: c["samples"] for c in panel["contenders"]}
