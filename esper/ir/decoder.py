"""A model from the plain data of a `.esper` file; every value is checked before it is used.

Names are checked with care: PyTorch generates Python code from a graph, and node names, tensor
names and keyword names are pasted into it.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo

from esper.ir import codec, kept, shapes
from esper.ir.anatomy import Identities, Identity
from esper.ir.codec import CodecError
from esper.ir.ecology import Ecology
from esper.ir.model import Model
from esper.ir.module_tree import adopt, owner_of
from esper.ir.origin import Origin, set_origin
from esper.ir.ports import Ports, read_ports, same_description
from esper.ir.pytrees import decode_spec
from esper.ir.symbols import Symbols, bounded

if TYPE_CHECKING:
    from collections.abc import Mapping


def model(
    graph: Mapping[str, Any],
    anatomy: Mapping[str, Any],
    history: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
) -> Model:
    """Rebuild a model. Raises CodecError, or what PyTorch raises on a graph that makes no sense."""
    holder = _holder(graph, tensors)
    symbols = Symbols(graph["symbols"])
    result = Model(holder, _graph(graph, symbols))
    adopt(result, holder)
    _propagate(result, symbols, graph["nodes"])
    training = graph["training"]
    if type(training) is not bool:
        raise CodecError("its training flag is none")
    torch.nn.Module.train(result, training)
    result.identities.assign(_identities(anatomy))
    if "ecology" in anatomy:  # files of the first version have none
        result.ecology = _ecology(_object(anatomy["ecology"]))
    result.history.extend(_list_of(history["history"], dict, "history"))
    result.notes.extend(codec.text(note) for note in _list_of(history["notes"], str, "notes"))
    result.ports = _ports(graph["ports"], read_ports(result))
    return result


def _ports(facts: Mapping[str, Any], found: Ports) -> Ports:
    stored = Ports(
        tuple(codec.text(text) for text in _list_of(facts["inputs"], str, "ports")),
        tuple(codec.text(text) for text in _list_of(facts["outputs"], str, "ports")),
        codec.text(facts["structure"], 10**6),
        tuple(
            tuple(codec.tensor_name(name) for name in _list_of(names, str, "tied names"))
            for names in _list_of(facts["ties"], list, "tied names")
        ),
    )
    # Where another PyTorch writes the same sizes differently, the contract is written anew.
    pairs = [(stored.inputs, found.inputs), (stored.outputs, found.outputs)]
    same = (
        all(len(a) == len(b) and all(map(same_description, a, b)) for a, b in pairs)
        and stored.structure == found.structure
    )
    return dataclasses.replace(found, ties=stored.ties) if same else stored


def _list_of(value: Any, kind: type, what: str) -> list[Any]:
    if type(value) is not list or not all(type(item) is kind for item in value):
        raise CodecError(f"its {what} are not encoded as they should be")
    return value


# -- tensors -------------------------------------------------------------------------------------


def _holder(graph: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """Bare modules with the tensors, in the order of the saved model."""
    holder = torch.nn.Module()
    for name in _list_of(graph["modules"], str, "modules"):
        owner_of(holder, f"{codec.tensor_name(name)}.x")
    made: dict[str, torch.Tensor] = {}
    for facts in _list_of(graph["tensors"], dict, "tensors"):
        name = codec.tensor_name(facts["name"])
        trainable, persistent = facts.get("trainable"), facts.get("persistent")
        if (type(trainable), type(persistent)) not in ((bool, type(None)), (type(None), bool)):
            raise CodecError(f"{name} is neither parameter nor buffer")
        if "alias" in facts:
            tensor = made.get(facts["alias"])
        elif name in tensors:
            data = tensors[name]
            tensor = data if trainable is None else torch.nn.Parameter(data, bool(trainable))
        else:
            tensor = None
        if tensor is None:
            raise CodecError(f"the data of tensor {name} are missing")
        made[name] = tensor
        leaf = name.rpartition(".")[2]
        if isinstance(tensor, torch.nn.Parameter) != (trainable is not None):
            raise CodecError(f"{name} is tied to a tensor of another kind")
        if isinstance(tensor, torch.nn.Parameter):
            owner_of(holder, name).register_parameter(leaf, tensor)
        else:
            owner_of(holder, name).register_buffer(leaf, tensor, persistent=bool(persistent))
    if surplus := sorted(tensors.keys() - made.keys()):
        raise CodecError(f"it holds data for {surplus[0][:100]}, which no module has")
    return holder


# -- graph ---------------------------------------------------------------------------------------


def _graph(data: Mapping[str, Any], symbols: Symbols) -> fx.Graph:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for facts in _list_of(data["nodes"], dict, "nodes"):
        name = codec.identifier(facts["name"])
        if name in nodes:
            raise CodecError(f"two nodes are called %{name}")
        try:
            nodes[name] = _node(graph, name, facts, nodes, symbols)
        except CodecError as error:
            raise CodecError(f"node %{name}: {error}") from None
    ops = [node.op for node in nodes.values()]
    if ops.count("output") != 1 or ops[-1] != "output":
        raise CodecError("its graph does not end with its one output")
    signature = data["signature"]
    names = [codec.identifier(name) for name in _list_of(signature["names"], str, "argument names")]
    out = None if signature["out"] is None else decode_spec(signature["out"])
    into = decode_spec(signature["in"])
    if into.num_leaves != ops.count("placeholder"):
        raise CodecError("its signature has another number of inputs than its graph")
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, into, out)))
    graph.lint()
    return graph


def _node(
    graph: fx.Graph,
    name: str,
    facts: Mapping[str, Any],
    nodes: Mapping[str, fx.Node],
    symbols: Symbols,
) -> fx.Node:
    op = facts["op"]
    target: Any = facts["target"]
    if op == "call_function":
        target = codec.decode_target(target)
    elif op == "get_attr":
        target = codec.tensor_name(target)
    elif op == "placeholder":
        target = codec.identifier(target)
    elif op != "output" or target != "output":
        raise CodecError("it is of a kind that is not admitted")
    args = tuple(codec.decode(arg, nodes) for arg in _list(facts.get("args", [])))
    kwargs = facts.get("kwargs", {})
    if type(kwargs) is not dict or (
        op != "call_function" and (kwargs or (args and op != "output"))
    ):
        raise CodecError("its arguments are not encoded as they should be")
    decoded = {codec.identifier(key): codec.decode(arg, nodes) for key, arg in kwargs.items()}
    if op == "output" and len(args) != 1:
        raise CodecError("it has not one value")
    node = graph.create_node(op, target, args, decoded, name=name)
    node.name = name  # names of inputs may be names that torch.fx would not choose
    node.meta = {
        "val": _input(facts["input"], symbols) if op == "placeholder" else None,
        "module": codec.text(facts.get("module", "")),
        "source": codec.text(facts.get("source", "")),
    }
    if "modes" in facts:
        node.meta["modes"] = dict(_mode(entry, node) for entry in _list(facts["modes"]))
    if "counter" in facts:
        node.meta["counter"] = codec.tensor_name(facts["counter"])
    set_origin(node, tuple(_origin(call) for call in _list(facts.get("origin", []))))
    return node


def _origin(call: Any) -> Origin:
    name, op, reads, module, source, tensors, froze = _list(call)
    if type(froze) is not bool:
        raise CodecError("origins are not encoded as they should be")
    codec.decode_target(op)
    return Origin(
        codec.identifier(name),
        op,
        tuple(codec.identifier(read) for read in _list_of(reads, str, "origins")),
        codec.text(module),
        codec.text(source),
        tuple(codec.tensor_name(tensor) for tensor in _list_of(tensors, str, "origins")),
        froze,
    )


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise CodecError("its arguments are not encoded as they should be")
    return value


def _mode(entry: Any, node: fx.Node) -> tuple[tuple[int | str, ...], tuple[Any, Any]]:
    from esper.ir.modes import get_path

    steps, off, on = entry
    path = tuple(steps)
    if not path or not all(type(step) in (int, str) for step in path):
        raise CodecError("a mode is not encoded as it should be")
    get_path(node, path)
    return path, (codec.decode(off, {}), codec.decode(on, {}))


def _input(facts: Any, symbols: Symbols) -> Any:
    if "constant" in facts:
        return codec.decode(facts["constant"], {})
    if "size" in facts:
        return symbols.size(facts["size"])
    shape = [symbols.size(size) for size in _list(facts["shape"])]
    stride = [symbols.size(size) for size in _list(facts["stride"])]
    with symbols.mode:
        return torch.empty_strided(
            shape,
            stride,
            dtype=codec.torch_constant("dtype", facts["dtype"]),
            device=codec.device(facts["device"]),
        )


# -- values --------------------------------------------------------------------------------------


def _propagate(result: Model, symbols: Symbols, described: list[dict[str, Any]]) -> None:
    """Recompute every value with fake tensors and compare with what the file says."""
    for node, facts in zip(result.graph.nodes, described, strict=True):
        _check_scalars(node)
        value = shapes.evaluate(result, node, symbols.mode)
        if not bounded(value):
            raise CodecError(f"node %{node.name} computes a size that is out of range")
        if node.op == "get_attr" and value is None:
            raise CodecError(f"node %{node.name} reads {node.target}, which is no tensor")
        node.meta["val"] = value
        found = shapes.describe(value)
        if not _agree(found, facts["value"]):
            raise CodecError(
                f"node %{node.name} computes {found[:100]}, the file says {_shown(facts['value'])}"
            )


def _shown(value: Any) -> str:
    return value[:100] if type(value) is str else type(value).__name__


def _check_scalars(node: fx.Node) -> None:
    """Python's own operators run for real, so they get numbers only and small exponents.

    Statistics over what stays are functions of tensors, which are fake ones here.
    """
    if isinstance(node.target, torch._ops.OpOverload) or node.op != "call_function":
        return
    values = fx.map_arg(list(node.args), lambda n: n.meta.get("val"))
    if node.target is operator.getitem:
        if not isinstance(values[0], (list, tuple)) or type(values[1]) is not int:
            raise CodecError(f"node %{node.name} takes an item of something that has none")
        return
    if node.target in kept.FUNCTIONS.values():
        if len(values) < 2 or not all(isinstance(value, torch.Tensor) for value in values[:2]):
            raise CodecError(f"node %{node.name} takes statistics of something that is no tensor")
        return
    numbers = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)
    for value in [*values, *node.kwargs.values()]:
        if not isinstance(value, numbers):
            raise CodecError(f"node %{node.name} computes with something that is no number")
    if node.target is operator.pow and not (type(values[1]) is int and 0 <= values[1] <= 8):
        raise CodecError(f"node %{node.name} has an exponent that is not admitted")


def _agree(found: str, stored: Any) -> bool:
    return type(stored) is str and len(stored) <= 100_000 and same_description(found, stored)


# -- anatomy -------------------------------------------------------------------------------------


def _ecology(data: Mapping[str, Any]) -> Ecology:
    try:
        return Ecology.parse(data)
    except (KeyError, TypeError, ValueError) as error:
        raise CodecError("the stages of slots are not encoded as they should be") from error


def _identities(data: Mapping[str, Any]) -> Identities:
    axes: dict[str, Identity] = {}
    for name, facts in _object(data["axes"]).items():
        units = _list_of(facts["units"], int, "unit numbers")
        members = frozenset(
            _member(member) for member in _list_of(facts["members"], list, "members")
        )
        if type(facts["next"]) is not int:
            raise CodecError("an axis has no next unit number")
        identity = Identity(members, tuple(units), facts["next"], codec.text(facts["kind"]))
        axes[codec.text(name)] = identity
    retired = {codec.text(name) for name in _list_of(data["retired"], str, "retired IDs")}
    regions: dict[str, dict[str, str]] = {}
    for name, facts in _object(data["regions"]).items():
        regions[codec.text(name)] = {
            codec.text(k): codec.text(v) for k, v in _object(facts).items()
        }
        if regions[name].keys() != {"path", "kind", "exit"}:
            raise CodecError("a region is not encoded as it should be")
    # Files of the first version have none.
    pins = tuple(codec.text(pin) for pin in _list_of(data.get("pins", []), str, "pins"))
    return Identities(axes, retired, regions, pins)


def _object(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise CodecError("its anatomy is not encoded as it should be")
    return value


def _member(member: list[Any]) -> tuple[str, int, int]:
    tensor, dim, leaf = member
    if type(dim) is not int or type(leaf) is not int:
        raise CodecError("the members of an axis are not encoded as they should be")
    return codec.tensor_name(tensor), dim, leaf
