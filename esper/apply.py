"""Applying a plan in place, with an undo journal.

Every primitive change appends its inverse to the journal before it takes effect, so undoing the
journal backwards restores the model bit for bit: old tensors are kept by reference, not copied.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import fx

from esper.ir import packed_axes
from esper.ir.ecology import Immunity, SlotLife, Sparsity
from esper.ir.modes import set_path
from esper.ir.origin import set_origin
from esper.plan import Edit, Insert, Plan, Ref, ReplaceUses, Retarget, SetArg, SetLife
from esper.state import Create, Drop, Join, Move, Op, Part, Rearrange, Replace, Train

if TYPE_CHECKING:
    from esper.ir.model import Model

Undo = Callable[[], None]


class Journal:
    """Inverses of what was done, newest last."""

    def __init__(self) -> None:
        self._undo: list[Undo] = []

    def add(self, undo: Undo) -> None:
        """Remember how to take back the change that follows."""
        self._undo.append(undo)

    def __len__(self) -> int:
        return len(self._undo)

    def roll_back(self, to: int = 0) -> None:
        """Undo everything after the first `to` entries."""
        while len(self._undo) > to:
            self._undo.pop()()


@dataclass(frozen=True)
class Moved:
    """One operation that was applied to one tensor.

    Attributes:
        name: the tensor's first name.
        op: the operation.
        before, after: the tensor objects: the same one where only its storage changed, None for
            what did not exist or no longer does; before a part, what it is a part of.
        shape: sizes before.
        others: tensors that were joined behind it.
    """

    name: str
    op: Op
    before: torch.Tensor | None
    after: torch.Tensor | None
    shape: tuple[int, ...] = ()
    others: tuple[torch.Tensor, ...] = ()


class Follower(Protocol):
    """What shadows a model's tensors and must follow each change: optimizers, averages."""

    def follow(self, plan: Plan, moved: Sequence[Moved], journal: Journal) -> None:
        """Take the same operations; inverses go to the journal before they are needed."""


