"""ONNX Runtime, CPU or CUDA execution provider."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from esper.errors import BackendError
from esper.gate.backends.base import Call, Context, Runner
from esper.gate.backends.onnx_export import (
    arrays,
    as_tensors,
    export_onnx,
    missing_packages,
)


class OnnxRuntime:
    """The model exported to ONNX, all graph optimizations on.

    Spinning of the intra-op pool is off: a pool that spins on takes the cores from the contender
    that is timed next.
    """

    name = "onnxruntime"
    objectives = frozenset({"inference"})
    devices = frozenset({"cpu", "cuda"})
    custom_ops = False

    def available(self) -> str | None:
        if missing := missing_packages("onnxruntime", "onnx", "onnxscript"):
            return f"onnxruntime needs {', '.join(missing)}: pip install {' '.join(missing)}"
        return None

    def versions(self) -> dict[str, str]:
        import onnxruntime

        return {"onnxruntime": str(onnxruntime.__version__)}

    def prepare(
        self, model: nn.Module, calls: Sequence[Call], directory: Path, context: Context
    ) -> None:
        export_onnx(model, calls, directory / "model.onnx")

    def load(self, directory: Path, calls: Sequence[Call], context: Context) -> Runner:
        run = _session(directory / "model.onnx", context)

        def call(*args: Any, **kwargs: Any) -> Any:
            return as_tensors(run(*args, **kwargs))

        return call


def _session(path: Path, context: Context) -> Runner:
    """The session as a callable from arguments to numpy outputs."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = context.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    provider = "CUDAExecutionProvider" if context.device == "cuda" else "CPUExecutionProvider"
    if provider not in ort.get_available_providers():
        raise BackendError(
            f"this onnxruntime has no {provider}: pip install onnxruntime-gpu in its place."
        )
    try:
        session = ort.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime has no common base class for its errors
        first = (str(error).strip() or "no message").splitlines()[0]
        raise BackendError(f"onnxruntime cannot load the exported model: {first}") from error
    names = [i.name for i in session.get_inputs()]

    def run(*args: Any, **kwargs: Any) -> Any:
        given = arrays((args, kwargs))
        if len(given) != len(names):
            # An input the model never reads is dropped by the exporter.
            raise BackendError(
                f"the exported model takes {len(names)} tensors but the call has {len(given)}."
            )
        return session.run(None, dict(zip(names, given, strict=True)))

    return run
