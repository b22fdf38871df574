"""`esper.trace`: an nn.Module becomes a Model through `torch.export` (non-strict)."""

from __future__ import annotations

import inspect
import linecache
import os
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import fx
from torch.utils import _pytree as pytree

from esper.errors import TraceError
from esper.ir import shapes
from esper.ir.canonicalize import canonicalize
from esper.ir.ecology import SlotLife
from esper.ir.marker import marked
from esper.ir.model import Model
from esper.ir.modes import get_path
from esper.ir.module_tree import adopt, owner_of
from esper.ir.ports import read_ports
from esper.ir.reserved import rename_reserved, renamed_path

aten = torch.ops.aten
_RENAMED = "renamed"
Dynamic = Literal["batch", "static"] | Mapping[str, Sequence[int]]


def trace(
    module: torch.nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic: Dynamic = "batch",
    slots: Sequence[str] = (),
) -> Model:
    """Trace a module on example inputs.

    Args:
        module: any module that `torch.export` accepts; it is not changed, and the model owns
            copies of its parameters (tied ones stay tied).
        args, kwargs: example inputs. A batch of one is doubled for tracing only, since export
            would otherwise bake the size in.
        dynamic: "batch" leaves dimension 0 of every tensor input dynamic, "static" none;
            a mapping from argument name to dimensions adds those to the batch dimension.
        slots: globs over module paths whose outputs become slots (`Model.declare_slots`), besides
            those at the borders of regions and those marked with `esper.Slot`.

    Returns:
        A `Model` in the module's present mode. It switches between training and evaluation where
        both traces have the same ops; `model.notes` says what could not be kept.

    Raises:
        TraceError: naming the op or error and the line of user code.
        UsageError: a glob of `slots` names no module with a single output.
    """
    kwargs = dict(kwargs or {})
    if not isinstance(module, torch.nn.Module):
        raise TraceError(f"esper.trace takes an nn.Module, not {type(module).__name__}")
    example = (args, kwargs)
    args, kwargs = _widen(args, kwargs, dynamic)
    shapes_spec = _dynamic_shapes(module, args, kwargs, dynamic)
    training = module.training
    main = _export(module, args, kwargs, shapes_spec)
    other = _export_in_mode(module, args, kwargs, shapes_spec, not training)
    model = _build(main, module)
    model.notes.extend(
        f"{old} is called {new} here, because {old} is an attribute of every Model"
        for old, new in main.meta[_RENAMED].items()
    )
    if isinstance(other, TraceError):
        model.notes.append(f"cannot switch to {_mode(not training)} mode exactly: {other}")
    else:
        _note_modes(model, other, training)
    _check_dynamic(model, shapes_spec)
    torch.nn.Module.train(model, training)
    shapes.propagate(model, [n for n in model.graph.nodes if n.op == "get_attr"])
    model.ports = read_ports(model)
    model.example_inputs = example
    model.declare_slots(*slots)
    return model


def _mode(training: bool) -> str:
    return "training" if training else "evaluation"


def _widen(
    args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Dynamic
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    leaves, spec = pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.ndim > 0]
    if dynamic == "static" or not tensors or any(t.shape[0] != 1 for t in tensors):
        return args, kwargs
    doubled = [
        torch.cat([leaf, leaf]) if isinstance(leaf, torch.Tensor) and leaf.ndim > 0 else leaf
        for leaf in leaves
    ]
    widened: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_unflatten(doubled, spec)
    return widened


