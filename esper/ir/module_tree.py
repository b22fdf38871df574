"""Bare module trees: where the tensors of a Model live."""

from __future__ import annotations

from typing import Any

import torch


def owner_of(root: torch.nn.Module, name: str) -> torch.nn.Module:
    """The module that holds the attribute `name`; modules on the way are made when absent."""
    module = root
    for part in name.split(".")[:-1]:
        if part not in module._modules:
            module.add_module(part, torch.nn.Module())
        child = module._modules[part]
        assert child is not None
        module = child
    return module


def adopt(model: torch.nn.Module, holder: torch.nn.Module) -> None:
    """Take over the holder's modules: torch.fx copies those that the graph reads, in its order."""
    pairs: tuple[tuple[Any, Any], ...] = (
        (model._modules, holder._modules),
        (model._parameters, holder._parameters),
        (model._buffers, holder._buffers),
    )
    for own, other in pairs:
        own.clear()
        own.update(other)
    model._non_persistent_buffers_set = set(holder._non_persistent_buffers_set)
