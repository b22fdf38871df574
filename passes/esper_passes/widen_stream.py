"""Growth of axes whose units share statistics: the residual stream and its norms.

With D of D' units old, the function stays where what new units hold is known at each norm:

- an RMS norm must find zeros. The mean square is then D/D' of what it was, so the norm's weight
  times sqrt(D/D') and its epsilon times D/D' give the old result;
- a layer norm must find the mean of the old units, since then mean and centred units stay; the
  same factors apply. Whatever writes into the stream writes the mean of what it wrote.

Either norm gives zero at new units (the new biases are zero), so what reads them may hold anything
and the new units learn (LEMON, arXiv:2310.07999). Where the stream itself is normalised in place
(post-norm), or something else is done to it, no such choice exists and growth is lossy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import fx

from esper.ir.modes import get_path
from esper.ir.rules.shape import MOVES
from esper.ir.terms import atoms_of
from esper.plan import Edit, Refusal, SetArg
from esper_passes.filling import Filling
from esper_passes.norms import Norm, norm_of
from esper_passes.outgoing import Place

if TYPE_CHECKING:
    from esper.ir.anatomy import Axis
    from esper.ir.model import Model
    from esper.propose import WidenUnits
    from esper.propose.base import Tolerance

aten = torch.ops.aten
Held = Literal["zero", "mean", "any"]
_CASTS = (aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.to.device)
_KEEPS = (aten.neg.default, aten.dropout.default)  # dropout in evaluation
_SUMS = (aten.add.Tensor, aten.sub.Tensor, aten.cat.default, aten.stack.default)
_ZERO = {
    getattr(aten, name).default
    for name in "relu gelu silu tanh abs leaky_relu elu mish hardswish".split()
} | {aten.pow.Tensor_Scalar, aten.div.Scalar, aten.mul.Scalar}
# Layers that write units: positions of weight and bias, and the weight's dim of outputs.
_WRITERS: dict[Any, tuple[int, int | None, int]] = {
    aten.linear.default: (1, 2, 0),
    aten.addmm.default: (2, 0, -1),
    aten.matmul.default: (1, None, -1),
    aten.mm.default: (1, None, -1),
    aten.embedding.default: (0, None, 1),
    **{getattr(aten, f"conv{n}d").default: (1, 2, 0) for n in (1, 2, 3)},
    **{getattr(aten, f"conv{n}d").padding: (1, 2, 0) for n in (1, 2, 3)},
}


@dataclass
class Stream:
    """How the places of a coupled axis are filled."""

    fillings: dict[Place, Filling] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)
    tolerance: Tolerance = "reassociates"
    note: str = ""


def stream(model: Model, axis: Axis, proposal: WidenUnits) -> Stream | Refusal:
    """Refuses (`coupled-axis`) where the function would change, unless the proposal allows it."""
    if proposal.init != "zero":
        return Refusal(
            "coupled-axis",
            f"units of {axis.id} share statistics ({axis.lossy_reason}), so they grow with init "
            f"zero alone, not {proposal.init}",
            axis.id,
            "use init zero",
        )
    walk = _Walk(model, axis, axis.size / (axis.size + proposal.count))
    walk.run()
    if walk.conflict is not None:
        return walk.conflict
    result = Stream(walk.fillings, walk.edits)
    if walk.changes:
        reason = f"growing {axis.id} changes the function: {walk.changes[0]}"
        if not proposal.lossy:
            return Refusal(
                "coupled-axis", reason, axis.id, "allow it with lossy=True, or widen another axis"
            )
        result.tolerance, result.note = "lossy", f", lossy: {walk.changes[0]}"
    return result


class _Walk:
    """One pass over the graph: what each value holds at new units."""

    def __init__(self, model: Model, axis: Axis, ratio: float) -> None:
        self.model, self.axis, self.ratio = model, axis, ratio
        self.nodes = model.nodes
        self.names = model.canonical_names()
        self.fillings: dict[Place, Filling] = {}
        self.edits: list[Edit] = []
        self.changes: list[str] = []
        self.conflict: Refusal | None = None
        self.held: dict[fx.Node, Held] = {}
        self.norms: dict[fx.Node, Norm] = {}
        uses = model.table.uses_of.get(axis.atom, ())
        self.readers = [use for use in uses if use.kind == "zero"]
        for use in uses:
            if use.kind == "zero":
                continue
            found = norm_of(model, self.nodes[use.node])
            if found is None:
                self.changes.append(f"%{use.node} takes statistics that nothing can put right")
            else:
                self.norms[self.nodes[use.node]] = found
        centred = any(norm.centred for norm in self.norms.values())
        self.base: Literal["zero", "mean"] = "mean" if centred else "zero"

    def run(self) -> None:
        for node in self.model.graph.nodes:
            if node in self.norms:
                self._normalise(node, self.norms[node])
            elif node.op == "call_function" and self._holds(node):
                self.held[node] = self._value(node)
        for use in self.readers:
            self._read(use)

    # -- what values hold ------------------------------------------------------------------------

    def _holds(self, node: Any) -> bool:
        if not isinstance(node, fx.Node):
            return False
        terms = self.model.table.values.get(node.name)
        return isinstance(terms, tuple) and any(self.axis.atom in _atoms(term) for term in terms)

    def _of(self, node: fx.Node) -> Held:
        """What a value holds; a parameter that is a term of a sum is written as layers are."""
        if node.op != "get_attr":
            return self.held.get(node, "any")
        name = self.names[str(node.target)]
        for dim, term in enumerate(self.model.table.tensors[name]):
            if self.axis.atom in atoms_of(term):
                self._write((name, dim))
        return self.base

    def _value(self, node: fx.Node) -> Held:
        written = self._written(node)
        if written:
            for place in written:
                self._write(place)
            return self.base
        held = [x for x in node.all_input_nodes if self._holds(x)]
        tensors = [x for x in node.all_input_nodes if isinstance(x.meta["val"], torch.Tensor)]
        target = node.target
        if target in MOVES or target in _CASTS or target in _KEEPS:
            return self._of(held[0]) if held == tensors[:1] else "any"
        if target in _SUMS:
            every = {self._of(x) for x in held}
            return every.pop() if len(every) == 1 and held == tensors else "any"
        if target is aten.mul.Tensor:
            return "zero" if any(self.held.get(x) == "zero" for x in held) else "any"
        if target in _ZERO and self.held.get(held[0]) == "zero":
            return "zero"
        return "any"

    def _written(self, node: fx.Node) -> list[Place]:
        known = _WRITERS.get(node.target)
        if known is None:
            return []
        at, bias, dim = known
        places: list[Place] = []
        for index, along in ((at, dim), (bias, -1)):
            read = None if index is None or index >= len(node.args) else node.args[index]
            if isinstance(read, fx.Node) and read.op == "get_attr":
                name = self.names[str(read.target)]
                terms = self.model.table.tensors[name]
                if self.axis.atom in atoms_of(terms[along]):
                    places.append((name, along % len(terms)))
        return places

    # -- what places take ------------------------------------------------------------------------

    def _write(self, place: Place) -> None:
        self.fillings[place] = Filling(self.base)

    def _normalise(self, node: fx.Node, norm: Norm) -> None:
        """Compensate for the units that the statistics are over now."""
        wanted: Held = "mean" if norm.centred else "zero"
        found = self._of(norm.input)
        if found != wanted:
            self.changes.append(f"%{node.name} finds new units that do not hold the {wanted}")
        if norm.weight is None:
            self.changes.append(f"%{node.name} has no weight that could put its scale right")
        else:
            name = self.names[str(norm.weight.target)]
            self.fillings[name, 0] = Filling("drawn", scale=math.sqrt(self.ratio))
        if norm.bias is not None:
            self.fillings[self.names[str(norm.bias.target)], 0] = Filling("zero")
        if norm.epsilon is not None:
            at, path, value = norm.epsilon
            self.edits.append(SetArg(at, path, value * self.ratio))
        elif norm.rewritten is not None:
            self.edits.append(SetArg(node.name, (), norm.rewritten(self.ratio)))
        if self._holds(node):
            exact = found == wanted and norm.weight is not None
            self.held[node] = "zero" if exact else "any"

    def _read(self, use: Any) -> None:
        node = self.nodes[use.node]
        operand = get_path(node, use.path)
        if operand.op == "get_attr":
            return
        silent = self.held.get(operand) == "zero"
        weight = self._weight(node, use)
        if weight is None:
            if not silent:
                self.changes.append(f"%{node.name} reads new units without a weight")
            return
        if silent or (weight in self.fillings and self.fillings[weight].how == "zero"):
            self.fillings.setdefault(weight, Filling("drawn"))
        elif weight in self.fillings and self.fillings[weight].how != "drawn":
            self.conflict = Refusal(
                "shared-tensor",
                f"{weight[0]} writes units of {self.axis.id} and reads them at %{node.name}, where "
                "they do not hold zero",
                node.name,
                "untie the tensor before",
            )
        else:
            self.fillings[weight] = Filling("zero")

    def _weight(self, node: fx.Node, use: Any) -> Place | None:
        for read in node.all_input_nodes:
            if read.op != "get_attr" or str(read.target) not in self.names:
                continue
            name = self.names[str(read.target)]
            terms = self.model.table.tensors[name]
            if node.target is aten.addmm.default and read is node.args[0]:
                continue
            dims = [d for d, term in enumerate(terms) if self.axis.atom in atoms_of(term)]
            contracted: dict[Any, int] = {
                aten.addmm.default: 0,
                aten.matmul.default: len(terms) - 2,
            }
            dim = contracted.get(node.target, 1 if len(terms) > 1 else 0)
            if dim in dims:
                return name, dim
        return None


def _atoms(term: Any) -> set[int]:
    return set() if term is None or isinstance(term, tuple) else set(atoms_of(term))
