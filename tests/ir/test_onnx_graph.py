"""Graphs respelled for PyTorch's ONNX converter."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from esper.ir.onnx_graph import respell

aten = torch.ops.aten


class FromIntegers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1.0 - (x > 0).long() + x


class Checked(nn.Module):
    """Reads a value only to check it."""

    def forward(self, x: Tensor) -> Tensor:
        torch._check((x > 9).sum().item() == 0)  # type: ignore[no-untyped-call]
        return x * 2


class Sized(nn.Module):
    """Reads a value that is a size, and bounds it."""

    def forward(self, x: Tensor) -> Tensor:
        count: Any = (x[0] > 0).sum().item()
        torch._check(count >= 2)  # type: ignore[no-untyped-call]
        torch._check(count <= 4)  # type: ignore[no-untyped-call]
        return torch.zeros(count) + x.sum()


# The converter warns of its own workings.
pytestmark = pytest.mark.filterwarnings("ignore")
X = torch.full((3, 4), 2.0)


def exported(module: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(module.eval(), (X,), strict=False)


def targets(program: torch.export.ExportedProgram) -> list[object]:
    return [node.target for node in program.graph.nodes]


def converted(
    program: torch.export.ExportedProgram,
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    with torch.no_grad():
        found = torch.onnx.export(program, dynamo=True, verbose=False)
    assert found is not None
    session = onnxruntime.InferenceSession(found.model_proto.SerializeToString())
    (result,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    return np.asarray(result)


def test_integers_are_cast_before_they_are_subtracted_from_a_fraction() -> None:
    program = exported(FromIntegers())
    respell(program)
    assert aten.to.dtype in targets(program)
    np.testing.assert_array_equal(converted(program), FromIntegers()(X).numpy())


def test_checks_of_values_go_with_what_only_they_read() -> None:
    program = exported(Checked())
    assert aten._assert_scalar.default in targets(program)
    respell(program)
    assert [n.target for n in program.graph.nodes if n.op == "call_function"] == [aten.mul.Tensor]
    np.testing.assert_array_equal(converted(program), (X * 2).numpy())


def test_bounds_of_a_size_that_is_used_stay() -> None:
    program = exported(Sized())
    before = targets(program)
    assert aten._assert_scalar.default in before
    respell(program)
    assert targets(program) == before
