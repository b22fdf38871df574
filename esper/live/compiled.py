"""Compilations of a changing model are counted and priced, and never give way to eager in silence.

A traced model needs no care to be compiled again: each change of its graph is new code, and each
change of a shape fails a guard, so `torch.compile` compiles where it must and only there. What is
left to do is to say so. Beyond its limit of recompilations PyTorch would go on in eager mode with
a line in the log; a session makes that an error.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Compilation:
    """One compilation: at which tick, what started it, and the seconds that it took."""

    tick: int
    trigger: str
    seconds: float


class CompileMeter:
    """Notes every compilation in the process until it is closed.

    Args:
        tick: the present tick.
        note: told of each compilation as it ends.
    """

    def __init__(self, tick: Callable[[], int], note: Callable[[Compilation], None]) -> None:
        import torch._dynamo.config as dynamo
        from torch._dynamo.callback import callback_handler

        self._tick, self._note = tick, note
        self._began = 0.0
        self._trigger = ""
        handler: Any = callback_handler
        settings: Any = dynamo
        before = settings.fail_on_recompile_limit_hit
        settings.fail_on_recompile_limit_hit = True
        own = weakref.WeakMethod(self._start), weakref.WeakMethod(self._end)

        def start(facts: Any) -> None:
            method = own[0]()
            if method is not None:
                method(facts)

        def end(facts: Any) -> None:
            method = own[1]()
            if method is not None:
                method(facts)

        def listen() -> None:
            if start not in handler.start_callbacks:
                handler.register_start_callback(start)
                handler.register_end_callback(end)

        def close() -> None:
            if start in handler.start_callbacks:
                handler.remove_start_callback(start)
                handler.remove_end_callback(end)
            settings.fail_on_recompile_limit_hit = before

        #: Listen again: `torch._dynamo.reset()` forgets who listens.
        self.listen = listen
        self.close = weakref.finalize(self, close)
        listen()

    def _start(self, facts: Any) -> None:
        self._began = time.perf_counter()
        self._trigger = str(facts.callback_trigger.name).lower().replace("_", "-")

    def _end(self, _: Any) -> None:
        seconds = time.perf_counter() - self._began
        self._note(Compilation(self._tick(), self._trigger, seconds))
