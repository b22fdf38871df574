"""Lowering a graph's precision: which literals change and where casts go, by fake propagation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import torch
from torch import fx
from torch.utils import _pytree as pytree

from esper.ir.modes import Path
from esper.ir.shapes import call, fake_mode
from esper.plan import Edit, Insert, Ref, ReplaceUses, SetArg
from esper_passes.integer_layer import IntegerLayer, integer_layer
from esper_passes.liveness import fresh

if TYPE_CHECKING:
    from esper.ir.model import Model

aten = torch.ops.aten
# Ops by which a small number keeps a divisor from zero.
_GUARDS = {"clamp_min", "clamp", "add"}
# Ops with a dtype argument that choose the precision of their own arithmetic.
_ACCUMULATING = {"softmax", "log_softmax", "sum", "mean", "cumsum", "prod", "var", "std", "norm"}


class DtypeConflictError(Exception):
    """An op rejects the dtypes that would reach it."""

    def __init__(self, node: fx.Node, why: str) -> None:
        super().__init__(why)
        self.node, self.why = node, why


def computation(model: Model) -> set[fx.Node]:
    """Nodes with a parameter or a floating input behind them; all others are context."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    inside: set[fx.Node] = set()
    for node in model.graph.nodes:
        if (
            (node.op == "get_attr" and str(node.target) in parameters)
            or (node.op == "placeholder" and _floating(node.meta.get("val")))
            or any(source in inside for source in node.all_input_nodes)
        ) and not _is_size(node):
            inside.add(node)
    return inside


def scales(model: Model) -> set[fx.Node]:
    """Reads of scales that stay in full precision, where integers are multiplied by a kernel."""
    found = {layer.scale for layer in _integer_layers(model)}
    for node in model.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "esper":
            named = zip(node.target._schema.arguments, node.args, strict=False)
            found |= {
                value
                for argument, value in named
                if argument.name.endswith("scale") and isinstance(value, fx.Node)
            }
    return found


def _integer_layers(model: Model) -> list[IntegerLayer]:
    """Layers that make their rows float32 and their results what the input was."""
    found = [integer_layer(node) for node in model.graph.nodes]
    return [layer for layer in found if layer is not None and layer.full]


