"""One way in which all operators are made.

They are defined through `torch.library` directly, which is what `torch.library.custom_op` does less
two things that cost more than a small product: its check at every call that results share no memory
with arguments (a test makes it here), and an import of the compiler before the first one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.library import infer_schema

from esper_kernels.casting import cast
from esper_kernels.on_gpu import triton_of
from esper_kernels.pages import keep_freed


def define(
    name: str,
    shape: Callable[..., Any],
    compute: Callable[..., Any],
    cpu: ModuleType,
    devices: Sequence[str] = ("cpu", "cuda"),
    autocast: bool = True,
) -> OpOverload[..., Any]:
    """The operator `esper::name`, opaque to compilers and exporters.

    Args:
        name: what comes behind `esper::`.
        shape: `shape(*arguments)` checks them, raises ValueError where they do not go together, and
            returns what the operator returns, with whatever values. Its annotations are the schema.
        compute: `compute(kernels, *arguments)` is the operator with the functions of one device,
            for a first argument that is not empty. Where it is, the result is the bias or zero.
        cpu: those functions for a CPU. For CUDA they are in `triton`, in the same folder.
        devices: where the operator runs.
        autocast: whether `torch.autocast` casts the first argument. Where it does not, the others
            take the dtype that the first has.
    """
    folder, full = cpu.__name__.split(".")[-2], f"esper::{name}"

    def call(kernels: Callable[[], ModuleType], *arguments: Any) -> Any:
        blank = shape(*arguments)
        if arguments[0].numel() > 0:
            return compute(kernels(), *arguments)
        if not isinstance(blank, Tensor):
            return tuple(t.zero_() for t in blank)
        given = None if bias is None else arguments[bias]
        return blank.zero_() if given is None else blank.copy_(given)  # sums of no products

    def on_cpu() -> ModuleType:
        keep_freed()
        return cpu

    schema, names = infer_schema(shape, mutates_args=()), list(signature(shape).parameters)
    bias = names.index("bias") if "bias" in names else None
    torch.library.define(full, schema, tags=(torch.Tag.pt2_compliant_tag,))
    kernels = {"cpu": on_cpu, "cuda": lambda: triton_of(folder)}
    for device in devices:
        torch.library.impl(full, device, partial(call, kernels[device]))
    torch.library.register_fake(full, shape)
    operator: OpOverload[..., Any] = getattr(torch.ops.esper, name).default
    for device in devices:
        torch.library.impl(full, f"Autocast{device.upper()}", _autocast(operator, device, autocast))
    return operator


def _autocast(operator: OpOverload[..., Any], device: str, casts: bool) -> Callable[..., Any]:
    """The operator under `torch.autocast`: floating arguments take its dtype, scales do not."""
    scales = {i for i, a in enumerate(operator._schema.arguments) if a.name.endswith("scale")}

    def call(*arguments: Any) -> Any:
        x, *others = arguments
        dtype = torch.get_autocast_dtype(device) if casts else x.dtype
        with torch.autocast(device, enabled=False):
            return operator(
                cast(x, dtype),
                *(a if i in scales else cast(a, dtype, keep=True) for i, a in enumerate(others, 1)),
            )

    return call


def differentiate(
    operator: OpOverload[..., Any], backward: Callable[..., Any], save: Callable[..., None]
) -> None:
    """Give an operator its gradient, as `torch.library.register_autograd` wants it."""
    torch.library.register_autograd(operator, backward, setup_context=save)
