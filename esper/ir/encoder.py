"""What a `.esper` file says of a model, as plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from esper.ir import codec, symbols
from esper.ir.codec import CodecError
from esper.ir.origin import origin_of
from esper.ir.ports import Ports, read_ports
from esper.ir.pytrees import encode_spec
from esper.ir.shapes import describe

if TYPE_CHECKING:
    from esper.ir.model import Model


def graph(model: Model) -> dict[str, Any]:
    """Symbols, nodes, signature, tensor list and modes. Raises CodecError naming the node."""
    nodes = list(model.graph.nodes)
    inputs = [node.meta.get("val") for node in nodes if node.op == "placeholder"]
    info = getattr(model.graph._codegen, "pytree_info", None)
    if info is None:
        raise CodecError("its graph has lost the caller's signature")
    out = None if info.out_spec is None else encode_spec(info.out_spec)
    ports: Ports = model.ports or read_ports(model)
    return {
        "symbols": symbols.describe_symbols(inputs),
        "nodes": [_node(model, node) for node in nodes],
        "signature": {"names": list(info.orig_args), "in": encode_spec(info.in_spec), "out": out},
        "ports": {
            "inputs": list(ports.inputs),
            "outputs": list(ports.outputs),
            "structure": ports.structure,
            "ties": [list(names) for names in ports.ties],
        },
        "modules": [name for name, _ in model.named_modules() if name],
        "tensors": _tensor_list(model),
        "training": model.training,
    }


def _node(model: Model, node: fx.Node) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = {"name": codec.identifier(node.name), "op": node.op}
        if node.op == "call_function":
            facts["target"] = codec.encode_target(node.target)
        elif node.op in ("placeholder", "get_attr", "output"):
            facts["target"] = str(node.target)
        else:
            raise CodecError(f"a {node.op} node cannot be saved")
        if node.op == "get_attr" and model.tensor(str(node.target)) is None:
            raise CodecError(f"{node.target} is no parameter or buffer")
        if node.args:
            facts["args"] = [codec.encode(arg) for arg in node.args]
        if node.kwargs:
            facts["kwargs"] = {name: codec.encode(arg) for name, arg in node.kwargs.items()}
        for key in ("module", "source", "counter"):
            if node.meta.get(key):
                facts[key] = codec.one_line(node.meta[key])
        if node.meta.get("modes"):
            facts["modes"] = [
                [list(path), codec.encode(off), codec.encode(on)]
                for path, (off, on) in node.meta["modes"].items()
            ]
        if origin := origin_of(node):
            facts["origin"] = [
                [*call[:2], list(call.reads), *call[3:5], list(call.tensors), call.froze]
                for call in origin
            ]
        value = node.meta.get("val")
        facts["value"] = describe(value)
        if node.op == "placeholder":
            facts["input"] = _input(value)
        return facts
    except CodecError as error:
        raise CodecError(f"node %{node.name}: {error}") from None


def _input(value: Any) -> dict[str, Any]:
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided:
            raise CodecError(f"inputs with layout {value.layout} cannot be saved")
        return {
            "dtype": codec.encode(value.dtype)["dtype"],
            "device": str(value.device),
            "shape": [symbols.expression(size) for size in value.shape],
            "stride": [symbols.expression(size) for size in value.stride()],
        }
    if isinstance(value, torch.SymInt):
        return {"size": symbols.expression(value)}
    return {"constant": codec.encode(value)}


def _tensor_list(model: Model) -> list[dict[str, Any]]:
    canonical = model.canonical_names()
    persistent = set(model.state_dict(keep_vars=True))
    listed: list[dict[str, Any]] = []
    for name, tensor in model.all_tensors():
        facts: dict[str, Any] = {"name": codec.tensor_name(name)}
        if isinstance(tensor, torch.nn.Parameter):
            facts["trainable"] = tensor.requires_grad
        else:
            facts["persistent"] = name in persistent
        if canonical[name] != name:
            facts["alias"] = canonical[name]
        listed.append(facts)
    return listed


def tensors(model: Model) -> dict[str, torch.Tensor]:
    """Every tensor once, by its first name."""
    canonical = model.canonical_names()
    return {name: t for name, t in model.all_tensors() if canonical[name] == name}


def anatomy(model: Model) -> dict[str, Any]:
    """The memory behind stable IDs, brought up to date with the graph."""
    _ = model.anatomy.axes, model.anatomy.phages
    identities = model.identities
    return {
        "axes": {
            name: {
                "kind": identity.kind,
                "members": sorted(map(list, identity.members)),
                "units": list(identity.unit_ids),
                "next": identity.next_unit,
            }
            for name, identity in identities.axes.items()
        },
        "retired": sorted(identities.retired),
        "regions": identities.regions,
        "pins": list(identities.pins),
        "ecology": model.ecology.data(),
    }
