"""The backends a model can be measured and deployed on, as one explicit table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esper.errors import BackendError

if TYPE_CHECKING:
    from torch import nn

    from esper.gate.backends.base import Backend, Context

NAMES = ("eager", "inductor", "onnxruntime", "openvino")


def backend(name: str) -> Backend:
    """The backend called `name`. Raises BackendError for an unknown one."""
    if name == "eager":
        from esper.gate.backends.eager import Eager

        return Eager()
    if name == "inductor":
        from esper.gate.backends.inductor import Inductor

        return Inductor()
    if name == "onnxruntime":
        from esper.gate.backends.onnxruntime import OnnxRuntime

        return OnnxRuntime()
    if name == "openvino":
        from esper.gate.backends.openvino import OpenVino

        return OpenVino()
    raise BackendError(f"unknown backend {name!r}; choose one of {', '.join(NAMES)}.")


def usable(name: str, context: Context) -> str | None:
    """None when backend `name` can serve `context`, else one sentence why not."""
    found = backend(name)
    if (missing := found.available()) is not None:
        return missing
    if context.objective not in found.objectives:
        return f"{name} cannot run a {context.objective} step."
    if context.device not in found.devices:
        return f"{name} cannot run on {context.device} here."
    return None


def lacking(name: str, model: nn.Module) -> str | None:
    """None when backend `name` has all kernels of a model, else one sentence that names them."""
    kernels: tuple[str, ...] = getattr(model, "kernel_ops", ())
    if not kernels or backend(name).custom_ops:
        return None
    able = [other for other in NAMES if backend(other).custom_ops]
    return (
        f"{name} does not have {', '.join(kernels)}: run it on {' or '.join(able)}, or raise the "
        "kernels with raise-kernels."
    )
