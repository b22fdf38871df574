"""One way in which all operators are made."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.library import custom_op, infer_schema

from esper_kernels.on_gpu import triton_of


def define(
    name: str, shape: Callable[..., Any], compute: Callable[..., Any], cpu: ModuleType
) -> CustomOpDef:
    """The operator `esper::name`, opaque to compilers and exporters.

    Args:
        name: what comes behind `esper::`.
        shape: `shape(*arguments)` checks them, raises ValueError where they do not go together, and
            returns what the operator returns, with whatever values. Its annotations are the schema.
        compute: `compute(kernels, *arguments)` is the operator with the functions of one device,
            for a first argument that is not empty. Where it is, the result is zero or empty.
        cpu: those functions for a CPU. For CUDA they are in `triton`, in the same folder.
    """
    folder = cpu.__name__.split(".")[-2]

    def call(kernels: Callable[[], ModuleType], arguments: tuple[Any, ...]) -> Any:
        blank = shape(*arguments)
        if arguments[0].numel() == 0:
            return blank.zero_() if isinstance(blank, Tensor) else tuple(t.zero_() for t in blank)
        return compute(kernels(), *arguments)

    operator = custom_op(
        f"esper::{name}",
        lambda *arguments: call(lambda: triton_of(folder), arguments),
        mutates_args=(),
        device_types="cuda",
        schema=infer_schema(shape, mutates_args=()),
    )
    operator.register_kernel("cpu", lambda *arguments: call(lambda: cpu, arguments))
    operator.register_fake(shape)
    return operator
