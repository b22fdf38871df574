"""PyTorch to ONNX, shared by the backends that execute ONNX."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from esper.errors import BackendError
from esper.gate.backends.base import Call, export, tensor_leaves
from esper.ir.onnx_graph import respell, translations


def missing_packages(*names: str) -> list[str]:
    """Those of `names` that cannot be imported here, without importing them."""
    from importlib.util import find_spec

    return [name for name in names if find_spec(name) is None]


def export_onnx(model: nn.Module, calls: Sequence[Call], path: Path) -> None:
    """Write `model` as ONNX with weights beside it, inputs in the order of the tensor leaves.

    Raises BackendError when the exporter cannot convert it.
    """
    model = copy.deepcopy(model).cpu().eval()
    try:
        with torch.no_grad(), quiet_converter():
            program = export(model, calls)
            respell(program)
            converted = torch.onnx.export(
                program, dynamo=True, verbose=False, custom_translation_table=translations()
            )
            if converted is None:
                raise BackendError("the ONNX exporter returned no program.")
            converted.save(str(path), external_data=True)
    except BackendError:
        raise
    except Exception as error:  # the exporter may raise anything
        first = (str(error).strip() or "no message").splitlines()[0]
        raise BackendError(
            f"the model cannot be exported to ONNX: {type(error).__name__}: {first}"
        ) from error


@contextlib.contextmanager
def quiet_converter() -> Iterator[None]:
    """The exporter prints progress and warns about optional packages nobody asked for."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def arrays(call: Call) -> list[npt.NDArray[Any]]:
    """The tensor leaves of a call as numpy arrays."""
    return [tensor.detach().cpu().numpy() for tensor in tensor_leaves(call)]


def as_tensors(values: Sequence[Any]) -> list[torch.Tensor]:
    """Numpy results as tensors, without a copy where numpy allows that."""
    return [torch.from_numpy(np.asarray(value)) for value in values]
