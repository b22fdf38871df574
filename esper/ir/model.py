"""`Model`: an ATen-level graph with stable IDs that trains, evaluates and re-exports."""

from __future__ import annotations

import copy
import fnmatch
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, overload

import torch
from pydantic import BaseModel
from torch import fx

from esper.errors import UsageError
from esper.ir import modes, shapes
from esper.ir.anatomy import Anatomy, Identities
from esper.ir.axes import AxisTable, analyse
from esper.ir.ecology import Ecology
from esper.ir.pins import check_pin
from esper.ir.ports import read_ports
from esper.ir.rules import REGISTRY
from esper.ir.sleeping import awake

if TYPE_CHECKING:
    from esper.ir.ports import Ports
    from esper.plan import Plan, Refusal
    from esper.propose import Proposal
    from esper.records import Record

_KEY = "esper"
_REMEMBERED = 2  # generated functions: one for training, one for evaluation


class _Data:
    """What a Model knows beyond its graph; copied with it."""

    def __init__(self) -> None:
        self.identities = Identities()
        self.history: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.table: AxisTable | None = None
        self.anatomy: Anatomy | None = None
        self.ports: Ports | None = None
        self.readers: dict[str, list[str]] | None = None
        self.example_inputs: Any = None
        self.payloads: dict[str, dict[str, torch.Tensor]] = {}
        self.ecology = Ecology()
        self.closed = ""
        # Text -> the function generated from it, and the one that runs in its place.
        self.forwards: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {}
        self.weave: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None

    def copy(self) -> _Data:
        new = _Data()
        new.identities = self.identities.copy()
        new.history = list(self.history)
        new.notes = list(self.notes)
        new.example_inputs = self.example_inputs
        new.ports = self.ports
        new.ecology = self.ecology.copy()
        new.table = None if self.table is None else self.table.copy()
        return new