def _dynamic_shapes(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Dynamic
) -> Any:
    if dynamic == "static":
        return None
    auto = torch.export.Dim.AUTO
    names = list(inspect.signature(module.forward).parameters)
    extra = dynamic if isinstance(dynamic, Mapping) else {}
    given = [*names[: len(args)], *kwargs]
    unknown = set(extra) - set(given)
    if unknown:
        raise TraceError(f"no input is called {min(unknown)!r}; the inputs are {', '.join(given)}")

    def spec(name: str, value: Any) -> Any:
        def leaf(item: Any) -> Any:
            if not isinstance(item, torch.Tensor) or item.ndim == 0:
                return None
            wanted = {0}
            for dim in extra.get(name, ()):
                if not -item.ndim <= dim < item.ndim:
                    shape = "x".join(map(str, item.shape))
                    raise TraceError(f"input {name!r} has no dimension {dim}: it is {shape}")
                wanted.add(dim % item.ndim)
            return dict.fromkeys(sorted(wanted), auto)

        return pytree.tree_map(leaf, value)

    positional = tuple(
        spec(names[i] if i < len(names) else f"arg{i}", value) for i, value in enumerate(args)
    )
    named = {name: spec(name, value) for name, value in kwargs.items()}
    return {"args": positional, "kwargs": named}


def _export(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], spec: Any
) -> fx.GraphModule:
    dynamic = None
    if spec is not None:
        parameters = inspect.signature(module.forward).parameters
        names = list(parameters)
        positional = spec["args"]
        variadic = [p.name for p in parameters.values() if p.kind is p.VAR_POSITIONAL]
        dynamic = dict(spec["kwargs"])
        if variadic and positional:
            first = variadic[0]
            fixed = names.index(first)
            dynamic.update(zip(names[:fixed], positional[:fixed], strict=True))
            dynamic[first] = tuple(positional[fixed:])
        else:
            dynamic.update(zip(names, positional, strict=False))
    try:
        with warnings.catch_warnings():
            # PyTorch warns of its own workings; what the user's code warns of, it does when run.
            warnings.simplefilter("ignore")
            with _named_keywords(module, kwargs):
                program = torch.export.export(
                    module, args, kwargs, dynamic_shapes=dynamic, strict=False
                )
        exported = program.module(check_guards=False)
    except Exception as error:
        raise TraceError(explain(error, module)) from error
    assert isinstance(exported, fx.GraphModule)
    exported.meta[_RENAMED] = rename_reserved(exported)
    canonicalize(exported)
    return exported


@contextmanager
def _named_keywords(module: torch.nn.Module, kwargs: dict[str, Any]) -> Iterator[None]:
    """Give keywords that `**kwargs` takes up a place of their own in the signature of `forward`.

    `torch.export` cannot make sizes dynamic in what `**kwargs` holds, and fails.
    """
    forward = module.forward
    signature = inspect.signature(forward)
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    others = [name for name in kwargs if name not in signature.parameters]
    if not others or len(named) == len(signature.parameters):
        yield
        return

    def call(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in others]
    call.__signature__ = signature.replace(parameters=[*named, *added])  # type: ignore[attr-defined]
    own = vars(module).get("forward")
    module.forward = call  # of this object alone
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _export_in_mode(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    spec: Any,
    training: bool,
) -> fx.GraphModule | TraceError:
    modes = {name: m.training for name, m in module.named_modules()}
    try:
        module.train(training)
        return _export(module, args, kwargs, spec)
    except TraceError as error:
        return error
    finally:
        module.train(modes[""])  # a Model or another module of its own mind has more than flags
        for name, m in module.named_modules():
            m.training = modes[name]


