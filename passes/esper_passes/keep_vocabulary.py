"""Vocabularies cut down to the tokens that a caller names; ids keep their meaning outside.

Embeddings of languages and domains that never occur are a third of many encoders. The boundary
stays as it was: a table in front of the embedding translates ids, and one behind the logits puts
them back in place, so that tokenizer and caller notice nothing.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import fx

from esper.errors import UsageError
from esper.ir import pins
from esper.ir.terms import Atom, atoms_of, kept_index, size_of
from esper.passbase import Batch, Context, Pass, Proposals, Remark, Rewrite
from esper.plan import Edit, Insert, Plan, Ref, Refusal, ReplaceUses, SetArg, UnitCut
from esper.propose import KeepVocabulary as Proposal
from esper.state import Create, Op, Replace, Select, StateTransform
from esper_passes.capture import capture
from esper_passes.liveness import fresh

if TYPE_CHECKING:
    from esper.ir.anatomy import Axis
    from esper.ir.model import Model

aten = torch.ops.aten
_ADDRESSED = "rows are addressed by data (embedding)"
# Ops through which rows may pass on their way from a table to the embedding or to an output.
_PASSING = (
    aten.linear.default,
    aten.matmul.default,
    aten.mm.default,
    aten.addmm.default,
    aten.t.default,
    aten.transpose.int,
    aten.permute.default,
    aten.detach.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.to.dtype,
    aten._to_copy.default,
)


class KeepVocabularyRewrite(Rewrite):
    """Rows go, a table translates ids, another one restores the places of logits."""

    type: ClassVar[str] = "keep-vocabulary"

    def plan(self, model: Model, proposal: Proposal) -> Plan | Refusal:
        """Refuses what is no vocabulary, and rows that something other than logits reads."""
        axis = model.anatomy.axes[proposal.axis]
        refusal = _refuse(model, axis, proposal)
        if refusal is not None:
            return refusal
        table = model.table
        kept = np.array(sorted(axis.positions(proposal.tokens)))
        gone = np.setdiff1d(np.arange(axis.size), kept)
        keep, smaller = {axis.atom: kept}, {**table.sizes, axis.atom: len(kept)}
        (unknown,) = axis.positions((proposal.unknown,))
        ops: dict[str, tuple[Op, ...]] = {}
        before = after = 0
        for name in table.tensors_of.get(axis.atom, ()):
            tensor = model.tensor(name)
            assert tensor is not None
            selects = tuple(
                Select(dim, tuple(kept_index(term, keep, table.sizes).tolist()))
                for dim, term in enumerate(table.tensors[name])
                if axis.atom in atoms_of(term)
            )
            ops[name] = selects
            before += tensor.numel()
            after += tensor.numel() // axis.size * len(kept)
        edits: list[Edit] = [
            SetArg(literal.node, literal.path, sum(size_of(t, smaller) for t in literal.terms))
            for literal in table.literals_of.get(axis.atom, ())
        ]
        place = np.full(axis.size, np.searchsorted(kept, unknown))
        place[kept] = np.arange(len(kept))
        edits += _translate(model, axis, ops, place)
        place = np.full(axis.size, len(kept))  # where the column of minus infinity is
        place[kept] = np.arange(len(kept))
        edits += _restore(model, axis, ops, place)
        return Plan(
            proposal=proposal,
            summary=f"keep {len(kept)} of {axis.size} rows of {axis.id}",
            edits=tuple(edits),
            state=StateTransform(ops),
            cuts=(UnitCut(axis.id, tuple(gone.tolist())),),
            figures={
                "units": len(gone),
                "units_before": axis.size,
                "parameters_removed": before - after,
            },
        )


def _refuse(model: Model, axis: Axis, proposal: Proposal) -> Refusal | None:
    info = model.table.atoms.get(axis.atom)
    frozen = info.frozen if info is not None else None
    pin = pins.first_match(axis.id, model.pins)
    if pin:
        reason = f"{axis.id} is {pins.REASON} ({pin})"
        return Refusal("frozen-axis", reason, axis.id, "take the pin back with Model.unpin")
    if frozen is None or frozen.reason != _ADDRESSED or not _embeddings(model, axis):
        return Refusal(
            "no-vocabulary",
            f"the units of {axis.id} are not rows that ids address",
            axis.id,
            "name an axis of kind vocabulary",
        )
    if proposal.unknown not in proposal.tokens:
        return Refusal(
            "unknown-goes",
            f"token {proposal.unknown} stands for those that go, but is not kept",
            axis.id,
            "keep the unknown token too",
        )
    if len(proposal.tokens) == axis.size:
        return Refusal("no-change", "every token is kept", axis.id)
    nodes = model.nodes
    restored = {node for pair in _restored(model, axis) for node in pair}
    for name in model.table.values_of.get(axis.atom, ()):
        node = nodes[name]
        if node.op in ("get_attr", "output") or node.target in _PASSING or node in restored:
            continue
        pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
        if not pointwise or len(node.all_input_nodes) > 1:
            return _reader(axis, node)
    for use in model.table.uses_of.get(axis.atom, ()):
        return _reader(axis, nodes[use.node])
    for node in model.graph.nodes:
        if node.target is aten.embedding.default or node.op == "output" or node in restored:
            continue
        if node.name in model.table.values_of.get(axis.atom, ()):
            continue
        for operand in node.all_input_nodes:
            if _dim(model, axis, operand) is not None:
                return _reader(axis, node)
    for leaf, dim in _outputs(model, axis):
        value = leaf.meta["val"]
        if not value.dtype.is_floating_point:
            return Refusal("no-logits", f"output %{leaf.name} holds no logits", leaf.name)
        if model.table.values[leaf.name][dim] != Atom(axis.atom):
            return _reader(axis, leaf)
    return None


def _reader(axis: Axis, node: fx.Node) -> Refusal:
    return Refusal(
        "vocabulary-read",
        f"%{node.name} ({node.target}) reads along {axis.id}",
        node.name,
        "only logits that leave the model may run along a vocabulary",
    )


def _dim(model: Model, axis: Axis, node: fx.Node) -> int | None:
    """The dimension of a value that runs along the vocabulary."""
    terms = model.table.values.get(node.name)
    if not isinstance(terms, tuple):
        return None
    for dim, term in enumerate(terms):
        if not isinstance(term, tuple) and axis.atom in atoms_of(term):
            return dim
    return None


def _embeddings(model: Model, axis: Axis) -> list[fx.Node]:
    return [
        node
        for node in model.graph.find_nodes(op="call_function", target=aten.embedding.default)
        if isinstance(node.args[0], fx.Node) and _dim(model, axis, node.args[0]) == 0
    ]


def _outputs(model: Model, axis: Axis) -> list[tuple[fx.Node, int]]:
    (output,) = model.graph.find_nodes(op="output")
    found = []
    for leaf in output.all_input_nodes:
        dim = _dim(model, axis, leaf)
        if dim is not None:
            found.append((leaf, dim))
    return found


def _restored(model: Model, axis: Axis) -> list[tuple[fx.Node, fx.Node]]:
    """Logits that went back to their places already: the padding and the selection behind it."""
    found = []
    for node in model.graph.find_nodes(op="call_function", target=aten.constant_pad_nd.default):
        (select, *others) = node.users
        ours = select.target is aten.index_select.default and not others
        if (
            ours
            and node.args[2] == -torch.inf
            and _dim(model, axis, node.all_input_nodes[0]) is not None
        ):
            found.append((node, select))
    return found


def _read(model: Model, node: Any) -> str | None:
    """The tensor that a node is, by name."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    return model.canonical_names().get(str(node.target))


