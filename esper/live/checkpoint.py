"""Whole training states: captured, and put back bit for bit, whatever the structure was.

Everything is plain data and tensors: `torch.save` writes it and `torch.load` reads it with
`weights_only=True`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from esper.apply import set_data
from esper.errors import InputError
from esper.ir import decoder, encoder
from esper.ir.module_tree import adopt

if TYPE_CHECKING:
    from esper.ir.model import Model


def capture_model(model: Model) -> dict[str, Any]:
    """Graph, anatomy and history as JSON text, and the tensors themselves (not copies)."""
    anatomy = encoder.anatomy(model)  # first: it names regions, which the graph's text may show
    parts = {
        "graph": encoder.graph(model),
        "anatomy": anatomy,
        "history": {"history": model.history, "notes": model.notes},
    }
    state: dict[str, Any] = {name: json.dumps(part) for name, part in parts.items()}
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    modes = {name: module.training for name, module in model.named_modules()}
    return {**state, "tensors": encoder.tensors(model), "gradients": gradients, "training": modes}


def restore_model(model: Model, state: Mapping[str, Any]) -> None:
    """Become the captured model. Parameter objects are kept under the names that persist.

    Raises:
        InputError: the state is none of a model.
    """
    try:
        parts = [json.loads(state[name]) for name in ("graph", "anatomy", "history")]
        tensors = {name: tensor.detach().clone() for name, tensor in state["tensors"].items()}
        other = decoder.model(parts[0], parts[1], parts[2], tensors)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"the state holds no model: {type(error).__name__} {error}") from error
    become(model, other)
    for name, module in model.named_modules():
        module.training = bool(state["training"].get(name, model.training))
    for name, parameter in model.named_parameters():
        gradient = state["gradients"].get(name)
        parameter.grad = None if gradient is None else gradient.detach().clone()


def become(model: Model, other: Model) -> None:
    """Take over another model's graph, tensors and memory, keeping parameter objects by name."""
    known = dict(model.named_parameters(remove_duplicate=False))
    kept: dict[int, torch.nn.Parameter] = {}  # by identity of the parameter that it replaces
    taken: set[int] = set()
    for name, parameter in list(other.named_parameters(remove_duplicate=False)):
        if id(parameter) not in kept:
            own = known.get(name)
            if own is None or id(own) in taken:
                continue
            own.grad = None
            set_data(own, parameter.data)
            own.requires_grad_(parameter.requires_grad)
            kept[id(parameter)] = own
            taken.add(id(own))
        path, _, leaf = name.rpartition(".")
        other.get_submodule(path)._parameters[leaf] = kept[id(parameter)]
    adopt(model, other)
    model.swap_graph(other.graph)
    model.identities.assign(other.identities)
    model.history[:], model.notes[:] = other.history, other.notes
    model.ecology = other.ecology
    if other.ports is not None:
        model.ports = other.ports
    model.invalidate()


def capture_optimizer(model: Model, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Groups and state, keyed by parameter name (tensors are not copies)."""
    names = {id(p): n for n, p in reversed(list(model.named_parameters()))}
    groups = [
        {**group, "params": [names[id(p)] for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    state = {names[id(p)]: dict(values) for p, values in optimizer.state.items()}
    return {"groups": groups, "state": state}


def restore_optimizer(
    model: Model, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> None:
    """Put captured groups and state back, on the parameters that now bear those names.

    Raises:
        InputError: the state is that of another optimizer.
    """
    parameters = dict(model.named_parameters())
    groups = state["groups"]
    if len(groups) != len(optimizer.param_groups):
        raise InputError(
            f"the state has {len(groups)} parameter groups, the optimizer "
            f"{len(optimizer.param_groups)}"
        )
    for group, captured in zip(optimizer.param_groups, groups, strict=True):
        group["params"][:] = [parameters[name] for name in captured["params"]]
        group.update({k: copied(v) for k, v in captured.items() if k != "params"})
    optimizer.state.clear()
    for name, values in state["state"].items():
        optimizer.state[parameters[name]] = copied(dict(values))


def capture_random() -> dict[str, Any]:
    """States of the global random generators: PyTorch (all devices), Python, NumPy."""
    version, numbers, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(numbers), gauss],
        "numpy": [[int(k) for k in keys], int(position), int(has_gauss), float(cached)],
    }


def restore_random(state: Mapping[str, Any]) -> None:
    """Put back what `capture_random` took."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, cached))


def copied(value: Any) -> Any:
    """A deep copy in which tensors are detached clones on their own storage."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(item) for item in value)
    return value
