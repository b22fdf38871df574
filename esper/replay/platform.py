"""The platform of a recording, beside this one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from esper.errors import InputError
from esper.live.checkpoint import capture_random, restore_random
from esper.recorder import fingerprint
from esper.recorder.event import Event
from esper.recorder.happenings import Resumed, RunStarted
from esper.recorder.log import Log


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
#: What a process that goes on with a log does not know when it says so.
_LATER = frozenset({"device", "device_name", "cuda", "cudnn"})


def differs(log: Log, start: RunStarted) -> list[str]:
    """What differs between the recording's platforms and this one, under the first one's settings.

    A run that went on elsewhere, or with other threads, has several.
    """
    device = str(start.platform.get("device", "cpu"))
    if device.startswith("cuda") and not torch.cuda.is_available():
        return ["device"]
    here = fingerprint.fingerprint(device)
    names = {name for name in fingerprint.differences(start.platform, here) if name not in _FREE}
    for event in log:
        if isinstance(event.payload, Resumed):
            found = fingerprint.differences(event.payload.platform, here)
            names |= {name for name in found if name not in _FREE | _LATER}
    return sorted(names)


def note_of(names: Sequence[str]) -> tuple[str, ...]:
    """What a report says about another platform."""
    if not names:
        return ()
    others = ", ".join(names)
    rough = "numbers are compared roughly, digests of values not at all"
    return (f"the recording was made with other {others}: {rough}",)
