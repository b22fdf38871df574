"""The zoo itself: every model exports with a dynamic batch, repeats exactly, runs in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.export import Dim, export

from tests.models import BATCH, MODELS, Built


def first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def run(built: Built) -> Tensor:
    module, args, kwargs = built
    with torch.no_grad():
        return first(module(*args, **kwargs))


@pytest.mark.parametrize("name", MODELS)
def test_builder_is_deterministic_and_leaves_the_generator_alone(name: str) -> None:
    state = torch.get_rng_state()
    one, two = MODELS[name](), MODELS[name]()
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(run(one), run(two))
    assert not one[0].training


@pytest.mark.parametrize("name", MODELS)
def test_float64_agrees_with_float32(name: str) -> None:
    single, double = MODELS[name](), MODELS[name](dtype=torch.float64)
    for parameter in double[0].parameters():
        assert parameter.dtype == torch.float64
    inputs32 = [*single[1], *single[2].values()]
    inputs64 = [*double[1], *double[2].values()]
    for a, b in zip(inputs32, inputs64, strict=True):
        if not a.is_floating_point():
            assert torch.equal(a, b)
    module, args, kwargs = double
    args = tuple(a.to(b.dtype) for a, b in zip(single[1], args, strict=True))
    kwargs = {key: single[2][key].to(value.dtype) for key, value in kwargs.items()}
    assert run((module, args, kwargs)).dtype == torch.float64
    torch.testing.assert_close(
        run((module, args, kwargs)),
        run(single),
        check_dtype=False,
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.parametrize("name", MODELS)
def test_vectors_are_not_neutral(name: str) -> None:
    for key, parameter in MODELS[name]()[0].named_parameters():
        if parameter.ndim == 1:
            assert not torch.all(parameter == parameter[0]), key


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", MODELS)
def test_exports_with_dynamic_batch(name: str, mode: str) -> None:
    module, args, kwargs = MODELS[name]()
    expected = run((module, args, kwargs))
    module.train(mode == "train")
    batch = Dim("batch")
    shapes = {"x": {0: batch}} if args else {key: {0: batch} for key in kwargs}
    program = export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
    if mode == "train":
        return
    more_args = tuple(torch.cat([a, a]) for a in args)
    more_kwargs = {key: torch.cat([value, value]) for key, value in kwargs.items()}
    with torch.no_grad():
        output = first(program.module()(*more_args, **more_kwargs))
    torch.testing.assert_close(output[:BATCH], expected)
    torch.testing.assert_close(output[BATCH:], expected)
