"""Going on with a run whose process died."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from esper.live.keyframes import continued
from esper.recorder.history import surviving
from esper.recorder.log import Log
from esper.replay import platform
from esper.replay import program as programs


def resume(path: str | os.PathLike[str], *, program: Callable[..., Any] | None = None) -> Any:
    """Go on with a recorded program from its last keyframe, and return what it returns.

    Threads and flags are those of the recording meanwhile, so that it goes on bit for bit.

    Args:
        path: of the log, which the run goes on writing.
        program: called instead of the one that the log names, with the same arguments.

    Raises:
        InputError: the log or its keyframe cannot be read, or names no program that can be called.
        UsageError: another process is writing the log.
    """
    log = Log(path)
    start = platform.start_of(surviving(log), log.path)
    run = programs.program_of(log, start, program)
    with platform.settings_of(start), continued(path) as recorder:
        return run(recorder)
