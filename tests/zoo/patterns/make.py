"""How a pattern becomes an entry."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from tests.zoo.entry import Built, Entry

BATCH = 3
Input = Callable[[], Tensor]


def pattern(
    name: str,
    module: Callable[[], nn.Module],
    *inputs: Input,
    reach: Mapping[str, int],
    stops: Mapping[str, str] | None = None,
    fast: bool = False,
    trains: bool = True,
    onnx: str = "",
    notes: str = "",
) -> Entry:
    """An entry of the family "pattern", seeded by its name; for the other arguments see `Entry`."""

    def build(dtype: torch.dtype) -> Built:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(name.encode()))
            made = module()
            with torch.no_grad():
                for parameter in made.parameters():
                    if parameter.ndim == 1:
                        parameter.add_(0.2 * torch.randn_like(parameter))
                for buffer_name, buffer in made.named_buffers():
                    if buffer_name.endswith("running_mean"):
                        buffer.normal_(0.0, 0.2)
                    elif buffer_name.endswith("running_var"):
                        buffer.uniform_(0.5, 1.5)
            args = tuple(make() for make in inputs)
        args = tuple(a.to(dtype) if a.is_floating_point() else a for a in args)
        return made.to(dtype).eval(), args, {}

    return Entry(
        name, "pattern", build, reach, stops or {}, fast, trains=trains, onnx=onnx, notes=notes
    )


def rows(width: int = 4) -> Input:
    return lambda: torch.randn(BATCH, width)


def tokens(length: int = 5, width: int = 8) -> Input:
    return lambda: torch.randn(BATCH, length, width)


def image(size: int = 8, channels: int = 3) -> Input:
    return lambda: torch.randn(BATCH, channels, size, size)


def series(length: int = 8, channels: int = 3) -> Input:
    return lambda: torch.randn(BATCH, channels, length)


def ids(length: int = 5, vocabulary: int = 11) -> Input:
    return lambda: torch.randint(0, vocabulary, (BATCH, length))
