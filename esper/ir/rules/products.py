"""Products and distances beyond `linear` and `matmul` (PyTorch docs of each op).

Contracted dims unify and are consumed; where zeros in both operands add nothing to a distance it
is a contraction too.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

from esper.ir.axes import Dims, Rule, Rules
from esper.ir.rules.contraction import matmul_of
from esper.ir.unify import Dim

aten = torch.ops.aten


def _contract(r: Rules, a: int, i: int, b: int, j: int) -> None:
    """Dim `i` of argument `a` meets dim `j` of argument `b` and both are consumed."""
    left, right = r.of(r.arg(a)), r.of(r.arg(b))
    r.unify(left[i], right[j])
    r.use((a,), i % len(left), left[i])
    r.use((b,), j % len(right), right[j])


def chain(r: Rules) -> Dims:
    """multi_dot([a, b, c]): neighbours contract."""
    operands = [r.of(t) for t in r.arg(0)]
    for at, (left, right) in enumerate(itertools.pairwise(operands)):
        r.unify(left[-1], right[0])
        r.use((0, at), len(left) - 1, left[-1])
        r.use((0, at + 1), 0, right[0])
    return [*operands[0][:-1], *operands[-1][1:]]


def addbmm(r: Rules) -> Dims:
    """input (n, m) + sum over b of a (b, n, k) @ c (b, k, m)."""
    batch, *rest = matmul_of(r, 1, 2)
    for at in (1, 2):
        r.use((at,), 0, batch)
    return r.broadcast(rest, r.of(r.arg(0)))


def addr(r: Rules) -> Dims:
    """input (n, m) + outer(a, b)."""
    return r.broadcast([r.of(r.arg(1))[0], r.of(r.arg(2))[0]], r.of(r.arg(0)))


def outer(r: Rules) -> Dims:
    """(n), (m) -> (n, m)."""
    return [r.of(r.arg(0))[0], r.of(r.arg(1))[0]]


def inner(r: Rules) -> Dims:
    """(*a, k), (*b, k) -> (*a, *b)."""
    a, b = r.of(r.arg(0)), r.of(r.arg(1))
    if not a or not b:
        return [*a, *b]
    _contract(r, 0, -1, 1, -1)
    return [*a[:-1], *b[:-1]]


def vecdot(r: Rules) -> Dims:
    """Inner products along one dim, the others broadcast."""
    dim = r.arg(2, "dim", -1)
    _contract(r, 0, dim, 1, dim)
    return _without(r.broadcast(r.of(r.arg(0)), r.of(r.arg(1))), dim)


def _without(dims: Dims, dim: int) -> Dims:
    at = dim % len(dims)
    return [d for i, d in enumerate(dims) if i != at]


def tensordot(r: Rules) -> Dims:
    """tensordot(a, b, dims of a, dims of b): the rest of a, then of b."""
    a, b = r.of(r.arg(0)), r.of(r.arg(1))
    first = [d % len(a) for d in r.arg(2)]
    second = [d % len(b) for d in r.arg(3)]
    for i, j in zip(first, second, strict=True):
        _contract(r, 0, i, 1, j)
    return [
        *(dim for i, dim in enumerate(a) if i not in first),
        *(dim for j, dim in enumerate(b) if j not in second),
    ]


def kron(r: Rules) -> Dims:
    """Every dim is that of a times that of b, shorter shapes led by ones."""
    a, b = list(r.of(r.arg(0))), list(r.of(r.arg(1)))
    rank = max(len(a), len(b))
    a = [r.fresh(1) for _ in range(rank - len(a))] + a
    b = [r.fresh(1) for _ in range(rank - len(b))] + b
    return [r.product(pair) for pair in zip(a, b, strict=True)]


def bilinear(r: Rules) -> Dims:
    """x (..., I), y (..., J), weight (O, I, J), bias (O) -> (..., O)."""
    x, y, weight = (r.of(r.arg(i)) for i in range(3))
    r.unify(x[-1], weight[1])
    r.unify(y[-1], weight[2])
    r.use((0,), len(x) - 1, x[-1])
    r.use((1,), len(y) - 1, y[-1])
    if r.arg(3, "bias") is not None:
        r.unify(weight[0], r.of(r.arg(3, "bias"))[0])
    r.role(weight[0], "neurons")
    return [*r.broadcast(x[:-1], y[:-1]), weight[0]]


def cdist(r: Rules) -> Dims:
    """x (..., P, M), y (..., R, M) -> (..., P, R): p-norms of differences, p > 0."""
    x, y = r.of(r.arg(0)), r.of(r.arg(1))
    if r.arg(2, "p", 2.0) > 0:
        _contract(r, 0, -1, 1, -1)
    else:
        r.unify(x[-1], y[-1])
        r.freeze(x[-1], "counted by cdist")
    return [*r.broadcast(x[:-2], y[:-2]), x[-2], y[-2]]


def cosine(r: Rules) -> Dims:
    """cosine_similarity(x, y, dim): a product and two norms, to which zeros add nothing."""
    x, y, dim = r.of(r.arg(0)), r.of(r.arg(1)), r.arg(2, "dim", 1)
    both = r.broadcast(x, y)
    at = dim % len(both)
    for i, dims in enumerate((x, y)):
        own = at - len(both) + len(dims)
        if own >= 0 and not r.is_one(dims[own]):
            r.use((i,), own, dims[own])
    if any(len(d) < len(both) or r.is_one(d[at]) != r.is_one(both[at]) for d in (x, y)):
        r.freeze(both[at], "cosine_similarity broadcasts along it")
    return _without(both, dim)


def pairwise_distance(r: Rules) -> Dims:
    """Norm of x - y + eps along the last dim: eps counts every unit, unless it is zero."""
    dims = r.broadcast(r.of(r.arg(0)), r.of(r.arg(1)))
    r.freeze(dims[-1], "pairwise_distance adds a constant to every unit")
    return [*dims[:-1], r.fresh(1)] if r.arg(4, "keepdim", False) else dims[:-1]


def cross(r: Rules) -> Dims:
    """Cross product along a dim of size 3."""
    dims = r.broadcast(r.of(r.arg(0)), r.of(r.arg(1)))
    dim = r.arg(2, "dim", -1)
    if dim is None:
        r.freeze(dims, "cross product over the first dim of size 3")
    else:
        r.freeze(dims[dim], "coordinates of a cross product")
    return dims


def weight_norm(r: Rules) -> Dims:
    """w = g v / |v|, the norm over all dims but one: it is taken over the units that stay."""
    v, g, dim = r.of(r.arg(0)), r.of(r.arg(1)), r.arg(2, "dim", 0)
    for i, mine in enumerate(v):
        if i == dim:
            r.unify(mine, g[i])
        else:
            r.use((0,), i, mine)
            r.couple(mine, "weight_norm shares a norm between units")
    return v


def diagonal(r: Rules) -> Dims:
    """diagonal(x, offset, a, b): the two dims are the same units, last in the result."""
    dims = list(r.of(r.arg(0)))
    a, b = (r.arg(i, name, i - 2) % len(dims) for i, name in ((2, "dim1"), (3, "dim2")))
    rest = [dim for i, dim in enumerate(dims) if i not in (a, b)]
    if r.arg(1, "offset", 0) or r.shape(r.arg(0))[a] != r.shape(r.arg(0))[b]:
        r.freeze([dims[a], dims[b]], "a diagonal beside the main one")
        return [*rest, r.fresh(r.shape()[-1], "a diagonal beside the main one")]
    r.unify(dims[a], dims[b])
    return [*rest, dims[a]]


def diag_embed(r: Rules) -> Dims:
    """diag_embed(x, offset, a, b): the last dim becomes rows and columns."""
    *rest, last = r.of(r.arg(0))
    rank = len(rest) + 2
    a, b = r.arg(2, "dim1", -2) % rank, r.arg(3, "dim2", -1) % rank
    made: list[Dim] = [last, last]
    if r.arg(1, "offset", 0):
        r.freeze(last, "a diagonal beside the main one")
        made = [r.fresh(r.shape()[i], "a diagonal beside the main one") for i in (a, b)]
    others, pair = iter(rest), dict(zip((a, b), made, strict=True))
    return [pair[i] if i in pair else next(others) for i in range(rank)]


def trace(r: Rules) -> Dims:
    """Sum of the diagonal."""
    dims = r.of(r.arg(0))
    if r.shape(r.arg(0))[0] != r.shape(r.arg(0))[1]:
        r.freeze(dims, "trace of a matrix that is not square")
        return []
    r.unify(*dims)
    r.use((0,), 0, dims[0])
    return []


TABLE: dict[Any, Rule] = {
    aten.linalg_multi_dot.default: chain,
    aten.chain_matmul.default: chain,
    aten.addbmm.default: addbmm,
    aten.addr.default: addr,
    aten.outer.default: outer,
    aten.ger.default: outer,
    aten.inner.default: inner,
    aten.linalg_vecdot.default: vecdot,
    aten.vdot.default: inner,
    aten.tensordot.default: tensordot,
    aten.kron.default: kron,
    aten.bilinear.default: bilinear,
    aten.cdist.default: cdist,
    aten.cosine_similarity.default: cosine,
    aten.pairwise_distance.default: pairwise_distance,
    aten.cross.default: cross,
    aten.linalg_cross.default: cross,
    aten._weight_norm.default: weight_norm,
    aten.diagonal.default: diagonal,
    aten.diag_embed.default: diag_embed,
    aten.trace.default: trace,
}
