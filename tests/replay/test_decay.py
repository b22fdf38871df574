"""Probes, removals and rollbacks are replayed, with what the immune ledger then forbids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from esper.cli.main import main
from esper.recorder.log import Log
from tests.replay import decay_run


def test_a_run_of_decay_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.esperlog"
    session = decay_run.train(path, seed=3)
    log = Log(path)
    verdicts = [(e.tick, e.payload.code) for e in log if e.kind == "verdict"]
    assert verdicts == [
        (1, "applied"),
        (1, "applied"),
        (3, "applied"),
        (3, "applied"),
        (3, "applied"),  # the lease is its holder's, so it is granted again
        (3, "antibodies"),
        (6, "applied"),
    ]
    (rollback,) = (e.payload for e in log if e.kind == "rollback")
    assert rollback.figures["kept"] == "change"
    assert rollback.figures["charged"] == [f"{decay_run.AXIS}[5]"]
    assert rollback.figures["against"] == ["prune-units"]
    assert session.model.ecology.immunity(decay_run.AXIS).lease_until == 9
    for level in ("pass", "full"):
        code = main(["replay", str(path), "--json", "--level", level])
        found = json.loads(capsys.readouterr().out)
        assert (code, found["equal"]) == (0, True), found["divergence"]