class Lowering:
    """One attempt at lowering a model, without changing it.

    Args:
        model: the model.
        dtype: precision of the computation from now on.
        islands: whether to keep arithmetic that user code raised to a higher precision.
    """

    def __init__(self, model: Model, dtype: torch.dtype, *, islands: bool) -> None:
        self._model, self._dtype, self._islands = model, dtype, islands
        self._inside = computation(model)
        self._values: dict[fx.Node, Any] = {}
        self._mode = fake_mode(model.graph)
        self._edits: list[Edit] = []
        self._names = set(model.nodes)
        self._casts: dict[fx.Node, str] = {}
        self._raised: set[fx.Node] = set()
        self._scales = scales(model)
        self._full = {call for layer in _integer_layers(model) for call in layer.full}

    def run(self) -> list[Edit]:
        """Edits that lower the graph. Raises `DtypeConflictError` at the first op that fails."""
        for node in self._model.graph.nodes:
            if node.op == "placeholder":
                self._values[node] = self._enter(node)
            elif node.op == "output":
                self._leave(node)
            elif node.op == "get_attr":
                self._values[node] = self._read(node)
            elif node not in self._inside:
                self._values[node] = node.meta.get("val")
            elif node in self._full:
                self._values[node] = node.meta["val"]
            elif node.target is aten.to.other and node.args[0] in self._full:
                self._values[node] = self._like(node)
            else:
                self._values[node] = self._compute(node)
        return self._edits

    # -- borders -------------------------------------------------------------------------------

    def _enter(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        users = tuple(user.name for user in node.users if user.op != "output")
        if not self._wide(value) or not users:
            return value
        first = node.next
        while first.op == "placeholder":
            first = first.next
        name = self._insert(f"{node.name}_cast", aten.to.dtype, (Ref(node.name),), first, node)
        self._edits.append(ReplaceUses(node.name, name, users))
        return self._lowered(value)

    def _read(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        tensor = self._model.tensor(str(node.target))
        if not self._wide(value) or node in self._scales:
            return value
        context = not isinstance(tensor, torch.nn.Parameter) and any(
            user not in self._inside for user in node.users
        )
        return value if context or not node.users else self._lowered(value)

    def _leave(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            if source.op == "placeholder":
                continue  # handed on as it came
            before, now = source.meta.get("val"), self._values[source]
            if _floating(before) and before.dtype != now.dtype:
                name = self._insert(
                    f"{source.name}_out",
                    aten.to.dtype,
                    (Ref(source.name),),
                    node,
                    source,
                    before.dtype,
                )
                self._edits.append(ReplaceUses(source.name, name, (node.name,)))

    def _border(self, source: fx.Node, reader: fx.Node) -> Any:
        """A context value as the computation reads it: clamped to the range, then cast."""
        value = self._values[source]
        if source not in self._casts:
            limits = torch.finfo(self._dtype)
            clamped = self._insert(
                f"{source.name}_clamp",
                aten.clamp.default,
                (Ref(source.name), limits.min, limits.max),
                reader,
                source,
                None,
            )
            self._casts[source] = self._insert(
                f"{source.name}_cast", aten.to.dtype, (Ref(clamped),), reader, source
            )
        self._edits.append(ReplaceUses(source.name, self._casts[source], (reader.name,)))
        return self._lowered(value)

    # -- computation ---------------------------------------------------------------------------

    def _compute(self, node: fx.Node) -> Any:
        operands: dict[fx.Node, Any] = {}
        for source in node.all_input_nodes:
            actual = self._unraised(source, node)
            if actual is not source:
                self._edits.append(ReplaceUses(source.name, actual.name, (node.name,)))
            value = self._values[actual]
            context = actual not in self._inside and actual.op != "get_attr"
            kept = actual.op == "get_attr" and self._wide(value)
            if (context or kept) and self._wide(value) and actual not in self._scales:
                value = self._border(actual, node)
            operands[source] = value
        low = any(
            isinstance(leaf, torch.Tensor) and leaf.dtype == self._dtype
            for leaf in pytree.tree_leaves(list(operands.values()))
        )
        self._check_mixture(node, operands)
        replaced = self._literals(node, low)
        args, kwargs = fx.map_arg((node.args, node.kwargs), operands.__getitem__)
        for path, literal in replaced:
            args, kwargs = _with(args, kwargs, path, literal)
            self._edits.append(SetArg(node.name, path, literal))
        try:
            value = call(node.target, args, kwargs, self._mode)
        except Exception as error:  # any op may reject a dtype in its own way
            raise DtypeConflictError(node, str(error).strip().partition("\n")[0]) from error
        return value

    def _like(self, node: fx.Node) -> torch.Tensor:
        """The result of a layer of integers, in the dtype that its input has now."""
        given = node.args[1]
        assert isinstance(given, fx.Node)
        with self._mode:
            value: torch.Tensor = node.meta["val"].to(self._values[given].dtype)
        return value

    def _check_mixture(self, node: fx.Node, operands: dict[fx.Node, Any]) -> None:
        """Fake kernels accept mixtures that real ones reject, so none may arise.

        Element-wise ops promote by rule; in an attempt with islands even that means that a
        raised value has escaped its module.
        """
        values = [v for source, v in operands.items() if source not in self._scales]
        found = {v.dtype for v in values if _floating(v) and v.ndim > 0}
        assert isinstance(node.target, torch._ops.OpOverload) or len(found) < 2
        if len(found) < 2 or (not self._islands and torch.Tag.pointwise in node.target.tags):  # type: ignore[union-attr]
            return
        kinds = " and ".join(sorted(str(d).removeprefix("torch.") for d in found))
        raise DtypeConflictError(node, f"it would read {kinds}")

    def _unraised(self, source: fx.Node, reader: fx.Node) -> fx.Node:
        """In full precision a raise is no operation, so a trace shares its result with others.

        Readers outside the raising module meant the value before.
        """
        while source in self._raised and not _within(reader, source):
            inner = source.args[0]
            assert isinstance(inner, fx.Node)
            source = inner
        return source

    def _literals(self, node: fx.Node, low: bool) -> list[tuple[Path, Any]]:
        replaced: list[tuple[Path, Any]] = []
        limits = torch.finfo(self._dtype)
        least = limits.smallest_normal * limits.eps  # what is less becomes zero
        for path, value in _leaves(node):
            if isinstance(value, torch.dtype):
                if not value.is_floating_point or value == self._dtype:
                    continue
                if self._islands and low and self._raises(node):
                    continue
                replaced.append((path, self._dtype))
            elif isinstance(value, float) and limits.max < abs(value) < float("inf"):
                replaced.append((path, limits.max if value > 0 else limits.min))
            elif isinstance(value, float) and 0 < value < least and _guards(node):
                replaced.append((path, least))
        return replaced

    def _raises(self, node: fx.Node) -> bool:
        """Whether a dtype literal raises the precision of a value; notes plain conversions."""
        assert isinstance(node.target, torch._ops.OpOverload)
        name = node.target._schema.name.split("::")[1]
        if name in _ACCUMULATING:
            return True
        if name not in ("to", "_to_copy"):
            return False
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if self._values[self._unraised(source, node)].dtype != self._dtype:
            return False
        before, after = source.meta.get("val"), node.meta.get("val")
        if _floating(before) and _floating(after) and before.dtype == after.dtype:
            self._raised.add(node)
        return True

    # -- helpers -------------------------------------------------------------------------------

    def _wide(self, value: Any) -> TypeGuard[torch.Tensor]:
        return _floating(value) and value.dtype != self._dtype

    def _lowered(self, value: torch.Tensor) -> torch.Tensor:
        with self._mode:
            return value.to(self._dtype)

    def _insert(
        self,
        base: str,
        target: Any,
        args: tuple[Any, ...],
        before: fx.Node,
        like: fx.Node,
        dtype: torch.dtype | Literal["own"] | None = "own",
    ) -> str:
        name = fresh(self._names, base)
        self._names.add(name)
        if dtype == "own":
            dtype = self._dtype
        if dtype is not None:
            args = (*args, dtype)
        module = str(like.meta.get("module") or "")
        self._edits.append(Insert(name, "call_function", target, args, before.name, {}, module))
        return name


def _guards(node: fx.Node) -> bool:
    assert isinstance(node.target, torch._ops.OpOverload)
    return node.target._schema.name.split("::")[1] in _GUARDS


def _floating(value: Any) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _is_size(node: fx.Node) -> bool:
    """Sizes of a value are integers and belong to no precision."""
    value = node.meta.get("val")
    return node.op == "call_function" and not isinstance(value, (torch.Tensor, list, tuple))


def _within(reader: fx.Node, owner: fx.Node) -> bool:
    module = str(owner.meta.get("module") or "")
    return f"{reader.meta.get('module') or ''}.".startswith(f"{module}.")


def _leaves(node: fx.Node) -> list[tuple[Path, Any]]:
    """Literals of a node with their argument paths."""
    found: list[tuple[Path, Any]] = []

    def walk(value: Any, path: Path) -> None:
        if isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                walk(item, (*path, i))
        elif not isinstance(value, fx.Node):
            found.append((path, value))

    walk(node.args, ())
    for key, value in node.kwargs.items():
        walk(value, (key,))
    return found


def _with(args: Any, kwargs: Any, path: Path, value: Any) -> tuple[Any, Any]:
    def put(container: Any, steps: Path) -> Any:
        if not steps:
            return value
        items = list(container)
        first = int(steps[0])
        items[first] = put(items[first], steps[1:])
        return tuple(items) if isinstance(container, tuple) else items

    if isinstance(path[0], str):
        return args, {**kwargs, path[0]: put(kwargs[path[0]], path[1:])}
    return put(args, path), kwargs
