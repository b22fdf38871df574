"""How optimizers lay out their state, so that each tensor of it can follow its parameter.

The common case needs no table: a state tensor has the parameter's shape, or that shape with some
sizes reduced to 1 (factored second moments, `torch.optim.Adafactor`), or is a scalar. Anything
else needs a layout that says which of the parameter's dims each state dim is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from esper.errors import UsageError
from esper.live.policy import Moments
from esper.state import Forget, Grow, Move, Patch, Rearrange, Replace, Select, Train

# State key and the parameter's shape -> the parameter's dim that each dim of the state tensor is.
Layout = Callable[[str, tuple[int, ...]], tuple[int, ...]]

_LAYOUTS: dict[str, Layout] = {}
# Averages of squares (or of absolute values): zero there means an infinitely confident step.
SECOND = frozenset(
    "exp_avg_sq max_exp_avg_sq exp_inf square_avg sum row_var col_var variance exp_avg_sq_row "
    "exp_avg_sq_col".split()
)


def _factored(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Rows and columns of a factored second moment, as `transformers.Adafactor` keeps them."""
    rank = len(shape)
    if key == "exp_avg_sq_row":
        return tuple(range(rank - 1))
    if key == "exp_avg_sq_col":
        return (*range(rank - 2), rank - 1)
    return tuple(range(rank))


_BUILT_IN: dict[str, Layout] = {"transformers.optimization.Adafactor": _factored}


def register_optimizer_layout(optimizer: type[torch.optim.Optimizer], layout: Layout) -> None:
    """Say how an optimizer of yours lays out its state.

    Args:
        optimizer: the class.
        layout: from a state key and the parameter's shape to the parameter's dim that each dim of
            that state tensor is.

    Raises:
        UsageError: the class has a layout already.
    """
    name = _name(optimizer)
    if _LAYOUTS.get(name, layout) is not layout or name in _BUILT_IN:
        raise UsageError(f"{name} has a layout already")
    _LAYOUTS[name] = layout


def _name(optimizer: type[torch.optim.Optimizer]) -> str:
    return f"{optimizer.__module__}.{optimizer.__qualname__}"


def dims_of(
    optimizer: torch.optim.Optimizer, key: str, state: torch.Tensor, shape: tuple[int, ...]
) -> tuple[int, ...]:
    """The parameter's dim that each dim of a state tensor is; () for what has no dims.

    Raises:
        UsageError: the tensor fits neither the parameter's shape nor a registered layout.
    """
    if state.ndim == 0:
        return ()
    name = _name(type(optimizer))
    layout = _BUILT_IN.get(name) or _LAYOUTS.get(name)
    dims = layout(key, shape) if layout is not None else tuple(range(len(shape)))
    sizes = tuple(shape[dim] for dim in dims)
    if len(sizes) == state.ndim and all(
        have in (want, 1) for have, want in zip(state.shape, sizes, strict=True)
    ):
        return dims
    raise UsageError(
        f"state {key!r} of {type(optimizer).__name__} has shape {tuple(state.shape)} beside a "
        f"parameter of {shape}: describe it with esper.register_optimizer_layout"
    )


def join(
    states: Sequence[torch.Tensor], dims: Sequence[int], shapes: Sequence[tuple[int, ...]]
) -> torch.Tensor:
    """State tensors of parameters that are joined along their first dim, as one.

    Args:
        states: one for each parameter, not changed.
        dims: from `dims_of`, the same for all.
        shapes: the parameters' sizes.

    Raises:
        UsageError: they have no dims and are not equal, as step counts of parameters that took
            different numbers of steps.
    """
    first = states[0]
    if not dims and any(not torch.equal(first, other) for other in states[1:]):
        raise UsageError("parameters that took different numbers of steps are not joined")
    if not dims or 0 not in dims:
        return torch.stack(list(states)).mean(0).to(first.dtype)
    at = list(dims).index(0)
    if any(s.shape[at] != shape[0] for s, shape in zip(states, shapes, strict=True)):
        return torch.stack(list(states)).mean(0)  # one number stands for the whole dimension
    return torch.cat(list(states), at)


def follow(
    op: Move,
    key: str,
    state: torch.Tensor,
    dims: Sequence[int],
    shape: tuple[int, ...],
    how: Moments,
) -> torch.Tensor:
    """A state tensor after the operation on its parameter.

    Args:
        op: what happened to the parameter.
        key: name of the state.
        state: the tensor, not changed.
        dims: from `dims_of`.
        shape: the parameter's sizes before.
        how: `keep` or `asymmetric`.
    """
    if not dims:
        return state
    if isinstance(op, (Patch, Train)):
        return state
    if isinstance(op, Forget):
        whole = tuple(dims) == tuple(range(len(shape))) and state.shape == op.at.shape
        return op.shadow(state) if whole else state  # a factored moment stands for many entries
    if isinstance(op, Replace):
        return _restart(op, state, dims, shape)
    if isinstance(op, Rearrange):
        return _rearranged(op, key, state, dims, shape)
    if op.dim not in dims or state.shape[dims.index(op.dim)] != shape[op.dim]:
        return state  # factored away: one number stands for the whole dimension
    at = list(dims).index(op.dim)
    if isinstance(op, Select):
        return replace(op, dim=at).shadow(state)
    return _grown(op, key, state, at, how)


def _restart(
    op: Replace, state: torch.Tensor, dims: Sequence[int], shape: tuple[int, ...]
) -> torch.Tensor:
    sizes = [
        1 if have == 1 and shape[dim] != 1 else op.value.shape[dim]
        for have, dim in zip(state.shape, dims, strict=True)
    ]
    return state.new_zeros(sizes)


def _rearranged(
    op: Rearrange, key: str, state: torch.Tensor, dims: Sequence[int], shape: tuple[int, ...]
) -> torch.Tensor:
    """Elements without a past get the average second moment of those that have one.

    A factored moment, one number for a whole row or column, is written out, rearranged, and
    averaged over the elements that came to lie in each row or column.

    Raises:
        UsageError: it is factored, and there are other rows and columns than a matrix has.
    """
    sizes = [1] * len(shape)
    for have, dim in zip(state.shape, dims, strict=True):
        sizes[dim] = have
    moved = op.shadow(state.reshape(sizes).expand(shape))
    known = (op.source >= 0).to(state.device)
    rest = state.mean() if key in SECOND else state.new_zeros(())
    factored = [dim for dim, size in enumerate(sizes) if size != shape[dim]]
    if not factored and len(dims) == len(shape):
        return moved.where(known, rest)
    if moved.ndim != len(shape):
        raise UsageError(
            f"state {key!r} is kept by rows and columns, which a weight in another number of dims "
            "does not have: take its kernel out before training, or use another optimizer"
        )
    count = known.sum(factored, keepdim=True)
    moved = moved.where(known, 0).sum(factored, keepdim=True) / count.clamp_min(1)
    moved = moved.where(count > 0, rest)
    return moved.reshape([moved.shape[dim] for dim in dims])


def _grown(op: Grow, key: str, state: torch.Tensor, at: int, how: Moments) -> torch.Tensor:
    count = op.fill.shape[op.dim]
    fill: torch.Tensor | None = None
    second = key in SECOND
    if op.sources is not None and (how == "keep" or second):
        index = torch.tensor(op.sources, dtype=torch.int64, device=state.device)
        fill = state.index_select(at, index)
    elif second:
        fill = state.mean(at, keepdim=True).repeat_interleave(count, at)
    empty = state.new_zeros([count if d == at else s for d, s in enumerate(state.shape)])
    return Grow(at, op.places, empty).spread(state, fill)
