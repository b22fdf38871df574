"""The models that every other test uses, as entries of the zoo."""

from __future__ import annotations

from tests.models import MODELS
from tests.zoo.entry import Build, Entry

_LLAMA = {"embedding": 1, "kv-groups": 2, "query-heads": 2, "head-size": 3, "neurons": 2}
_REACH: dict[str, tuple[str, dict[str, int]]] = {
    "bert": ("text", {"embedding": 1, "heads": 2, "head-size": 4, "neurons": 3}),
    "bert_eager": ("text", {"embedding": 1, "heads": 2, "head-size": 4, "neurons": 3}),
    "bert_encoder": ("text", {"heads": 2, "head-size": 4, "neurons": 2}),
    "gpt2": ("text", {"embedding": 1, "heads": 2, "head-size": 4, "neurons": 2}),
    "llama": ("text", _LLAMA),
    "llama_native_norm": ("text", _LLAMA),
    "vit": ("vision", {"embedding": 1, "heads": 2, "head-size": 4, "neurons": 2}),
    "resnet_basic": ("vision", {"channels": 9}),
    "resnet_bottleneck": ("vision", {"channels": 15}),
    "efficientnet": ("vision", {"channels": 12}),
    "convnext": ("vision", {"embedding": 2, "neurons": 4}),
    "unet": ("vision", {"channels": 12}),
    "unet_interpolate": ("vision", {"channels": 12}),
}
_FAST = {"bert", "convnext"}


def _builder(name: str) -> Build:
    return lambda dtype: MODELS[name](dtype=dtype)


TABLE = tuple(
    Entry(name, family, _builder(name), reach, fast=name in _FAST)
    for name, (family, reach) in _REACH.items()
)
