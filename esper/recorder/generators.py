"""Named streams of random numbers: one per purpose and agent, none of them global.

Each number is a hash of seed, name and place in the stream, as in counter-based generators (Salmon
et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). So a stream's whole state is its
cursor, streams do not depend on which others exist or how they interleave, and a replay starts
anywhere by setting a cursor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from esper.errors import InputError, UsageError

if TYPE_CHECKING:
    import torch

_BITS = 53  # of a float64's fraction


class Stream:
    """One stream.

    Attributes:
        name: of the stream, such as `tamiyo` or `data`.
        seed: of the run.
        cursor: how often it has been drawn from.
    """

    def __init__(self, seed: int, name: str, cursor: int = 0) -> None:
        self.name = name
        self.seed = seed
        self.cursor = cursor
        # The length first: no two pairs of seed and name spell the same key.
        spelled = f"{len(str(seed))}:{seed}:{name}".encode()
        self._key = hashlib.blake2b(spelled, digest_size=32, person=b"esper stream").digest()

    def at(self, cursor: int) -> int:
        """The number at a place, 0 to 2**64 - 1, without drawing it."""
        place = cursor.to_bytes(8, "little")
        return int.from_bytes(hashlib.blake2b(place, key=self._key, digest_size=8).digest())

    def bits(self) -> int:
        """Draw a number from 0 to 2**64 - 1."""
        found = self.at(self.cursor)
        self.cursor += 1
        return found

    def uniform(self) -> float:
        """Draw a number of [0, 1), of 53 random bits."""
        return (self.bits() >> (64 - _BITS)) * 2.0**-_BITS

    def below(self, limit: int) -> int:
        """Draw an integer of [0, limit). Raises UsageError for a limit below 1."""
        if limit < 1:
            raise UsageError(f"there is no integer of 0 to below {limit}")
        # The bias is below limit / 2**64, and each call is one draw: cursors stay countable.
        return self.bits() * limit >> 64

    def pick(self, probabilities: Sequence[float]) -> int:
        """Draw an index with these probabilities (they need not sum to one exactly).

        Raises:
            UsageError: none of them is positive.
        """
        total = 0.0
        for probability in probabilities:
            total += probability
        if not total > 0:
            raise UsageError("nothing has a positive probability")
        aim, below, last = self.uniform() * total, 0.0, 0
        for index, probability in enumerate(probabilities):
            if probability > 0:
                below += probability
                last = index
                if aim < below:
                    break
        return last

    def generator(self, device: str | torch.device = "cpu") -> torch.Generator:
        """Draw a `torch.Generator`, for tensors of random numbers: one draw, whatever it makes."""
        import torch

        return torch.Generator(device).manual_seed(self.bits() >> 1)

    def generator_at(self, place: int, device: str | torch.device = "cpu") -> torch.Generator:
        """The `torch.Generator` of a place without drawing, such as that of a training step."""
        import torch

        return torch.Generator(device).manual_seed(self.at(place) >> 1)


class Generators:
    """The streams of a run by name, made when first asked for.

        generators = Generators(seed=7)
        generators["tamiyo"].uniform()
        torch.randn(8, generator=generators["data"].generator())

    Args:
        seed: of the run.
        seeds: other seeds for single streams.
    """

    def __init__(self, seed: int = 0, seeds: Mapping[str, int] | None = None) -> None:
        self.seed = seed
        self._own = dict(seeds or {})
        self._streams: dict[str, Stream] = {}

    def __getitem__(self, name: str) -> Stream:
        if name not in self._streams:
            self._streams[name] = Stream(self._own.get(name, self.seed), name)
        return self._streams[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._streams))

    @property
    def seeds(self) -> dict[str, int]:
        """What a log keeps: "" is the seed of every stream that has none of its own."""
        return {"": self.seed, **self._own}

    @classmethod
    def of_seeds(cls, seeds: Mapping[str, int]) -> Generators:
        """From `seeds`."""
        return cls(seeds.get("", 0), {name: seed for name, seed in seeds.items() if name})

    @property
    def cursors(self) -> dict[str, int]:
        """Name -> how often it has been drawn from, of the streams that were."""
        return {name: self._streams[name].cursor for name in self if self._streams[name].cursor}

    def place(self, cursors: Mapping[str, int]) -> None:
        """Set every cursor: streams that are not named go back to their beginning."""
        for stream in self._streams.values():
            stream.cursor = 0
        for name, cursor in cursors.items():
            self[name].cursor = cursor

    def state_dict(self) -> dict[str, Any]:
        """Seeds and cursors, as plain data."""
        return {"seeds": self.seeds, "cursors": self.cursors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; streams that were handed out go on, too.

        Raises:
            InputError: the state is that of other seeds.
        """
        if dict(state["seeds"]) != self.seeds:
            raise InputError(f"the state has the seeds {state['seeds']}, this run {self.seeds}")
        self.place(state["cursors"])
