"""Reading a log: its events, their causes and what they led to."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from esper.errors import InputError
from esper.recorder import canonical, chain, codes, frames, sidecar
from esper.recorder.chain import Verification
from esper.recorder.event import Event, from_record

if TYPE_CHECKING:
    import torch


class Log:
    """The good part of a log: everything up to a torn tail.

    Args:
        path: of the log.

    Attributes:
        verification: what the log is worth.

    Raises:
        InputError: the file cannot be read, is no log, or is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        places: list[tuple[int, int]] = []

        def each(frame: frames.Frame) -> None:
            places.append((frame.start, frame.end))

        with chain.open_log(self.path) as stream:
            self.verification: Verification = chain.verify(stream, str(self.path), each)
        if not self.verification.ok:
            raise InputError(self.verification.reason)
        self._places = places

    @property
    def run(self) -> str:
        """Name of the run."""
        return self.verification.run

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Event]:
        with chain.open_log(self.path) as stream:
            for start, end in self._places:
                yield self._read(stream.fileno(), start, end)

    def event(self, number: int) -> Event:
        """One event. Raises InputError where there is none of this number."""
        if not 0 <= number < len(self):
            raise InputError(f"{self.path} has no event {number}: it holds {len(self)}")
        with chain.open_log(self.path) as stream:
            return self._read(stream.fileno(), *self._places[number])

    def find(self, code: str) -> Event:
        """The event with this code, or the only one whose code begins so.

        Raises:
            InputError: there is none, or there are several.
        """
        wanted = codes.normalized(code)
        if wanted is None:
            raise InputError(f"{code!r} is no code of an event: eight of {codes.ALPHABET}")
        own = codes.codes(self.run)
        if len(wanted) == codes.LENGTH:
            number = own.number(wanted)
            if number < len(self):
                return self.event(number)
            raise InputError(f"{self.path} has no event {wanted}: was it recorded by another run?")
        found = [n for n in range(len(self)) if own.code(n).startswith(wanted)]
        if len(found) == 1:
            return self.event(found[0])
        if not found:
            raise InputError(f"{self.path} has no event whose code begins with {wanted}")
        some = ", ".join(own.code(n) for n in found[:4])
        raise InputError(f"{len(found)} codes begin with {wanted}, such as {some}: give more of it")

    def causes(self, event: Event) -> list[Event]:
        """The chain from the root to the event itself."""
        chained = [event]
        while chained[-1].cause is not None:
            chained.append(self.event(chained[-1].cause))
        return chained[::-1]

    def effects(self, event: Event) -> list[Event]:
        """Events that it caused directly, in order."""
        return [self.event(number) for number in self._effects.get(event.number, [])]

    def tensors(self, digest: str) -> dict[str, torch.Tensor]:
        """Tensors that an event names by digest. Raises InputError."""
        return sidecar.load(self.path, digest)

    def counts(self) -> Counter[str]:
        """Events by kind."""
        return Counter(event.kind for event in self)

    @cached_property
    def _effects(self) -> dict[int, list[int]]:
        effects: dict[int, list[int]] = {}
        for event in self:
            if event.cause is not None:
                effects.setdefault(event.cause, []).append(event.number)
        return effects

    def _read(self, descriptor: int, start: int, end: int) -> Event:
        data = os.pread(descriptor, end - start, start)
        return from_record(self.run, canonical.decode(frames.payload_of(data)))