def explain(error: BaseException, module: torch.nn.Module) -> str:
    """One sentence: what export could not do and the line of user code where it happened."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    where = _user_line(error)
    sentence = f"{type(module).__name__} cannot be exported: {first.rstrip('.')}"
    return f"{sentence}, at {where}" if where else sentence


def _user_line(error: BaseException) -> str | None:
    torch_root = os.path.dirname(torch.__file__)
    own_root = os.path.dirname(os.path.dirname(__file__))
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if not frame.filename.startswith((torch_root, own_root, "<")):
            line = frame.line or linecache.getline(frame.filename, frame.lineno or 0).strip()
            return f"{os.path.basename(frame.filename)}:{frame.lineno} ({line})"
    return None


def _build(exported: fx.GraphModule, module: torch.nn.Module) -> Model:
    """A Model that owns copies of the exported tensors and slim, serialisable metadata.

    Tensors come in the order of the original module, so that state dicts read alike.
    """
    holder = torch.nn.Module()
    original = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    renamed: dict[str, str] = exported.meta[_RENAMED]
    for path, part in module.named_modules(remove_duplicate=False):
        if next(part.parameters(), None) is not None or next(part.buffers(), None) is not None:
            owner_of(holder, f"{renamed_path(path, renamed)}.x" if path else "x")
    copies: dict[int, torch.Tensor] = {}
    named = [
        *exported.named_parameters(remove_duplicate=False),
        *exported.named_buffers(remove_duplicate=False),
    ]
    order = {renamed_path(name, renamed): i for i, (name, _) in enumerate(original)}
    named.sort(key=lambda item: order.get(item[0], len(order)))
    persistent = set(exported.state_dict())
    for name, tensor in named:
        owner = owner_of(holder, name)
        leaf = name.rpartition(".")[2]
        if id(tensor) not in copies:
            copies[id(tensor)] = _own(tensor)
        mine = copies[id(tensor)]
        if isinstance(mine, torch.nn.Parameter):
            owner.register_parameter(leaf, mine)
        else:
            owner.register_buffer(leaf, mine, persistent=name in persistent)
    places = marked(exported.graph)
    for node in exported.graph.nodes:
        _slim(node)
        if node.op == "get_attr" and _missing(holder, str(node.target)):
            value = _fetch(exported, str(node.target))
            owner, leaf = owner_of(holder, str(node.target)), str(node.target).rpartition(".")[2]
            if isinstance(value, torch.Tensor):  # a constant made while tracing
                owner.register_buffer(leaf, value.detach().clone())
            else:
                setattr(owner, leaf, value)
    _read_everything(exported.graph, [name for name, _ in named])
    model = Model(holder, exported.graph)
    adopt(model, holder)
    for slot, name in places.items():
        model.ecology.set(slot, SlotLife(input=name))
    return model


def _read_everything(graph: fx.Graph, names: list[str]) -> None:
    """Every parameter keeps a `get_attr` node, as export does, so that none is lost unread."""
    read = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    first = next(iter(graph.nodes))
    with graph.inserting_before(first):
        for name in names:
            if name not in read:
                graph.get_attr(name).meta = {"val": None, "module": "", "source": ""}


def _own(tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad)
    return tensor.detach().clone()


def _fetch(root: torch.nn.Module, name: str) -> Any:
    value: Any = root
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _missing(root: torch.nn.Module, name: str) -> bool:
    value: Any = root
    for part in name.split("."):
        if not hasattr(value, part):
            return True
        value = getattr(value, part)
    return False


def _slim(node: fx.Node) -> None:
    stack = node.meta.get("nn_module_stack") or {}
    module = list(stack.values())[-1][0] if stack else ""
    if module.startswith("_empty_nn_module_stack"):  # nodes that export adds by itself
        module = ""
    source = _source(node.meta.get("stack_trace") or "")
    val = node.meta.get("val")
    kept: dict[str, Any] = {k: node.meta[k] for k in ("modes", "counter") if k in node.meta}
    node.meta = {"val": val, "module": module.removeprefix("L__self__."), "source": source, **kept}


def _source(stack_trace: str) -> str:
    """`file.py:12: code` of the innermost user line."""
    lines = [line.strip() for line in stack_trace.strip().splitlines()]
    frames = [i for i, line in enumerate(lines) if line.startswith('File "')]
    if not frames:
        return ""
    library = f'File "{os.path.dirname(torch.__file__)}{os.sep}'
    own = [i for i in frames if not lines[i].startswith(library)]
    chosen = (own or frames)[-1]  # a layer of PyTorch says less than the line that calls it
    path, _, rest = lines[chosen].removeprefix('File "').partition('", line ')
    number = rest.partition(",")[0]
    code = lines[chosen + 1] if chosen + 1 < len(lines) else ""
    return f"{os.path.basename(path)}:{number}: {code}"


def _note_modes(model: Model, other: fx.GraphModule, training: bool) -> None:
    """Record arguments that differ between the two modes."""
    counters = _take_counters(model.graph), _take_counters(other.graph)
    mine, theirs = _body(model.graph), _body(other.graph)
    aligned = len(mine) == len(theirs) and all(
        a.target == b.target for a, b in zip(mine, theirs, strict=True)
    )
    differences: list[tuple[fx.Node, tuple[int | str, ...]]] = []
    names = {b: a for a, b in zip(mine, theirs, strict=False)}
    if aligned:
        for a, b in zip(mine, theirs, strict=True):
            paths = _differences(a, b, names)
            if paths is None:
                aligned = False
                break
            differences += [(a, path) for path in paths]
    if not aligned:
        model.notes.append(
            f"the {_mode(not training)} trace has other ops than the {_mode(training)} trace: "
            f"train() and eval() switch nothing"
        )
        return
    partner = {a: b for b, a in names.items()}
    for node, path in differences:
        values = get_path(node, path), get_path(partner[node], path)
        modes = dict(node.meta.get("modes", {}))
        modes[path] = (values[1], values[0]) if training else values
        node.meta["modes"] = modes
    for node in mine:
        if node.target is aten.batch_norm.default and isinstance(node.args[3], fx.Node):
            counter = str(node.args[3].target).rpartition(".")[0] + ".num_batches_tracked"
            if counter in counters[0] | counters[1]:
                node.meta["counter"] = counter
    if training:
        from esper.ir.modes import set_mode

        set_mode(model.graph, True)
    model.recompile()


def _take_counters(graph: fx.Graph) -> set[str]:
    found: set[str] = set()
    for node in reversed(list(graph.nodes)):
        if node.target is not aten.add_.Tensor or node.users:
            continue
        counter = node.args[0]
        while counter.target is aten.add_.Tensor:  # a layer called twice counts twice
            counter = counter.args[0]
        name = str(counter.target)
        if counter.op == "get_attr" and name.endswith("num_batches_tracked"):
            found.add(name)
            graph.erase_node(node)
    return found


def _body(graph: fx.Graph) -> list[fx.Node]:
    # Memory layout is no behaviour: user code often copies to contiguous in one mode only.
    skipped = aten.contiguous.default
    return [node for node in graph.nodes if node.op != "get_attr" and node.target != skipped]


def _through(node: fx.Node) -> fx.Node:
    while node.target is aten.contiguous.default:
        node = node.args[0]  # type: ignore[assignment]
    return node


def _differences(
    a: fx.Node, b: fx.Node, names: dict[fx.Node, fx.Node]
) -> list[tuple[int | str, ...]] | None:
    """Argument paths where two nodes hold different literals; None where operands differ."""
    paths: list[tuple[int | str, ...]] = []

    def walk(x: Any, y: Any, path: tuple[int | str, ...]) -> bool:
        if isinstance(x, fx.Node) or isinstance(y, fx.Node):
            if not (isinstance(x, fx.Node) and isinstance(y, fx.Node)):
                return False
            x, y = _through(x), _through(y)
            return (x.op == y.op == "get_attr" and x.target == y.target) or names.get(y) is x
        if isinstance(x, (list, tuple)) and isinstance(y, (list, tuple)):
            return len(x) == len(y) and all(
                walk(p, q, (*path, i)) for i, (p, q) in enumerate(zip(x, y, strict=True))
            )
        if isinstance(x, dict) and isinstance(y, dict):
            return x.keys() == y.keys() and all(walk(x[k], y[k], (*path, k)) for k in x)
        if x != y:
            paths.append(path)
        return True

    return paths if walk(a.args, b.args, ()) and walk(a.kwargs, b.kwargs, ()) else None


def _check_dynamic(model: Model, spec: Any) -> None:
    if spec is None:
        return
    for node in model.graph.nodes:
        value = node.meta.get("val")
        if node.op != "placeholder" or not isinstance(value, torch.Tensor) or not value.ndim:
            continue
        size = shapes.sizes(value)[0]
        if isinstance(size, int):
            model.notes.append(
                f"dimension 0 of input {node.name} is fixed at {size}: "
                f"the model's code does not allow another size"
            )