def _table(
    model: Model, ops: dict[str, tuple[Op, ...]], label: str, place: Any, before: fx.Node
) -> Insert:
    """A new buffer with places, and the node that reads it."""
    buffer = fresh({name for name, _ in model.all_tensors()} | set(ops), f"constants.{label}")
    ops[buffer] = (Create(torch.from_numpy(place.astype(np.int64)), trainable=False),)
    return Insert(fresh(model.nodes, label), "get_attr", buffer, (), before.name)


def _translate(model: Model, axis: Axis, ops: dict[str, tuple[Op, ...]], place: Any) -> list[Edit]:
    """In front of each embedding, ids become rows."""
    edits: list[Edit] = []
    for node in _embeddings(model, axis):
        ids = node.args[1]
        assert isinstance(ids, fx.Node)
        padding = node.args[2] if len(node.args) > 2 else -1
        if isinstance(padding, int) and padding >= 0:  # no gradient for that row
            edits.append(SetArg(node.name, (2,), int(place[padding])))
        known = _read(model, ids.args[0]) if ids.target is aten.index.Tensor else None
        if known is not None and known.startswith(
            "constants."
        ):  # translated before: once is enough
            ops[known] = (_moved(model, known, place),)
            continue
        read = _table(model, ops, f"{node.name}_rows", place, node)
        found = fresh(model.nodes, f"{node.name}_ids")
        module = str(node.meta.get("module") or "")
        looked_up = (Ref(read.name), [Ref(ids.name)])
        target = aten.index.Tensor
        edits += [
            read,
            Insert(found, "call_function", target, looked_up, node.name, module=module),
            SetArg(node.name, (1,), Ref(found)),
        ]
    return edits


