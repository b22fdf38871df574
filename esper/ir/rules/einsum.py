"""einsum (PyTorch docs): equal letters unify, letters absent from the output are consumed."""

from __future__ import annotations

from typing import Any

import torch

from esper.ir.axes import Dims, Rule, Rules
from esper.ir.unify import Dim

aten = torch.ops.aten


def einsum(r: Rules) -> Dims:
    """einsum(equation, operands), with ellipses and with implicit outputs."""
    equation, operands = r.arg(0).replace(" ", ""), list(r.arg(1))
    inputs, _, output = equation.partition("->")
    terms = inputs.split(",")
    if "->" not in equation:
        letters = sorted(c for c in set(inputs) if c.isalpha() and inputs.count(c) == 1)
        output = ("..." if "..." in inputs else "") + "".join(letters)
    seen: dict[str, Dim] = {}
    rest: list[Dims] = []
    for position, (term, operand) in enumerate(zip(terms, operands, strict=True)):
        dims = r.of(operand)
        before, dots, after = term.partition("...")
        hidden = dims[len(before) : len(dims) - len(after)] if dots else []
        rest.append(hidden)
        named = [
            *enumerate(before),
            *((len(dims) - len(after) + i, c) for i, c in enumerate(after)),
        ]
        for i, letter in named:
            if term.count(letter) > 1:
                r.freeze(dims[i], "einsum takes a diagonal")
            known = seen.get(letter)
            if known is None or r.is_one(known):
                seen[letter] = dims[i]
            elif not r.is_one(dims[i]):
                r.unify(known, dims[i])
            if letter not in output:
                r.use((1, position), i, dims[i])
        if dots and "..." not in output:
            for i, dim in enumerate(hidden):
                r.use((1, position), len(before) + i, dim)
    shared = r.broadcast(*rest)
    before, dots, after = output.partition("...")
    return [*(seen[c] for c in before), *(shared if dots else []), *(seen[c] for c in after)]


TABLE: dict[Any, Rule] = {aten.einsum.default: einsum}
