"""The masked-reference oracle: a cut model against the uncut one with masks, in float64.

`assert_exact_cut` compares outputs, gradients of every parameter and buffers after a training
step, then cuts a copy whose removed weights were overwritten with NaN: if any of them were still
read, the outputs would show it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from esper.ir import shapes
from esper.ir.model import Model
from esper.ir.ports import read_ports
from esper.ir.reference import masked_reference
from esper.ir.terms import kept_index
from esper.ir.verifier import verify
from esper.manager import PassManager, Verify
from esper.propose import PruneUnits

TOLERANCE = 1e-9  # float64: contraction order differs, nothing else


def as_float64(model: Model) -> Model:
    """A float64 copy in which internal up-casts to float32 (RMS norms, rotary) stay in float64."""
    wide = copy.deepcopy(model)
    for node in wide.graph.nodes:
        node.args = tuple(torch.float64 if a is torch.float32 else a for a in node.args)
        node.kwargs = {
            k: torch.float64 if v is torch.float32 else v for k, v in node.kwargs.items()
        }
    wide.double()
    shapes.propagate(wide)
    wide.ports = read_ports(wide)  # outputs that were cast to float32 are float64 now
    wide.recompile()
    return wide


def cut_all(
    model: Model, removed: Mapping[str, Sequence[int]], verification: Verify = "incremental"
) -> Model:
    """A copy with the units cut, each axis through the manager."""
    changed = copy.deepcopy(model)
    manager = PassManager(changed, verify=verification)
    with manager.batch():
        for axis, units in removed.items():
            record = manager.apply(PruneUnits(axis=axis, units=tuple(units)))
            assert record.kind == "passed", record.line()
    return changed


def kept_indices(
    model: Model, removed: Mapping[str, Sequence[int]]
) -> dict[str, list[torch.Tensor]]:
    """Tensor name -> positions that stay along each dimension."""
    table, axes = model.table, model.anatomy.axes
    keep = {
        axes[name].atom: np.setdiff1d(
            np.arange(axes[name].size), axes[name].positions(tuple(units))
        )
        for name, units in removed.items()
    }
    return {
        name: [torch.from_numpy(kept_index(term, keep, table.sizes)) for term in terms]
        for name, terms in table.tensors.items()
    }


def select(tensor: torch.Tensor, index: Sequence[torch.Tensor]) -> torch.Tensor:
    """The block of a tensor at kept positions."""
    for dim, positions in enumerate(index):
        tensor = tensor.index_select(dim, positions)
    return tensor


def poison(model: Model, removed: Mapping[str, Sequence[int]]) -> Model:
    """A copy in which everything that removed units own is NaN."""
    poisoned = copy.deepcopy(model)
    for name, index in kept_indices(model, removed).items():
        tensor = poisoned.tensor(name)
        assert tensor is not None
        if not tensor.dtype.is_floating_point:
            continue
        bad = torch.full_like(tensor, float("nan"))
        grid = np.ix_(*(i.numpy() for i in index)) if index else ()
        bad.detach()[grid] = tensor.detach()[grid]
        tensor.data = bad.detach()
    return poisoned


def run(model: Model, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """Flat tensor outputs."""
    leaves = pytree.tree_leaves(model(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def gradients(model: Model, args: Any, kwargs: Any) -> dict[str, torch.Tensor | None]:
    """Gradients of a fixed random projection of the outputs."""
    model.zero_grad(set_to_none=True)
    generator = torch.Generator().manual_seed(7)
    outputs = [o for o in run(model, args, kwargs) if o.dtype.is_floating_point and o.requires_grad]
    loss = sum(
        (o * torch.randn(o.shape, generator=generator, dtype=o.dtype)).sum() for o in outputs
    )
    assert isinstance(loss, torch.Tensor)
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters()}


def close(a: torch.Tensor, b: torch.Tensor, what: str) -> None:
    """Equal up to float64 rounding, NaN equal to NaN."""
    assert a.shape == b.shape, f"{what}: {tuple(a.shape)} against {tuple(b.shape)}"
    scale = (
        max(1.0, b.detach().abs().max().item()) if b.numel() and b.dtype.is_floating_point else 1.0
    )
    torch.testing.assert_close(
        a, b, rtol=0, atol=TOLERANCE * scale, equal_nan=True, msg=lambda m: f"{what}: {m}"
    )


def assert_exact_cut(
    model: Model,
    removed: Mapping[str, Sequence[int]],
    args: Any,
    kwargs: Any,
    *,
    train: bool = True,
) -> Model:
    """Every part of the oracle; returns the cut model."""
    reference, cut = masked_reference(model, removed), cut_all(model, removed)
    verify(cut)
    index = kept_indices(model, removed)
    for mine, theirs in zip(run(cut, args, kwargs), run(reference, args, kwargs), strict=True):
        assert not torch.isnan(theirs).any()
        close(mine, theirs, "output")
    clean = cut_all(poison(model, removed), removed, "none")  # the same plans again
    for mine, theirs in zip(run(clean, args, kwargs), run(cut, args, kwargs), strict=True):
        assert torch.equal(mine, theirs), "removed weights are still read"
    if train:
        _compare_training(reference, cut, index, args, kwargs)
    return cut


def _compare_training(
    reference: Model, cut: Model, index: Mapping[str, list[torch.Tensor]], args: Any, kwargs: Any
) -> None:
    for model in (reference, cut):
        model.train()
        _no_randomness(model)
    expected = gradients(reference, args, kwargs)
    for name, grad in gradients(cut, args, kwargs).items():
        other = expected[name]
        if grad is None or other is None:
            assert grad is None, name
            assert other is None or not select(other, index[name]).any(), name
            continue
        close(grad, select(other, index[name]), f"gradient of {name}")
    for name, buffer in cut.named_buffers():
        other_buffer = reference.tensor(name)
        assert other_buffer is not None
        picked = select(other_buffer, index[name]) if name in index else other_buffer
        close(buffer, picked, f"buffer {name}")


def _no_randomness(model: Model) -> None:
    """Dropout masks have the shape of what they mask, so cut models draw others: turn it off."""
    aten = torch.ops.aten
    for node in model.graph.nodes:
        if node.target is aten.dropout.default:
            node.args = (node.args[0], 0.0, True)
        if node.target is aten.scaled_dot_product_attention.default:
            node.args = (*node.args[:4], 0.0, *node.args[5:])
    model.recompile()
