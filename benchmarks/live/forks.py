"""Functions in processes of their own, forked from one that has traced the model but never trained.

PyTorch's autograd cannot be used on both sides of a fork, so the parent only looks after its
children. Tracing once and forking saves the import of PyTorch a thousand times.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

_CONTEXT = multiprocessing.get_context("fork")


@contextlib.contextmanager
def child(function: Callable[..., Any], *args: Any) -> Iterator[tuple[Any, Connection]]:
    """A child that runs `function(send, *args)`; gives the process and what receives from it."""
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_run, args=(sender, function, args))
    process.start()
    sender.close()
    try:
        yield process, receiver
    finally:
        process.join()
        receiver.close()


def forked(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns, run in a child. Raises RuntimeError if the child failed."""

    def told(send: Callable[[Any], None]) -> None:
        send(function(*args))

    with child(told) as (process, receiver):
        try:
            found = receiver.recv()
        except EOFError:
            found = None
    if process.exitcode != 0:
        raise RuntimeError(f"{function}{args} ended with {process.exitcode}")
    return found


def folder() -> tempfile.TemporaryDirectory[str]:
    """A new folder in memory, where there is one: what dies here are processes, not disks."""
    return tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)


def spread(function: Callable[..., Any], items: Sequence[Any], workers: int) -> list[Any]:
    """What `function(item)` returns for each item, from several forked workers at once."""

    def work(send: Callable[[Any], None], mine: Sequence[Any]) -> None:
        for item in mine:
            send(function(item))

    found: list[Any] = []
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(child(work, items[i::workers])) for i in range(workers)]
        waiting = [receiver for _, receiver in children]
        while waiting:
            for ready in multiprocessing.connection.wait(waiting):
                assert isinstance(ready, Connection)
                try:
                    found.append(ready.recv())
                except EOFError:
                    waiting.remove(ready)
    if len(found) != len(items):
        raise RuntimeError(f"a worker died: {len(found)} of {len(items)} results")
    return found


def _run(sender: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    with open(os.devnull, "w") as quiet, contextlib.suppress(BrokenPipeError):
        sys.stdout = sys.stderr = quiet
        function(sender.send, *args)
