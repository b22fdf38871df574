"""The platform of a recording, beside this one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from esper.errors import InputError
from esper.live.checkpoint import capture_random, restore_random
from esper.recorder import fingerprint
from esper.recorder.event import Event
from esper.recorder.happenings import RunStarted


def start_of(events: Sequence[Event], path: object) -> RunStarted:
    """The first event's payload. Raises InputError for a log that does not begin with a run."""
    if not events or not isinstance(events[0].payload, RunStarted):
        raise InputError(f"{path} does not begin with run-started: no session wrote it")
    return events[0].payload


@contextlib.contextmanager
def settings_of(start: RunStarted) -> Iterator[None]:
    """Threads, determinism and dtype as recorded; the process's own, and its chance, afterwards."""
    recorded = start.platform
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    dtype = torch.get_default_dtype()
    precision = torch.get_float32_matmul_precision()
    chance = capture_random()
    torch.set_num_threads(int(recorded.get("threads", threads)))
    torch.use_deterministic_algorithms(bool(recorded.get("deterministic_algorithms")))
    torch.set_default_dtype(getattr(torch, str(recorded.get("default_dtype", "float32"))))
    torch.set_float32_matmul_precision(str(recorded.get("float32_matmul_precision", precision)))
    if "torch" in start.seeds:  # for a program that leaves this to its caller
        torch.manual_seed(start.seeds["torch"])
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
        restore_random(chance)


#: What no bit depends on.
_FREE = frozenset({"hash_seed", "interop_threads"})


def differs(start: RunStarted) -> list[str]:
    """What differs between the recording's platform and this one, under its settings."""
    device = str(start.platform.get("device", "cpu"))
    if device.startswith("cuda") and not torch.cuda.is_available():
        return ["device"]
    names = fingerprint.differences(start.platform, fingerprint.fingerprint(device))
    return [name for name in names if name not in _FREE]


def note_of(names: Sequence[str]) -> tuple[str, ...]:
    """What a report says about another platform."""
    if not names:
        return ()
    others = ", ".join(names)
    rough = "numbers are compared roughly, digests of values not at all"
    return (f"the recording was made with other {others}: {rough}",)
