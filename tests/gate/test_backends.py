"""Every backend runs the same models with the same results, or says what is missing."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.errors import BackendError, GateError
from esper.gate.backends import NAMES, backend, usable
from esper.gate.backends.base import Call, Context, dynamic_arguments, dynamic_shapes
from esper.gate.calls_file import load_calls, save_calls
from esper.gate.fidelity import check_fidelity, relative_distance
from esper.gate.inputs import normalise
from esper.gate.steps import InferenceStep, TrainingStep, WallClock
from esper.gate.transport import load_model, preload, save_model, with_fresh_memory
from tests.gate.support import Two, two_call

CONTEXT = Context("inference", 1, "cpu")


def traced() -> nn.Module:
    args, kwargs = two_call(2)
    return esper.trace(Two().eval(), args, kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_match_eager_for_several_shapes(name: str, tmp_path: Path) -> None:
    calls = [two_call(2), two_call(5)]
    model = traced()
    found = backend(name)
    assert usable(name, CONTEXT) is None
    found.prepare(model, calls, tmp_path, CONTEXT)
    runner = found.load(tmp_path, calls, CONTEXT)
    assert check_fidelity(name, model, runner, calls) < 1e-5
    step = InferenceStep(runner, calls, WallClock())
    step.remember()
    assert step.time(1, 3) > 0
    step.verify(name)
    assert found.versions()


# Inductor imports a part of torch that torch itself has deprecated.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("name", ["eager", "inductor"])
def test_training_steps_update_parameters(name: str, tmp_path: Path) -> None:
    context = Context("training", 1, "cpu")
    calls = [two_call(4)]
    found = backend(name)
    found.prepare(traced(), calls, tmp_path, context)
    module = found.load(tmp_path, calls, context)
    assert isinstance(module, nn.Module)
    assert module.training
    before = [p.detach().clone() for p in module.parameters()]
    step = TrainingStep(module, calls, WallClock())
    step.remember()
    step.settle(0)
    assert step.time(0, 2) > 0
    step.verify(name)
    assert any(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_missing_package_is_said_with_the_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == name else real(n, *a)
    )
    reason = usable(name, CONTEXT)
    assert reason is not None
    assert re.search(rf"{name} needs {name}: pip install {name}", reason)


def test_a_missing_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def none() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    reason = usable("inductor", CONTEXT)
    assert reason is not None
    assert "needs a C++ compiler" in reason


def test_objectives_and_devices_that_cannot_be_are_said() -> None:
    assert "cannot run a training step" in str(usable("openvino", Context("training")))
    assert "cannot run on cuda" in str(usable("openvino", Context("inference", 1, "cuda")))
    with pytest.raises(BackendError, match="choose one of eager"):
        backend("tvm")


class Unexportable(nn.Module):
    """Values decide the path, which no exporter follows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` of any shape."""
        return x + 1 if bool(x.sum() > 0) else x - 1


@pytest.mark.parametrize("name", ["inductor", "onnxruntime", "openvino"])
def test_a_model_that_cannot_be_converted_is_a_backend_error(name: str, tmp_path: Path) -> None:
    calls: list[Call] = [((torch.ones(3),), {})]
    with pytest.raises(BackendError, match="cannot"):
        backend(name).prepare(Unexportable(), calls, tmp_path, CONTEXT)


def test_a_wrong_conversion_is_refused() -> None:
    model = nn.Linear(3, 3)
    calls: list[Call] = [((torch.randn(2, 3),), {})]
    with pytest.raises(BackendError, match="differs from PyTorch"):
        check_fidelity("x", model, lambda t: model(t) * 1.1, calls)
    with pytest.raises(BackendError, match="differs from PyTorch"):
        check_fidelity("x", model, lambda t: model(t) * float("nan"), calls)
    with pytest.raises(BackendError, match="returns 2 outputs"):
        check_fidelity("x", model, lambda t: (t, t), calls)
    with pytest.raises(BackendError, match="cannot run the model on input 0: ValueError: no"):
        check_fidelity("x", model, _fails, calls)
    assert relative_distance(torch.ones(2), torch.ones(3)) == float("inf")


def _fails(_: torch.Tensor) -> torch.Tensor:
    raise ValueError("no")


def test_only_dimensions_that_vary_are_dynamic() -> None:
    calls = [two_call(2), two_call(5)]
    auto = torch.export.Dim.AUTO
    assert dynamic_shapes(calls) == (({0: auto},), {"scale": {0: auto}})
    assert dynamic_shapes(calls[:1]) == (({},), {"scale": {}})
    assert dynamic_arguments(Two(), calls) == {}
    wide: list[Call] = [((torch.ones(2, n),), {"scale": torch.ones(2, 1)}) for n in (3, 4)]
    assert dynamic_arguments(Two(), wide) == {"x": [1]}


def test_models_travel_and_every_load_has_memory_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "m.esper"
    model = traced()
    args, kwargs = two_call(3)
    save_model(model, [(args, kwargs)], path)
    preload(path)
    one, two = load_model(path), load_model(path)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert a.data_ptr() != b.data_ptr()
        assert a.requires_grad
    torch.testing.assert_close(one(*args, **kwargs), model(*args, **kwargs))
    torch.testing.assert_close(two(*args, **kwargs), model(*args, **kwargs))


def test_fresh_memory_keeps_ties_and_leaves_the_original_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    first, second = model[0], model[1]
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    second.weight = first.weight
    copy = with_fresh_memory(model)
    assert len(list(copy.parameters())) == len(list(model.parameters()))
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert not torch.equal(first.weight, torch.zeros(3, 3))


def test_inputs_travel_without_pickle(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    call: Call = (
        (shared, [shared.t(), (1, None)], {"a": 2.5}),
        {"flag": True, "name": "x", "empty": torch.zeros(0, dtype=torch.int64)},
    )
    save_calls([call], tmp_path / "x")
    ((args, kwargs),) = load_calls(tmp_path / "x")
    assert torch.equal(args[0], shared)
    assert torch.equal(args[1][0], shared.t())
    assert args[1][1] == (1, None)
    assert args[2] == {"a": 2.5}
    assert kwargs["flag"] is True
    assert kwargs["empty"].dtype == torch.int64
    with pytest.raises(GateError, match="an input is a set"):
        save_calls([((shared, {1, 2}), {})], tmp_path / "y")


X = torch.ones(2, 4)


def test_input_forms() -> None:
    assert normalise(((X,), {}))[1] == [1.0]
    assert normalise([((X,), None)])[0][0][1] == {}
    calls, weights = normalise([(2, (X,), {}), (0.5, [X], {"k": 1})])
    assert weights == [2.0, 0.5]
    assert calls[1] == ((X,), {"k": 1})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "inputs must be"),
        ([], "inputs must be"),
        ("text", "inputs must be"),
        ([X], "input 0 is neither"),
        ([(0.0, (X,), {})], "must be positive"),
        ([(float("nan"), (X,), {})], "must be positive"),
        ([((1,), {})], "hold no tensor"),
        ([((X,), {}), ((X, X), {})], "differ in the number"),
    ],
)
def test_bad_inputs(given: Any, message: str) -> None:
    with pytest.raises(GateError, match=message):
        normalise(given)