def _moved(model: Model, name: str, place: Any) -> Replace:
    """A table of places after those places moved."""
    table = model.tensor(name)
    assert table is not None
    return Replace(torch.from_numpy(place)[table.cpu()])


def _restore(model: Model, axis: Axis, ops: dict[str, tuple[Op, ...]], place: Any) -> list[Edit]:
    """Logits go back to the places of their tokens; a column of minus infinity fills the rest."""
    (output,) = model.graph.find_nodes(op="output")
    edits: list[Edit] = []
    for _, select in _restored(model, axis):
        known = _read(model, select.args[2])
        assert known is not None
        ops[known] = (_moved(model, known, np.append(place, place.max())),)
    for leaf, dim in _outputs(model, axis):
        rank = leaf.meta["val"].ndim
        read = _table(model, ops, f"{leaf.name}_places", place, output)
        padded = fresh(model.nodes, f"{leaf.name}_padded")
        whole = fresh(model.nodes, f"{leaf.name}_whole")
        widths = [0, 0] * (rank - 1 - dim) + [0, 1]
        end, call = output.name, "call_function"
        edits += [
            read,
            Insert(
                padded, call, aten.constant_pad_nd.default,
                (Ref(leaf.name), widths, -torch.inf), end,
            ),
            Insert(whole, call, aten.index_select.default, (Ref(padded), dim, Ref(read.name)), end),
            ReplaceUses(leaf.name, whole, (end,)),
        ]  # fmt: skip
    return edits


@dataclass(frozen=True)
class KeepVocabulary(Pass):
    """Keep the embedding rows of tokens that are used; callers keep their ids.

    Attributes:
        unknown: the token that stands for all that go.
        tokens: a file of ids, or `data`.
        axis: glob over the vocabularies.
    """

    name: ClassVar[str] = "keep-vocabulary"
    aim: ClassVar[Literal["speed", "repair", "cleanup"]] = "cleanup"
    unknown: int | None = field(
        default=None, metadata={"doc": "id that stands for all tokens that go (required)"}
    )
    tokens: str = field(
        default="data",
        metadata={"doc": "file of ids to keep, or data: those in the calibration data"},
    )
    axis: str = field(default="*", metadata={"doc": "glob over vocabulary axes"})

    def __post_init__(self) -> None:
        """Check the options."""
        if self.unknown is None:
            raise UsageError("keep-vocabulary needs unknown=ID, the token that stands for the rest")

    def propose(self, model: Model, context: Context) -> Proposals:
        """One proposal for each vocabulary."""
        assert self.unknown is not None
        chosen = [
            axis
            for axis in model.anatomy.axes.values()
            if axis.kind == "vocabulary"
            and fnmatch.fnmatchcase(axis.id, self.axis)
            and _embeddings(model, axis)
        ]
        if not chosen:
            yield Remark(
                "missed",
                "no-vocabulary",
                f"no vocabulary matches {self.axis!r}",
                remedy="see `esper inspect`",
            )
        for axis in chosen:
            wanted = {*self._wanted(model, axis, context), self.unknown}
            yield Proposal(
                axis=axis.id,
                tokens=tuple(sorted(wanted)),
                unknown=self.unknown,
                proposer=self.name,
                evidence={"tokens": self.tokens},
            )

    def _wanted(self, model: Model, axis: Axis, context: Context) -> set[int]:
        if self.tokens != "data":
            return read_tokens(Path(self.tokens))
        found: set[int] = set()
        nodes = [node.name for node in _embeddings(model, axis)]
        for batch in context.batches(self.name):
            found |= _seen(model, nodes, batch)
        return {axis.unit_ids[position] for position in found}


def _seen(model: Model, nodes: list[str], batch: Batch) -> set[int]:
    """Ids that reach embeddings on one batch."""
    sources = {str(model.nodes[name].args[1]) for name in nodes}
    values = capture(model, sources, batch).values()
    return {int(token) for ids in values for token in ids.unique().tolist()}


def read_tokens(path: Path) -> set[int]:
    """Ids in a file, separated by white space or commas. Raises UsageError for anything else."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the tokens in {path}: {error}") from None
    words = text.replace(",", " ").replace("[", " ").replace("]", " ").split()
    try:
        found = {int(word) for word in words}
    except ValueError:
        bad = next(word for word in words if not word.lstrip("-").isdigit())
        raise UsageError(f"{path} holds {bad[:20]!r}, which is no token id") from None
    if not found:
        raise UsageError(f"{path} holds no token ids")
    return found
