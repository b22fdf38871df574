"""How much single entries of weights matter to the outputs, on calibration data without labels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.passbase import Context


def weight_scores(
    model: Model, tensors: Sequence[str], saliency: str, context: Context, pass_name: str
) -> dict[str, torch.Tensor]:
    """Scores by tensor, float64, higher matters more.

    The loss is a projection of the outputs on random signs, each output scaled to unit energy, as
    in `saliency.taylor`. `taylor` is the mean of |w * g| over batches (Molchanov et al. 2017),
    `fisher` w^2 * mean of g^2 (Theis et al., arXiv:1801.05787).
    """
    batches = context.batches(pass_name)
    copied = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(context.seed)
    weights = {name: copied.get_parameter(name).requires_grad_() for name in tensors}
    scores = {n: torch.zeros(w.shape, dtype=torch.float64) for n, w in weights.items()}
    for done, (args, kwargs) in enumerate(batches):
        context.progress(done, len(batches), f"{saliency} saliency of weights")
        outputs = [
            leaf
            for leaf in pytree.tree_leaves(copied(*args, **kwargs))
            if isinstance(leaf, torch.Tensor) and leaf.requires_grad
        ]
        loss = torch.zeros(())
        for output in outputs:
            signs = torch.randint(0, 2, output.shape, generator=generator) * 2 - 1
            scale = output.detach().float().square().sum().sqrt().clamp_min(1e-12)
            loss = loss.to(output.device) + (output * signs.to(output.device)).sum() / scale
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            if gradient is not None:
                product = (weight.detach() * gradient).double().cpu()
                term = product.abs() if saliency == "taylor" else product.square()
                scores[name] += term / len(batches)
    context.progress(len(batches), len(batches), f"{saliency} saliency of weights")
    return scores
