"""The layers that are measured: those of models that people run.

Layers of equal size are measured once and stand for all models that have them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from esper.errors import UsageError

Kind = Literal["linear", "gated", "projections"]


@dataclass(frozen=True)
class Layer:
    """One layer of a model.

    Attributes:
        kind: `linear` is x W^T; `gated` is act(x G^T) * (x U^T), the first half of a gated MLP;
            `projections` are query, key and value, split into heads.
        outputs, inputs: size of W; of each of two W when gated; of all three together for
            projections.
        heads: of queries, of keys and values, and the size of each, for projections.
        activation: of the gate, when gated.
    """

    model: str
    name: str
    outputs: int
    inputs: int
    bias: bool
    kind: Kind = "linear"
    heads: tuple[int, int, int] = (0, 0, 0)
    activation: str = ""

    @property
    def id(self) -> str:
        """`model/name`."""
        return f"{self.model}/{self.name}"

    @property
    def size(self) -> tuple[object, ...]:
        """What has to agree for a measurement to stand for two layers."""
        return self.outputs, self.inputs, self.bias, self.kind, self.heads, self.activation


def _llama(model: str, width: int, hidden: int, heads: tuple[int, int], bias: bool) -> list[Layer]:
    """Layers of a decoder with grouped queries and a gated MLP; `bias` is that of q, k and v."""
    query, shared = heads
    size = width // query
    projected = (query + 2 * shared) * size
    return [
        Layer(model, "qkv", projected, width, bias),
        Layer(model, "projections", projected, width, bias, "projections", (query, shared, size)),
        Layer(model, "o", width, width, False),
        Layer(model, "gate", hidden, width, False),
        Layer(model, "mlp", hidden, width, False, "gated", activation="silu"),
        Layer(model, "down", width, hidden, False),
    ]


def _encoder(model: str, width: int, hidden: int) -> list[Layer]:
    """Layers of a transformer encoder, q, k and v as one."""
    return [
        Layer(model, "qkv", 3 * width, width, True),
        Layer(model, "o", width, width, True),
        Layer(model, "up", hidden, width, True),
        Layer(model, "down", width, hidden, True),
    ]


# Where each size is from.
SOURCES = {
    "llama-3-8b": "config.json of meta-llama/Meta-Llama-3-8B",
    "qwen2.5-7b": "config.json of Qwen/Qwen2.5-7B",
    "bert-base": "config.json of google-bert/bert-base-uncased",
    "vit-b16": "config.json of google/vit-base-patch16-224",
    "mixer-b16": "Tolstikhin et al., arXiv:2105.01601, table 1",
}

LAYERS: tuple[Layer, ...] = (
    *_llama("llama-3-8b", 4096, 14336, (32, 8), bias=False),
    *_llama("qwen2.5-7b", 3584, 18944, (28, 4), bias=True),
    *_encoder("bert-base", 768, 3072),
    *_encoder("vit-b16", 768, 3072),
    Layer("vit-b16", "head", 1000, 768, True),
    # 196 patches of 768 channels: tokens are mixed over patches, channels over channels.
    Layer("mixer-b16", "token-up", 384, 196, True),
    Layer("mixer-b16", "token-down", 196, 384, True),
    Layer("mixer-b16", "channel-up", 3072, 768, True),
    Layer("mixer-b16", "channel-down", 768, 3072, True),
)

QUICK = ("llama-3-8b/o", "llama-3-8b/mlp", "llama-3-8b/projections", "bert-base/up")


def choose(globs: Iterable[str]) -> list[Layer]:
    """Layers whose ID or model matches one of the globs, in the order of the table.

    Raises UsageError for a glob that fits nothing, with the nearest name.
    """
    from esper.cli.loaders import nearest

    chosen: set[str] = set()
    for glob in globs:
        fits = [layer.id for layer in LAYERS if fnmatchcase(layer.id, glob) or layer.model == glob]
        if not fits:
            known = [*SOURCES, *(layer.id for layer in LAYERS)]
            hint = nearest(glob, known) or f"; models are {', '.join(SOURCES)}"
            raise UsageError(f"--shapes: no layer of the table is called {glob!r}{hint}")
        chosen.update(fits)
    return [layer for layer in LAYERS if layer.id in chosen]


def merged(layers: Iterable[Layer]) -> dict[Layer, list[str]]:
    """The first layer of each size, and the IDs of all layers that it stands for."""
    first: dict[tuple[object, ...], Layer] = {}
    found: dict[Layer, list[str]] = {}
    for layer in layers:
        stands = first.setdefault(layer.size, layer)
        found.setdefault(stands, []).append(layer.id)
    return found
