"""One model of the zoo: how it is built and what must be reachable in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
Build = Callable[[torch.dtype], Built]


@dataclass(frozen=True)
class Entry:
    """A model and what is expected of it.

    Attributes:
        name: unique, lower case, words joined by `_`.
        family: text, vision, audio, series, multimodal, moe, state-space or pattern.
        build: from a dtype to (module in eval mode, args, kwargs); deterministic, with vectors off
            their neutral values and batches of three items, so that the batch can be dynamic.
        reach: kind of axis -> how many of this kind may be cut. Every kind is listed.
        stops: axis ID -> text that its `frozen_reason` must contain, for axes that are rightly out
            of reach and are worth asserting.
        fast: part of what every continuous integration run checks.
        trains: whether the module has a training mode that can be traced and stepped.
        onnx: empty, or why PyTorch's exporter cannot write this model.
        notes: words that a note of `model.notes` contains, if tracing has something to say.
    """

    name: str
    family: str
    build: Build
    reach: Mapping[str, int]
    stops: Mapping[str, str] = field(default_factory=dict)
    fast: bool = False
    trains: bool = True
    onnx: str = ""
    notes: str = ""
