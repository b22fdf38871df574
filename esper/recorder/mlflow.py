"""A log as a run in MLflow's file store, written here: folders, and lines of numbers.

Losses, metrics and outcomes are metrics over ticks; seeds and the scalars of the configuration are
parameters; the name of the run and the codes of its verdicts are tags.

Format: https://mlflow.org/docs/latest/self-hosting/architecture/backend-store (file store):
`EXPERIMENT/meta.yaml`, `EXPERIMENT/RUN/{meta.yaml, metrics/, params/, tags/}`, a metric being lines
`milliseconds value step`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esper.errors import OutputError
from esper.recorder import canonical
from esper.recorder.decisions import Outcome, Verdict
from esper.recorder.event import Event
from esper.recorder.happenings import Finished, Metric, RunStarted, Tick
from esper.recorder.log import Log

_EXPERIMENT = "0"
_STATUS = {"completed": 3, "failed": 4, "interrupted": 5}  # FINISHED, FAILED, KILLED
_RUNNING = 1
_UNNAMED = re.compile(r"[^\w\-. /]")


def export_mlflow(log: Log, folder: Path) -> None:
    """Write the store that `mlflow ui --backend-store-uri FOLDER` is given.

    Raises:
        OutputError: it cannot be written.
    """
    run = hashlib.blake2b(log.run.encode(), digest_size=16).hexdigest()
    try:
        for path, text in _files(log, run).items():
            place = folder / _EXPERIMENT / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        for name in ("metrics", "params", "tags", "artifacts"):
            (folder / _EXPERIMENT / run / name).mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error


def _files(log: Log, run: str) -> dict[str, str]:
    """Path within the experiment -> text."""
    metrics: dict[str, list[str]] = {}
    texts: dict[str, str] = {f"{run}/tags/mlflow.runName": log.run}
    times = [0, 0]
    status = _RUNNING
    for event in log:
        times = [times[0] or _milliseconds(event), _milliseconds(event)]
        payload = event.payload
        for name, value in _numbers(payload).items():
            line = f"{_milliseconds(event)} {float(value)} {event.tick}"
            metrics.setdefault(_named(name), []).append(line)
        if isinstance(payload, RunStarted):
            given = {**{f"seed.{name or 'all'}": s for name, s in payload.seeds.items()}}
            given |= {f"config.{name}": value for name, value in payload.config.items()}
            for name, value in given.items():
                texts[f"{run}/params/{_named(name)}"] = _short(value)
        elif isinstance(payload, Verdict):
            texts[f"{run}/tags/{event.code}"] = (
                f"{payload.result} [{payload.code}] {payload.reason}"
            )
        elif isinstance(payload, Finished):
            status = _STATUS.get(payload.status, _STATUS["failed"])
    for name, lines in metrics.items():
        texts[f"{run}/metrics/{name}"] = "\n".join(lines) + "\n"
    texts["meta.yaml"] = _yaml(
        {
            "artifact_location": f"mlflow-artifacts:/{_EXPERIMENT}",
            "creation_time": times[0],
            "experiment_id": _EXPERIMENT,
            "last_update_time": times[1],
            "lifecycle_stage": "active",
            "name": "esper",
        }
    )
    texts[f"{run}/meta.yaml"] = _yaml(
        {
            "artifact_uri": f"mlflow-artifacts:/{_EXPERIMENT}/{run}/artifacts",
            "end_time": None if status == _RUNNING else times[1],
            "entry_point_name": "",
            "experiment_id": _EXPERIMENT,
            "lifecycle_stage": "active",
            "run_id": run,
            "run_name": log.run,
            "run_uuid": run,
            "source_name": "",
            "source_type": 4,
            "source_version": "",
            "start_time": times[0],
            "status": status,
            "tags": [],
            "user_id": "",
        }
    )
    return texts


def _numbers(payload: object) -> dict[str, float]:
    if isinstance(payload, Tick):
        return {} if payload.loss is None else {"loss": payload.loss}
    if isinstance(payload, Metric):
        return {payload.name: payload.value}
    if isinstance(payload, Outcome):
        return {f"outcome/{name}": value for name, value in payload.metrics.items()}
    return {}


def _milliseconds(event: Event) -> int:
    """Of the event's clock, or its tick where the recorder had none."""
    return event.time // 1_000_000 or event.tick


def _named(name: str) -> str:
    """A name that MLflow takes and that stays within the folder."""
    parts = [part for part in _UNNAMED.sub("_", name).split("/") if part.strip(". ")]
    return "/".join(parts) or "_"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else canonical.encode(value).decode()
    return text[:500]


def _yaml(values: Mapping[str, Any]) -> str:
    """JSON scalars are YAML."""
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items())
