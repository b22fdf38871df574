"""The 2:4 kernel's PTX, run by an emulator: the interpreter cannot run inline assembly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from esper_kernels.config import Config
from esper_kernels.sparse24 import Sparse24
from tests.kernels.ptx import Machine
from tests.kernels.weights import two_of_four

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset")

CASES = [
    # tokens, outputs, inputs, config: a single pair of blocks, odd sizes, several programs
    (8, 32, 64, Config(8, 32, 64, warps=2, stages=1)),
    (3, 40, 100, Config(8, 16, 64, warps=4, stages=1)),
    (20, 50, 330, Config(16, 32, 64, warps=2, stages=1)),
]


def words(tensor: Tensor) -> Any:
    """The bits of a tensor, as an array that shares nothing with it."""
    kind = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return tensor.view(kind).numpy().copy()


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "outputs", "inputs", "config"), CASES)
def test_the_compiled_kernel_multiplies(
    tokens: int, outputs: int, inputs: int, config: Config, dtype: torch.dtype, capability: int
) -> None:
    from esper_kernels import aot
    from esper_kernels.gpu import sparse24

    weight, x = two_of_four(outputs, inputs, dtype), torch.randn(tokens, inputs).to(dtype)
    bias, packed = torch.randn(outputs).to(dtype), Sparse24.pack(weight)
    out, (launch,) = sparse24.launches(x, packed.values, packed.metadata, bias, outputs, config)
    machine = Machine(aot.compiled(launch, capability).asm["ptx"], 32 * config.warps)
    _, constants, _ = aot.specialise(launch)
    arguments = {
        name: words(value) if isinstance(value, Tensor) else value
        for name, value in launch.arguments.items()
        if name not in constants
    }
    arguments["out"][:] = -1  # NaN, where nothing is written
    machine.run(launch.grid, list(arguments.values()))
    found = torch.from_numpy(arguments["out"]).view(dtype)
    expected = (x.double() @ weight.double().T + bias.double()).to(dtype)
    torch.testing.assert_close(found, expected)
    assert out.shape == found.shape
