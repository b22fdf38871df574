"""The op on a GPU: few tokens on `mma.sp`, see `gpu.sparse24`; many by `cusparselt`.

Where PyTorch comes without cuSPARSELt, or it does not take a weight's sizes, many tokens go to
`mma.sp` as well, in tiles.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from esper_kernels.config import Config, Problem
from esper_kernels.gpu import configs, sparse24
from esper_kernels.gpu.running import finish
from esper_kernels.launch import choose
from esper_kernels.sparse24_linear import cusparselt
from esper_kernels.sparse24_linear.cpu import backward_values, backward_x

__all__ = ["backward_values", "backward_x", "decode", "forward"]

DECODE = 64  # tokens up to which memory is the limit of 2:4 in 16 bits: a third of the ridge


def problem(x: Tensor, outputs: int) -> Problem:
    """What the config of `decode` is chosen by."""
    return Problem("sparse24_linear", len(x), outputs, x.shape[1], x.dtype, "2:4")


def forward(
    x: Tensor, values: Tensor, metadata: Tensor, bias: Tensor | None, inputs: int, outputs: int
) -> Tensor:
    """(M, inputs) to (M, outputs), see `reference.forward`."""
    if len(x) > DECODE and cusparselt.fits(x, inputs, outputs):
        return cusparselt.forward(x, values, metadata, bias, inputs, outputs)
    return decode(x, values, metadata, bias, outputs)


def decode(
    x: Tensor,
    values: Tensor,
    metadata: Tensor,
    bias: Tensor | None,
    outputs: int,
    config: Config | None = None,
) -> Tensor:
    """(M, inputs) to (M, outputs) on mma.sp, whatever the number of tokens."""
    config = config or choose(problem(x, outputs), configs.SPARSE_24, x.device)
    even = functional.pad(x, (0, x.shape[1] % 2))  # the kernel reads two inputs at a time
    return finish(sparse24.launches(even, values, metadata, bias, outputs, config))