class Applier:
    """Applies plans to one model, writing to one journal. `moved` tells what became of tensors."""

    def __init__(self, model: Model, journal: Journal) -> None:
        self._model = model
        self._journal = journal
        self.moved: list[Moved] = []

    def apply(self, plan: Plan) -> set[fx.Node]:
        """Apply and return the nodes whose recorded values must be recomputed."""
        model, journal = self._model, self._journal
        dirty: set[fx.Node] = set()
        journal.add(model.mark_stale)
        if not all(isinstance(edit, SetArg) for edit in plan.edits):
            self._snapshot()
        nodes = model.nodes
        readers = model.readers()
        # Creations first: an inserted node may read a new tensor. Drops last, for the converse.
        late: list[tuple[str, Op]] = []
        for name, ops in plan.state.ops.items():
            for op in ops:
                if isinstance(op, Drop):
                    late.append((name, op))
                else:
                    self._state(name, op)
            dirty.update(nodes[reader] for reader in readers.get(name, ()))
        for edit in plan.edits:
            dirty.update(self._edit(edit, nodes))
        for name, op in late:
            self._state(name, op)
        for cut in plan.cuts:
            self._cut(cut.axis, cut.positions)
        for growth in plan.growths:
            self._grow(growth.axis, growth.count)
        self._follow_places(plan, nodes)
        for change in plan.lives:
            self._live(change)
        if (plan.edits or plan.cuts) and not plan.only_resizes and not plan.keeps_anatomy:
            self._invalidate()
        model.mark_stale()
        return {node for node in dirty if not node._erased}

    # -- tensors -------------------------------------------------------------------------------

    def _state(self, name: str, op: Op) -> None:
        if isinstance(op, Create):
            self.moved.append(Moved(name, op, None, self._create(name, op)))
            return
        tensor = self._model.tensor(op.source if isinstance(op, Part) else name)
        shape = () if tensor is None else tuple(tensor.shape)
        after: torch.Tensor | None = None
        if tensor is None:
            raise KeyError(f"the plan names a tensor that does not exist: {name}")
        if isinstance(op, Part):
            part = self._part(name, tensor, op)
            self.moved.append(Moved(name, op, tensor, part, shape))
            return
        others: tuple[torch.Tensor, ...] = ()
        if isinstance(op, Rearrange):
            self._rearrange(name, op)
        if isinstance(op, Join):
            others = tuple(self._others(op))
            self._join(tensor, op, others)
            after = tensor
        elif isinstance(op, Drop):
            self._drop(tensor)
            self._sweep(name.rpartition(".")[0])
        elif isinstance(op, Train):
            self._train(tensor, op)
            after = tensor
        elif isinstance(tensor, torch.nn.Parameter) and _keeps_type(tensor, op):
            self._parameter(tensor, op)
            after = tensor
        else:
            after = self._rebind(tensor, op)
        self.moved.append(Moved(name, op, tensor, after, shape, others))

    def _parameter(self, parameter: torch.nn.Parameter, op: Move) -> None:
        """New storage in the same object, so optimizers stay bound; the gradient follows."""
        grad = parameter.grad
        follows = grad is not None and not isinstance(op, Replace)
        shadow = op.shadow(grad) if grad is not None and follows else None
        self._store(parameter, op(parameter.data), shadow)

    def _train(self, parameter: torch.Tensor, op: Train) -> None:
        """A gradient that is left over would go on moving it."""
        trained, grad = parameter.requires_grad, parameter.grad

        def undo() -> None:
            parameter.requires_grad_(trained)
            parameter.grad = grad

        self._journal.add(undo)
        parameter.requires_grad_(op.trains)
        parameter.grad = grad if op.trains else None

    def _join(self, tensor: torch.Tensor, op: Join, others: tuple[torch.Tensor, ...]) -> None:
        """The gradients of all follow; one that is missing is zero."""
        every = (tensor, *others)
        grads = None
        if any(each.grad is not None for each in every):
            grads = op.of([torch.zeros_like(t) if t.grad is None else t.grad for t in every])
        self._store(tensor, op.of([each.data for each in every]), grads)

    def _store(
        self, parameter: torch.Tensor, value: torch.Tensor, grad: torch.Tensor | None
    ) -> None:
        data, before = parameter.data, parameter.grad

        def undo() -> None:
            parameter.grad = None
            set_data(parameter, data)
            parameter.grad = before

        self._journal.add(undo)
        parameter.grad = None
        set_data(parameter, value)
        parameter.grad = grad

    def _others(self, op: Join) -> Iterator[torch.Tensor]:
        for name in op.others:
            other = self._model.tensor(name)
            if other is None:
                raise KeyError(f"the plan joins a tensor that does not exist: {name}")
            yield other

    def _part(self, name: str, source: torch.Tensor, op: Part) -> torch.Tensor:
        trainable = isinstance(source, torch.nn.Parameter)
        part = self._create(name, Create(op(source.detach()), trainable))
        part.requires_grad_(source.requires_grad)
        if source.grad is not None:
            part.grad = op(source.grad)
        return part

    def _rebind(self, tensor: torch.Tensor, op: Move) -> torch.Tensor:
        """Buffers, and parameters that change dtype, become new objects under every name."""
        new: torch.Tensor = op(tensor.detach())
        if isinstance(tensor, torch.nn.Parameter):
            new = torch.nn.Parameter(new, requires_grad=tensor.requires_grad)
        for table, leaf in self._places(tensor):
            self._journal.add(partial(table.__setitem__, leaf, tensor))
            table[leaf] = new
        return new

    def _rearrange(self, name: str, op: Rearrange) -> None:
        """Axes remember where the dims of the tensor went."""
        identities = self._model.identities
        before = identities.copy()
        self._journal.add(lambda: identities.assign(before))
        packed_axes.rearrange(identities, self._model.canonical_names()[name], op.dims)

    def _drop(self, tensor: torch.Tensor) -> None:
        for table, leaf in self._places(tensor):
            self._journal.add(partial(_refill, table, list(table.items())))
            del table[leaf]

    def _sweep(self, path: str) -> None:
        """Modules that hold nothing any more go, as tracing keeps none of those."""
        while path:
            parent, _, leaf = path.rpartition(".")
            table = self._model.get_submodule(parent)._modules
            module = table[leaf]
            if module is None or module._parameters or module._buffers or module._modules:
                return
            self._journal.add(partial(_refill, table, list(table.items())))
            del table[leaf]
            path = parent

    def _create(self, name: str, op: Create) -> torch.Tensor:
        path, _, leaf = name.rpartition(".")
        module = self._module(path)
        if leaf in module._parameters or leaf in module._buffers:
            raise KeyError(f"the plan creates a tensor that exists: {name}")
        value = op.value.detach().clone()
        if op.trainable:
            value = torch.nn.Parameter(value)
        table: dict[str, Any] = module._parameters if op.trainable else module._buffers
        table[leaf] = value
        self._journal.add(lambda: table.pop(leaf))
        return value

    def _module(self, path: str) -> torch.nn.Module:
        module: torch.nn.Module = self._model
        for part in filter(None, path.split(".")):
            child = module._modules.get(part)
            if child is None:
                child = torch.nn.Module()
                module.add_module(part, child)
                self._journal.add(
                    lambda owner=module, part=part: owner._modules.pop(part)  # type: ignore[misc]
                )
            module = child
        return module

    def _places(self, tensor: torch.Tensor) -> list[tuple[dict[str, Any], str]]:
        return [
            (table, leaf)
            for module in self._model.modules()
            for table in (module._parameters, module._buffers)
            for leaf, value in table.items()
            if value is tensor
        ]

    # -- graph ---------------------------------------------------------------------------------

    def _edit(self, edit: Edit, nodes: dict[str, fx.Node]) -> list[fx.Node]:
        if isinstance(edit, SetArg):
            return self._set(nodes[edit.node], edit, nodes)
        if isinstance(edit, ReplaceUses):
            return self._replace(edit, nodes)
        if isinstance(edit, Insert):
            return self._insert(edit, nodes)
        if isinstance(edit, Retarget):
            return self._retarget(nodes[edit.node], edit, nodes)
        self._model.graph.erase_node(nodes.pop(edit.node))
        return []

    def _set(self, node: fx.Node, edit: SetArg, nodes: dict[str, fx.Node]) -> list[fx.Node]:
        args, kwargs = node.args, node.kwargs

        def undo() -> None:
            node.args, node.kwargs = args, kwargs

        self._journal.add(undo)
        value = _resolve(edit.value, nodes)
        if edit.path:
            set_path(node, edit.path, value)
        else:
            node.args = value
        return [node]

    def _retarget(self, node: fx.Node, edit: Retarget, nodes: dict[str, fx.Node]) -> list[fx.Node]:
        node.target, node.args, node.kwargs = edit.target, _resolve(edit.args, nodes), {}
        set_origin(node, edit.origin)
        return [node]

    def _replace(self, edit: ReplaceUses, nodes: dict[str, fx.Node]) -> list[fx.Node]:
        old, new = nodes[edit.old], nodes[edit.new]
        users = [u for u in old.users if edit.users is None or u.name in edit.users]
        users = [u for u in users if u is not new]
        for user in users:
            user.replace_input_with(old, new)
        return users

    def _insert(self, edit: Insert, nodes: dict[str, fx.Node]) -> list[fx.Node]:
        if edit.name in nodes:
            raise KeyError(f"the plan inserts a node that exists: %{edit.name}")
        graph = self._model.graph
        with graph.inserting_before(nodes[edit.before]):
            node = graph.create_node(
                edit.op,
                edit.target,
                _resolve(edit.args, nodes),
                _resolve(dict(edit.kwargs), nodes),
                name=edit.name,
            )
        if node.name != edit.name:
            raise KeyError(f"node name %{edit.name} is taken")
        node.meta = {"val": None, "module": edit.module, "source": edit.source}
        if edit.modes:
            node.meta["modes"] = dict(edit.modes)
        if edit.counter:
            node.meta["counter"] = edit.counter
        nodes[edit.name] = node
        return [node]

    def _snapshot(self) -> None:
        """Edit a copy of the graph: undoing topology changes is then one assignment."""
        model = self._model
        before = model.graph
        self._journal.add(lambda: model.swap_graph(before))
        with warnings.catch_warnings():
            # PyTorch warns when its own tree specifications are copied.
            warnings.simplefilter("ignore", FutureWarning)
            model.swap_graph(copy.deepcopy(before))

    # -- anatomy -------------------------------------------------------------------------------

    def _cut(self, axis_id: str, positions: tuple[int, ...]) -> None:
        anatomy = self._model.anatomy
        units = anatomy.axes[axis_id].unit_ids
        gone = set(positions)
        self._journal.add(lambda: self._model.anatomy.resize(axis_id, units))
        anatomy.resize(axis_id, tuple(u for i, u in enumerate(units) if i not in gone))

    def _grow(self, axis_id: str, count: int) -> None:
        anatomy, identity = self._model.anatomy, self._model.identities.axes[axis_id]
        units, born = identity.unit_ids, identity.next_unit

        def undo() -> None:
            self._model.identities.axes[axis_id].next_unit = born
            self._model.anatomy.resize(axis_id, units)

        self._journal.add(undo)
        identity.next_unit = born + count
        anatomy.resize(axis_id, (*units, *range(born, born + count)))

    def _live(self, change: SetLife) -> None:
        ecology = self._model.ecology
        before = ecology.lives.get(change.id)
        self._journal.add(partial(ecology.set, change.id, before))
        ecology.set(change.id, change.life)
        if _place(before) != _place(change.life):
            anatomy = self._model.anatomy
            self._journal.add(anatomy.forget_parts)
            anatomy.forget_parts()

    def _follow_places(self, plan: Plan, nodes: dict[str, fx.Node]) -> None:
        """Slots and branches whose node was replaced by another are at that node from now on."""
        moved = {
            edit.old: edit.new
            for edit in plan.edits
            if isinstance(edit, ReplaceUses) and edit.users is None and edit.old not in nodes
        }
        for name, life in list(self._model.ecology.slots().items()) if moved else ():
            places = {
                field: moved[place]
                for field, place in (("input", life.input), ("output", life.output))
                if place in moved
            }
            if places:
                self._live(SetLife(name, life.model_copy(update=places)))
        for name, memory in list(self._model.identities.regions.items()) if moved else ():
            if memory["kind"] == "branch" and memory["exit"] in moved:
                self._journal.add(partial(self._remember, name, memory))
                self._remember(name, {**memory, "exit": moved[memory["exit"]]})

    def _remember(self, region: str, memory: dict[str, str]) -> None:
        self._model.identities.regions[region] = memory

    def _invalidate(self) -> None:
        data = self._model.derived()

        def undo() -> None:
            self._model.restore_derived(data)

        self._journal.add(undo)
        self._model.invalidate()


def _refill(table: dict[str, Any], items: list[tuple[str, Any]]) -> None:
    table.clear()
    table.update(items)  # in the old order: names of tied tensors depend on it


def _place(life: SlotLife | Immunity | Sparsity | None) -> str:
    return life.input if isinstance(life, SlotLife) else ""


def set_data(parameter: torch.Tensor, data: torch.Tensor) -> None:
    """Give a parameter other storage, of another shape, whatever graphs still hold it.

    A loss that the caller keeps holds the parameter's gradient accumulator, which remembers the
    old shape and would be used again. PyTorch makes a new one when the dtype changes.
    """
    other = torch.float64 if data.dtype != torch.float64 else torch.float32
    parameter.data = torch.empty(0, dtype=other, device=data.device)
    parameter.data = data


def _keeps_type(tensor: torch.Tensor, op: Op) -> bool:
    return not isinstance(op, Replace) or op.value.dtype == tensor.dtype


def _resolve(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(value, Ref):
        return nodes[value.name]
    if isinstance(value, (list, tuple)):
        return type(value)(_resolve(item, nodes) for item in value)
    if isinstance(value, dict):
        return {key: _resolve(item, nodes) for key, item in value.items()}
    return value