class Model(fx.GraphModule):
    """A traced model. Call it as the original module was called.

    Parameters keep their fully qualified names, so `state_dict()` and optimizers look as before.
    Made by `esper.trace` or `esper.load`; changed only through proposals (`plan`, `apply`).

    `double()`, `half()` and `to(dtype)` move parameters, buffers and inputs. A dtype that the
    original code wrote out, or read from a tensor while it was traced, is a literal of the graph
    and stays; the `cast` pass rewrites those.
    """

    def __init__(self, root: torch.nn.Module | dict[str, Any], graph: fx.Graph) -> None:
        super().__init__(root, graph, "Model")
        self.meta[_KEY] = _Data()
        if isinstance(root, torch.nn.Module):
            _keep_persistence(root, self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        with warnings.catch_warnings():
            # PyTorch warns when its own tree specifications are copied.
            warnings.simplefilter("ignore", FutureWarning)
            result: Self = super().__deepcopy__(memo)  # type: ignore[assignment]
        result.meta[_KEY] = self._data.copy()
        for name, module in self.named_modules():
            result.get_submodule(name).training = module.training
        _keep_persistence(self, result)
        return result

    @property
    def _data(self) -> _Data:
        data: _Data = self.meta[_KEY]
        return data

    # -- structure -----------------------------------------------------------------------------

    @property
    def table(self) -> AxisTable:
        """The resolved axis analysis of the present graph, as it is awake."""
        if self._data.table is None:
            model = awake(self)
            names = model.canonical_names()
            tensors = {name: (names[name], tuple(t.shape)) for name, t in model.all_tensors()}
            self._data.table = analyse(model.graph, tensors, REGISTRY)
        return self._data.table

    @property
    def anatomy(self) -> Anatomy:
        """Axes, phages and slots by stable ID."""
        if self._data.anatomy is None:
            self._data.anatomy = Anatomy(self, self._data.identities)
        return self._data.anatomy

    @property
    def history(self) -> list[dict[str, Any]]:
        """Committed proposals, oldest first, as plain data."""
        return self._data.history

    @property
    def ecology(self) -> Ecology:
        """Stages of slots and the immune ledger, with their clock."""
        return self._data.ecology

    @ecology.setter
    def ecology(self, ecology: Ecology) -> None:
        self._data.ecology = ecology

    @property
    def closed(self) -> str:
        """Why no proposal may be applied at present; empty when one may.

        A session closes its model between boundaries. Copies are open.
        """
        return self._data.closed

    @closed.setter
    def closed(self, reason: str) -> None:
        self._data.closed = reason

    @property
    def notes(self) -> list[str]:
        """What tracing could not keep, in sentences."""
        return self._data.notes

    @property
    def identities(self) -> Identities:
        """The memory behind stable IDs."""
        return self._data.identities

    @property
    def ports(self) -> Ports | None:
        """What callers rely on, as recorded when the model was traced."""
        return self._data.ports

    @ports.setter
    def ports(self, ports: Ports) -> None:
        self._data.ports = ports

    def find(self, pattern: str) -> list[str]:
        """IDs of axes, phages and slots that match a glob, in graph order."""
        anatomy = self.anatomy
        every = [*anatomy.axes, *anatomy.phages, *anatomy.slots]
        return [name for name in every if fnmatch.fnmatchcase(name, pattern)]

    @property
    def pins(self) -> tuple[str, ...]:
        """Globs over IDs of parts that no proposal may cut or drop."""
        return self.identities.pins

    def pin(self, *globs: str) -> None:
        """Keep the axes and regions that match: proposals to cut or drop them are refused.

        Pins stay with copies and saved files. Raises UsageError when a glob matches nothing.
        """
        names = [*self.anatomy.axes, *self.anatomy.phages]
        for glob in globs:
            check_pin(glob, names)
        self.identities.pins = tuple(dict.fromkeys([*self.pins, *globs]))
        self.invalidate(table=False)

    def unpin(self, *globs: str) -> None:
        """Take pins back, as they were written. Raises UsageError for one that is not there."""
        for glob in globs:
            if glob not in self.pins:
                raise UsageError(f"there is no pin {glob!r}; pins are {list(self.pins)}")
        self.identities.pins = tuple(pin for pin in self.pins if pin not in globs)
        self.invalidate(table=False)

    def declare_slots(self, *globs: str) -> list[str]:
        """Make the outputs of modules slots, by glob over module paths, and give their IDs.

        `*` stays within one name: `layers.*` are the layers, not what is in them. Slots stay with
        copies and saved files. Raises UsageError when a glob matches no module with one output.
        """
        from esper.ir.slots import declare

        return declare(self, *globs)

    @property
    def example_inputs(self) -> Any:
        """(args, kwargs) that the model was traced with, or None after loading a file."""
        return self._data.example_inputs

    @example_inputs.setter
    def example_inputs(self, inputs: Any) -> None:
        self._data.example_inputs = inputs

    @property
    def payloads(self) -> dict[str, dict[str, torch.Tensor]]:
        """Solved tensors waiting for a proposal that names their digest; never saved."""
        return self._data.payloads

    def recompile(self) -> Any:
        """Generate code. Equal code is the same function as before: compilers know it again.

        Without this, `torch.compile` would compile anew whenever training gives way to evaluation
        and back.
        """
        call = vars(type(self)).get("__call__")
        code = super().recompile()
        if call is not None:
            # The same for all code; compilers take the death of the old one for a change.
            setattr(type(self), "__call__", call)  # noqa: B010
        if _KEY in self.__dict__.get("meta", {}):  # not while PyTorch builds the module
            cls, known = type(self), self._data.forwards
            before = known.pop(self._code, None)
            if before is None or not _same_globals(before[0], cls.forward):
                made, weave = cls.forward, self._data.weave
                before = made, made if weave is None else weave(made)
            known[self._code] = before
            cls.forward = before[1]
            while len(known) > _REMEMBERED:
                del known[next(iter(known))]
        return code

    def weave(self, weave: Callable[[Callable[..., Any]], Callable[..., Any]] | None) -> None:
        """Run `weave(function)` instead of each generated function from now on.

        Copies run what was generated.
        """
        self._data.weave = weave
        self.renew_code()

    @property
    def compiled(self) -> bool:
        """Whether calls run compiled code, whole or in blocks."""
        return self._compiled_call_impl is not None or self._data.weave is not None

    def mark_stale(self) -> None:
        """Regenerate code at the next call: edits in a batch then cost one code generation."""
        type(self).forward = _refresh_and_forward

    def renew_code(self) -> None:
        """Run under new code, even where the text stays the same.

        Compilers keep what they know by code: a change of sizes alone would add to it until they
        gave up.
        """
        self._data.forwards.clear()
        self.recompile()

    def refresh(self) -> None:
        """Regenerate code now if edits made it stale."""
        if type(self).forward is _refresh_and_forward:
            self.recompile()

    def swap_graph(self, graph: fx.Graph) -> None:
        """Take another graph object without generating code yet."""
        graph.owning_module = self
        self._graph = graph
        self._data.readers = None
        self.mark_stale()

    def derived(self) -> tuple[AxisTable | None, Anatomy | None, Identities]:
        """Derived structure and identities, to be put back by `restore_derived`."""
        data = self._data
        return data.table, data.anatomy, data.identities.copy()

    def restore_derived(self, derived: tuple[AxisTable | None, Anatomy | None, Identities]) -> None:
        """Put back what `derived` returned. The anatomy keeps reading the same identities."""
        self._data.table, self._data.anatomy, identities = derived
        self._data.identities.assign(identities)

    def invalidate(self, *, table: bool = True) -> None:
        """Forget derived structure after a change; `table=False` keeps the axis analysis."""
        if table:
            self._data.table = None
        self._data.anatomy = None
        self._data.readers = None

    # -- tensors -------------------------------------------------------------------------------

    def all_tensors(self) -> list[tuple[str, torch.Tensor]]:
        """Parameters and buffers under every name they go by, tied ones repeated."""
        return [
            *self.named_parameters(remove_duplicate=False),
            *self.named_buffers(remove_duplicate=False),
        ]

    def canonical_names(self) -> dict[str, str]:
        """Every tensor name -> the first name of the same tensor."""
        first: dict[int, str] = {}
        return {name: first.setdefault(id(t), name) for name, t in self.all_tensors()}

    def tensor(self, name: str) -> torch.Tensor | None:
        """Parameter or buffer by name; None for other attributes."""
        path, _, leaf = name.rpartition(".")
        value = getattr(self.get_submodule(path), leaf, None)
        return value if isinstance(value, torch.Tensor) else None

    @property
    def nodes(self) -> dict[str, fx.Node]:
        """Graph nodes by name."""
        return {node.name: node for node in self.graph.nodes}

    def nbytes(self) -> int:
        """Bytes of parameters and buffers, tied ones once."""
        tensors = {id(tensor): tensor for _, tensor in self.all_tensors()}
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    def readers(self) -> dict[str, list[str]]:
        """Tensor (by first name) -> names of the `get_attr` nodes that read it."""
        if self._data.readers is None:
            names = self.canonical_names()
            readers: dict[str, list[str]] = {}
            for node in self.graph.find_nodes(op="get_attr"):
                name = names.get(str(node.target))
                if name is not None:
                    readers.setdefault(name, []).append(node.name)
            self._data.readers = readers
        return self._data.readers

    # -- modes and devices ---------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Switch dropout and batch norm nodes, as `nn.Module.train` does for modules."""
        super().train(mode)
        if _KEY in self.meta and modes.set_mode(self.graph, mode):
            self.recompile()
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Device literals and the dtypes of floating-point inputs follow the parameters."""
        # Parameters change in place, so what they were must be noted first.
        before = {name: (t.dtype, t.device) for name, t in self.all_tensors()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = dict(self.all_tensors())
        devices = {t.device for t in after.values()}
        moved = devices != {device for _, device in before.values()}
        device = next(iter(devices)) if len(devices) == 1 else None
        if moved and device is not None:
            modes.set_device(self.graph, device)
        dtypes = {old: after[n].dtype for n, (old, _) in before.items() if old != after[n].dtype}
        if dtypes or moved:
            shapes.move_inputs(self, dtypes, device)
            self.ports = read_ports(self)
            self.recompile()
        return self

    # -- rewriting -----------------------------------------------------------------------------

    def check(self, proposal: Proposal) -> Refusal | None:
        """Contract only: None when the proposal may be planned, else the refusal."""
        from esper.contracts import check

        return check(self, proposal)

    def plan(self, proposal: Proposal) -> Plan | Refusal:
        """Dry run: the resolved change as data, or the reason why not. Changes nothing."""
        from esper.manager import PassManager

        return PassManager(self).plan(proposal)

    @overload
    def apply(self, proposal: Proposal) -> tuple[Model, Record]: ...

    @overload
    def apply(self, proposal: Callable[[torch.nn.Module], None]) -> Self: ...

    def apply(
        self, proposal: Proposal | Callable[[torch.nn.Module], None]
    ) -> tuple[Model, Record] | Self:
        """A changed copy and its record; on refusal an unchanged copy, and the record says why.

        A function is called on every submodule instead, as `nn.Module.apply` does.
        """
        from esper.manager import PassManager

        if not isinstance(proposal, BaseModel):  # proposals are pydantic models
            return super().apply(proposal)
        changed = copy.deepcopy(self)
        return changed, PassManager(changed).apply(proposal)

    def __str__(self) -> str:
        from esper.ir.printer import print_model

        return print_model(self)


def _same_globals(before: Any, new: Any) -> bool:
    """Whether two functions of one text mean the same (compilers add names of their own)."""
    a, b = before.__globals__, new.__globals__
    return all(
        name in a and (a[name] is b[name] or (name != "__builtins__" and a[name] == b[name]))
        for name in b
    )


def _refresh_and_forward(self: Model, *args: Any, **kwargs: Any) -> Any:
    self.recompile()
    return self.forward(*args, **kwargs)


def _keep_persistence(source: torch.nn.Module, copied: torch.nn.Module) -> None:
    """torch.fx registers every buffer it copies as persistent; put back what was not."""
    modules = dict(source.named_modules())
    for name, module in copied.named_modules():
        if name in modules:
            hidden = modules[name]._non_persistent_buffers_set & module._buffers.keys()
            module._non_persistent_buffers_set |= hidden
