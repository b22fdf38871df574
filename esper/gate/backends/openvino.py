"""OpenVINO on CPU, from the same ONNX file as ONNX Runtime."""

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


class OpenVino:
    """One stream, latency hint, fp32 arithmetic unless the model itself says otherwise.

    OpenVINO would by default lower fp32 models to bf16 where the processor has it; that change
    of numerics belongs to a `cast`, judged against the quality budget, not to a backend.
    """

    name = "openvino"
    objectives = frozenset({"inference"})
    devices = frozenset({"cpu"})
    custom_ops = False

    def available(self) -> str | None:
        if missing := missing_packages("openvino", "onnx", "onnxscript"):
            return f"openvino needs {', '.join(missing)}: pip install {' '.join(missing)}"
        return None

    def versions(self) -> dict[str, str]:
        from importlib.metadata import version

        return {"openvino": version("openvino")}

    def prepare(
        self, model: nn.Module, calls: Sequence[Call], directory: Path, context: Context
    ) -> None:
        export_onnx(model, calls, directory / "model.onnx")

    def load(self, directory: Path, calls: Sequence[Call], context: Context) -> Runner:
        run = _compiled(directory / "model.onnx", context)

        def call(*args: Any, **kwargs: Any) -> Any:
            return as_tensors(run(*args, **kwargs))

        return call


def _compiled(path: Path, context: Context) -> Runner:
    import openvino as ov

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(context.threads),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    try:
        core = ov.Core()
        compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
    except Exception as error:  # openvino raises RuntimeError and its own classes
        first = (str(error).strip() or "no message").splitlines()[0]
        raise BackendError(f"openvino cannot load the exported model: {first}") from error
    request = compiled.create_infer_request()
    count = len(compiled.inputs)

    def run(*args: Any, **kwargs: Any) -> Any:
        given = arrays((args, kwargs))
        if len(given) != count:
            raise BackendError(
                f"the exported model takes {count} tensors but the call has {len(given)}."
            )
        results = request.infer(dict(enumerate(given)), share_inputs=True)
        return [results[index] for index in range(len(compiled.outputs))]

    return run
