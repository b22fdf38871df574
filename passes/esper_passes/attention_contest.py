"""Attention projections set against three layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from esper.propose import LowerAttentionProjections
from esper_passes.attention import projections
from esper_passes.contest import Contest, Way
from esper_passes.contest_parts import bytes_of, dtype_of, input_of
from esper_passes.kernel_ops import ops as kernels
from esper_passes.random_weight import RandomWeight

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper_passes.example_sizes import ExampleSizes


def attention_contest(model: Model, node: fx.Node, sizes: ExampleSizes) -> Contest | None:
    """Queries, keys and values that one op could compute; None for any other layer."""
    found = projections(model, node)
    if found is None:
        return None
    q, k, _ = found.parts
    heads = (q.heads, k.heads, k.heads)

    def ways(x: Tensor) -> tuple[Way, Way]:
        weights = [RandomWeight.like(part.layer, None) for part in found.parts]
        weight = torch.cat([each.stored for each in weights])
        biases = [each.bias for each in weights if each.bias is not None]
        bias = torch.cat(biases) if biases else None

        def apart() -> list[Tensor]:
            return [
                each.dense(x).view(*x.shape[:2], count, q.size).transpose(1, 2)
                for each, count in zip(weights, heads, strict=True)
            ]

        call = kernels.attention_projections.default
        return (
            Way(apart, (x, *(leaf for each in weights for leaf in each.trained))),
            Way(
                lambda: call(x, weight, bias, q.heads, k.heads, q.size),
                (x, weight) if bias is None else (x, weight, bias),
            ),
        )

    facts = {
        "op": "attention_projections",
        "tokens": sizes.tokens(q.layer.x),
        "outputs": sum(heads) * q.size,
        "inputs": q.layer.size[1],
        "dtype": dtype_of(q.layer),
        "pattern": f"{q.heads} + 2 x {k.heads} heads of {q.size}",
        "bias": q.layer.bias is not None,
    }
    layers = [part.layer for part in found.parts]
    return Contest(
        LowerAttentionProjections(node=node.name),
        tuple(layer.weight for layer in layers),
        facts,
        input_of(q.layer, sizes),
        ways,
        bytes_of(layers),
    )
