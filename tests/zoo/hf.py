"""Entries made of `transformers` classes at tiny sizes, with random weights."""

from __future__ import annotations

import ast
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tests.models import BATCH, CLASSES, SEQUENCE, VOCABULARY, finish, pick, seeded
from tests.zoo.entry import Build, Built, Entry

Inputs = Callable[[torch.dtype], dict[str, Tensor]]

# What most configurations understand; the others ignore it.
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "num_labels": CLASSES,
    "use_cache": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TRANSFORMER: dict[str, Any] = {
    **COMMON,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 13,
}


class Narrowed(nn.Module):
    """A model of `transformers` with inputs by position and the fields wanted of its output."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], fields: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.fields = fields

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        named = dict(zip(self.names, inputs, strict=True))
        return pick(self.model(**named, return_dict=True), self.fields)


def tokens(dtype: torch.dtype, length: int = SEQUENCE) -> dict[str, Tensor]:
    """Token ids."""
    return {"input_ids": torch.randint(3, VOCABULARY, (BATCH, length))}


def padded(dtype: torch.dtype, length: int = SEQUENCE) -> dict[str, Tensor]:
    """Token ids and a mask; the last two rows are padded on the right."""
    mask = torch.ones(BATCH, length, dtype=torch.int64)
    mask[-2, 5:] = 0
    mask[-1, 3:] = 0
    return {**tokens(dtype, length), "attention_mask": mask}


def pair(dtype: torch.dtype) -> dict[str, Tensor]:
    """Token ids for an encoder, with a mask, and for a decoder."""
    ids = torch.randint(3, VOCABULARY, (BATCH, SEQUENCE - 2))
    return {**padded(dtype), "decoder_input_ids": ids}


def pixels(size: int, channels: int = 3) -> Inputs:
    """Square images."""
    return lambda dtype: {"pixel_values": torch.randn(BATCH, channels, size, size, dtype=dtype)}


def numbers(**shapes: tuple[int, ...]) -> Inputs:
    """Normally distributed tensors, each of the shape given after the batch."""
    return lambda dtype: {
        name: torch.randn(BATCH, *shape, dtype=dtype) for name, shape in shapes.items()
    }


def joined(*parts: Inputs) -> Inputs:
    """Inputs of several kinds."""
    return lambda dtype: {name: value for part in parts for name, value in part(dtype).items()}


def build(name: str, fields: str, inputs: Inputs, options: Mapping[str, Any]) -> Build:
    """Builder of `transformers.<name>` with those configuration options, seeded by its name."""

    def built(dtype: torch.dtype) -> Built:
        import transformers

        kind: Any = getattr(transformers, name)
        with seeded(zlib.crc32(name.encode())):
            model = kind(kind.config_class(**options))
            made = inputs(dtype)
            module = Narrowed(model, tuple(made), tuple(fields.split()))
            return finish(module, dtype), tuple(made.values()), {}

    return built


def entry(
    name: str,
    model: str,
    reach: str,
    *options: str | Mapping[str, Any],
    family: str,
    base: Mapping[str, Any],
    inputs: Inputs,
    fields: str,
    **rest: Any,
) -> Entry:
    """One entry from text that fits a table.

    Args:
        name, family, rest: as for `Entry`.
        model: a class of `transformers`.
        reach: `kind number, ...`.
        options: of its configuration on top of `base`, as mappings or as text `key=value, ...`.
        inputs: makes named inputs in a dtype; fields: attributes kept of the output.
    """
    merged = dict(base)
    for each in options:
        merged.update(mapping(each) if isinstance(each, str) else each)
    return Entry(name, family, build(model, fields, inputs, merged), counts(reach), **rest)


def mapping(text: str) -> dict[str, Any]:
    """`a=1, b=[2, 3]` as a mapping."""
    call = ast.parse(f"dict({text})", mode="eval").body
    assert isinstance(call, ast.Call)
    return {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}


def counts(text: str) -> dict[str, int]:
    """`heads 2, neurons 3` as numbers by kind."""
    pairs = (item.rsplit(" ", 1) for item in text.split(", ") if item)
    return {kind: int(number) for kind, number in pairs}
