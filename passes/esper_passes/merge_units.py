"""The rewrite behind `MergeUnits`: copies give their share back and go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from esper.ir.terms import atoms_of, unit_index
from esper.passbase import Rewrite, rewrites
from esper.plan import Plan, Refusal
from esper.propose import MergeUnits, PruneUnits
from esper.propose.base import Tolerance
from esper.state import Op, Patch, StateTransform
from esper_passes.filling import turns
from esper_passes.outgoing import outgoing

if TYPE_CHECKING:
    from esper.ir.model import Model
    from esper.ir.terms import IntArray


class MergeUnitsRewrite(Rewrite):
    """Outgoing weights of the units are added to those that take over, then they are cut."""

    type = "merge-units"

    def plan(self, model: Model, proposal: MergeUnits) -> Plan | Refusal:
        """Refuses where no weights decide what units do (see `outgoing`)."""
        axis, table = model.anatomy.axes[proposal.axis], model.table
        if axis.lossy_reason is not None:
            return Refusal(
                "coupled-axis",
                f"units of {axis.id} share statistics ({axis.lossy_reason})",
                axis.id,
                "cut them with prune-units",
            )
        acting = outgoing(model, axis)
        if isinstance(acting, Refusal):
            return acting
        cut = rewrites()["prune-units"].plan(
            model, PruneUnits(axis=axis.id, units=proposal.units, proposer=proposal.proposer)
        )
        assert isinstance(cut, Plan)
        pairs = dict(
            zip(axis.positions(proposal.units), axis.positions(proposal.into), strict=True)
        )
        ops: dict[str, tuple[Op, ...]] = dict(cut.state.ops)
        same = acting.linear
        for name in table.tensors_of.get(axis.atom, ()):
            tensor = model.tensor(name)
            assert tensor is not None
            for dim, term in enumerate(table.tensors[name]):
                if axis.atom not in atoms_of(term):
                    continue
                gone, heirs = _places(unit_index(term, axis.atom, table.sizes), pairs)
                positions = acting.places.get((name, dim), np.empty(0, dtype=np.int64))
                acts = np.full(len(gone), True) if positions is None else np.isin(gone, positions)
                same &= _equal(tensor.detach(), dim, gone[~acts], heirs[~acts])
                if acts.any():
                    patch = _sums(tensor.detach(), dim, gone[acts], heirs[acts])
                    ops[name] = (patch, *ops[name])
        tolerance: Tolerance = "reassociates" if same else "lossy"
        return Plan(
            proposal=proposal,
            summary=f"merge {len(pairs)} of {axis.size} units of {axis.id} into others",
            edits=cut.edits,
            state=StateTransform(ops),
            cuts=cut.cuts,
            tolerance=tolerance,
            figures={**cut.figures, "same": same},
        )


def _places(owner: IntArray, pairs: dict[int, int]) -> tuple[IntArray, IntArray]:
    """Positions along a dim of the units that go, and of those that take over, place by place."""
    gone: list[int] = []
    heirs: list[int] = []
    for unit, heir in pairs.items():
        gone += np.flatnonzero(owner == unit).tolist()
        heirs += np.flatnonzero(owner == heir).tolist()
    return np.array(gone, dtype=np.int64), np.array(heirs, dtype=np.int64)


def _equal(tensor: torch.Tensor, dim: int, gone: IntArray, heirs: IntArray) -> bool:
    a, b = (tensor.index_select(dim, torch.from_numpy(i).to(tensor.device)) for i in (gone, heirs))
    return torch.equal(a, b)


def _sums(tensor: torch.Tensor, dim: int, gone: IntArray, heirs: IntArray) -> Patch:
    """The weights of heirs with those of everyone that they take over from."""
    into = np.unique(heirs)
    where = np.searchsorted(into, heirs)

    def at(index: IntArray) -> torch.Tensor:
        return torch.from_numpy(index).to(tensor.device)

    total = tensor.index_select(dim, at(into))
    for turn in reversed(turns(where)):  # the last share was taken of the smallest rest
        lost = tensor.index_select(dim, at(gone[turn]))
        total = total.index_add(dim, at(where[turn]), lost)
    return Patch(dim, tuple(into.tolist()), total)
