"""Operators as a CUDA tensor meets them: their checks, shapes and gradients around the kernels."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.problems import PROBLEMS, Problem, Sizes

FOLDERS = (
    "attention_projections",
    "gated_linear",
    "int8_linear",
    "low_rank_linear",
    "vnm_int8_linear",
    "vnm_linear",
)
FOR_CUDA = {name: problem for name, problem in PROBLEMS.items() if name != "vnm_dynamic_linear"}
EACH = pytest.mark.parametrize("problem", FOR_CUDA.values(), ids=FOR_CUDA)
CLOSE = {torch.float32: 1e-5, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def kernels_for_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of a CPU go where those of CUDA would."""
    for folder in FOLDERS:
        cpu = importlib.import_module(f"esper_kernels.{folder}.cpu")
        triton = importlib.import_module(f"esper_kernels.{folder}.triton")
        for name in ("forward", "backward_x", "backward_values"):
            if hasattr(cpu, name):
                monkeypatch.setattr(cpu, name, getattr(triton, name))


def outputs(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


@EACH
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
def test_values_and_gradients(problem: Problem, dtype: torch.dtype) -> None:
    arguments = problem.trainable(Sizes(samples=7, inputs=45, outputs=21, rows=16, run=8), dtype)
    wide = [
        a.detach().double().requires_grad_(a.requires_grad)
        if isinstance(a, Tensor) and a.dtype == dtype and a is not None
        else a
        for a in arguments
    ]
    found, expected = outputs(problem.op(*arguments)), outputs(problem.reference(*wide))
    onto = [torch.randn_like(t) for t in found]
    ours = torch.autograd.grad(found, [arguments[p] for p in problem.trains], onto)
    theirs = torch.autograd.grad(
        expected, [wide[p] for p in problem.trains], [t.double() for t in onto]
    )
    for one, other in zip((*found, *ours), (*expected, *theirs), strict=True):
        assert one.dtype == dtype
        assert one.shape == other.shape
        error = (one.double() - other).detach().norm()
        assert float(error) <= CLOSE[dtype] * float(other.detach().norm())


@EACH
def test_strided_and_empty_inputs(problem: Problem) -> None:
    x, *weights = problem.arguments(Sizes(), torch.float32)
    spread = torch.stack([x, x], -1)[..., 0]
    for mine, theirs in zip(
        outputs(problem.op(spread, *weights)), outputs(problem.op(x, *weights)), strict=True
    ):
        assert torch.equal(mine, theirs)
    empty = x[:, :0] if problem.dims == 3 else x[:0]
    assert all(t.numel() == 0 for t in outputs(problem.op(empty, *weights)))
