"""Measured processes: fresh, checked, limited in time, and gone afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from esper.errors import GateError
from esper.gate.backends.base import Context
from esper.gate.inputs import normalise
from esper.gate.launcher import Launcher
from esper.gate.prepared import Workshop
from esper.gate.sampling import Effort, weighted_log_seconds
from esper.gate.worker import Spec, choose_rounds
from tests.gate.broken import Act
from tests.gate.support import QUICK, Two, two_call

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("tests.gate.broken",)
CONTEXT = Context("inference", 1, "cpu")


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with Launcher() as running:
        yield running


def workshop(launcher: Launcher, effort: Effort = QUICK) -> Workshop:
    return Workshop(launcher, [((torch.randn(2, 4),), {})], [1.0], CONTEXT, effort, MODULES)


def running_in_group(group: int) -> list[int]:
    """Processes of a process group that are not merely waiting to be reaped."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_until_gone(group: int) -> None:
    deadline = time.monotonic() + 30
    while running_in_group(group):
        assert time.monotonic() < deadline, f"process group {group} is still running"
        time.sleep(0.05)


def test_samples_have_one_column_per_contender_and_the_same_rounds_in_every_process(
    launcher: Launcher,
) -> None:
    calls, weights = normalise([(3.0, *two_call(2)), (1.0, *two_call(5))])
    with Workshop(launcher, calls, weights, CONTEXT, QUICK, ()) as shop:
        side = shop.prepare(Two().eval(), "eager")
        sampler = shop.sampler([side, side, side], seed=0)
        one, two = sampler.draw(), sampler.draw()
    assert one.shape == two.shape
    assert one.shape[1] == 3
    assert QUICK.min_rounds <= one.shape[0] <= QUICK.max_rounds
    assert np.isfinite(one).all()


def test_processes_that_would_end_too_late_measure_fewer_rounds(launcher: Launcher) -> None:
    effort = replace(QUICK, min_rounds=8, max_rounds=8, least_rounds=3)
    with workshop(launcher, effort) as shop:
        slow = shop.prepare(Act("pause").eval(), "eager")
        late, early = (shop.sampler([slow, slow], seed=0) for _ in range(2))
        assert late.draw(deadline=time.monotonic()).shape[0] < 8
        assert early.draw(deadline=time.monotonic() + 600).shape[0] == 8


def test_rounds_that_cost_less_than_getting_ready_are_not_saved(launcher: Launcher) -> None:
    with workshop(launcher, replace(QUICK, min_rounds=4, max_rounds=4, least_rounds=2)) as shop:
        quick = shop.prepare(Act("nothing").eval(), "eager")
        sampler = shop.sampler([quick, quick], seed=0)
        assert sampler.draw(deadline=time.monotonic()).shape[0] == 4


@pytest.mark.parametrize(
    ("left", "rounds"),
    [(None, 24), (1000.0, 24), (24.0 + 1, 24), (12.0 + 1, 12), (9.9 + 1, 9), (2.0, 6), (-5.0, 6)],
)
def test_rounds_fit_the_deadline_down_to_the_least(left: float | None, rounds: int) -> None:
    """Steps of 0.5, 0.3 and 0.2 s: a round takes 1 s, and so does verifying."""
    spec = Spec(
        contenders=(),
        inputs="",
        objective="inference",
        device="cpu",
        threads=1,
        seed=0,
        seconds=2.0,
        visit_seconds=0.001,
        warmup_seconds=0.15,
        min_rounds=24,
        max_rounds=120,
        least_rounds=6,
        settle=False,
    )
    assert choose_rounds([[0.5, 0.3, 0.2]], (1,), spec, left) == rounds
    half = None if left is None else left - 0.5
    # Settling doubles the steps of a round, not those that verify.
    assert choose_rounds([[0.25, 0.15, 0.1]], (1,), replace(spec, settle=True), half) == rounds


def test_each_process_is_new(launcher: Launcher) -> None:
    with workshop(launcher) as shop:
        side = shop.prepare(Act("nothing").eval(), "eager")
        sampler = shop.sampler([side, side], seed=0)
        pids = {int(launcher.run(sampler._spec(None), 60.0)["process"]) for _ in range(3)}
    assert len(pids) == 3
    assert os.getpid() not in pids


def test_without_fork_every_process_is_a_fresh_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    with Launcher() as own, workshop(own) as shop:
        side = shop.prepare(Act("nothing").eval(), "eager")
        assert shop.sampler([side, side, side], seed=0).draw().shape[1] == 3
        assert own._process is None


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "boom on purpose"),
        ("crash", r"died \(killed by SIGSEGV\): .*about to crash: stack corrupted"),
        ("nan", r"contender 1 \(eager\) on input 0 holds NaN or Inf"),
        ("random", "not deterministic"),
    ],
)
def test_a_broken_candidate_is_a_clear_error(launcher: Launcher, how: str, message: str) -> None:
    with workshop(launcher) as shop:
        good = shop.prepare(Act("nothing").eval(), "eager")
        bad = shop.prepare(Act(how).eval(), "eager")
        with pytest.raises(GateError, match=message):
            shop.sampler([good, bad], seed=0).draw()
        assert shop.sampler([good, good], seed=0).draw().shape[1] == 2


def test_a_process_that_hangs_is_stopped() -> None:
    with Launcher() as own:
        with workshop(own) as shop:
            quick = shop.prepare(Act("nothing").eval(), "eager")
            shop.sampler([quick, quick], seed=0).draw()
        assert own._process is not None
        group = own._process.pid
        assert running_in_group(group)
        with workshop(own, replace(QUICK, timeout=3.0)) as shop:
            slow = shop.prepare(Act("sleep").eval(), "eager")
            with pytest.raises(GateError, match="time limit"):
                shop.sampler([slow], seed=0).draw()
        wait_until_gone(group)


def test_an_artifact_that_is_damaged_is_told(launcher: Launcher) -> None:
    with workshop(launcher) as shop:
        side = shop.prepare(Act("nothing").eval(), "eager")
        (side.directory / "model.esper").write_bytes(b"nonsense")
        with pytest.raises(GateError, match="measured process failed"):
            shop.sampler([side], seed=0).draw()


SCRIPT = """
import sys, torch
from esper.gate.gate import Gate
from esper.gate.launcher import Launcher
from tests.gate.broken import Act
from tests.gate.support import QUICK
with Launcher() as launcher:
    launcher._serve(1)
    print(launcher._process.pid, launcher.directory, flush=True)
    gate = Gate(backend="eager", threads=1, effort=QUICK, modules=("tests.gate.broken",))
    gate.compare(Act("sleep").eval(), Act("sleep").eval(), ((torch.randn(2, 4),), {}),
                 launcher=launcher, say=lambda text: print(text, flush=True))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_survives_the_caller(how: signal.Signals) -> None:
    caller = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert caller.stdout is not None
    number, directory = caller.stdout.readline().split()
    group = int(number)
    assert "process 1" in caller.stdout.readline()
    time.sleep(1.0)
    assert running_in_group(group)
    caller.send_signal(how)
    caller.wait(timeout=60)
    caller.stdout.close()
    wait_until_gone(group)
    assert not Path(directory).exists()


def test_weights_make_one_whole_step() -> None:
    times = [[[1_000_000, 2_000_000], [10_000_000, 4_000_000]]]
    found = np.exp(weighted_log_seconds({"times": times}, [3.0, 1.0]))
    np.testing.assert_allclose(found, [[(3 * 1 + 10) / 4e3, (3 * 2 + 4) / 4e3]])
