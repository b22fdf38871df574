"""Arguments in the type of `torch.autocast`.

On a CPU the casts of weights that do not train are kept beside them: a new one at each call would
also be packed at each call (`grouped`). Autocast itself keeps those of weights that train.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import _get_current_dispatch_mode

from esper_kernels.precision import FLOATING
from esper_kernels.prepacked import Prepacked, keeps


def cast(argument: object, dtype: torch.dtype, *, keep: bool = False) -> object:
    """What an operator gets; what is no floating tensor, or is double, stays as it is.

    Args:
        keep: whether it may be a weight, which comes again.
    """
    if (
        not isinstance(argument, Tensor)
        or argument.dtype not in FLOATING
        or argument.dtype == dtype
    ):
        return argument
    return _kept(dtype)(argument) if keep and _stays(argument) else argument.to(dtype)


def _stays(argument: Tensor) -> bool:
    """Whether it is a weight with memory of its own, and nobody traces what becomes of it."""
    return (
        argument.ndim == 2
        and argument.device.type == "cpu"
        and type(argument) in (Tensor, Parameter)
        and keeps(argument)
        and _get_current_dispatch_mode() is None
    )


@cache
def _kept(dtype: torch.dtype) -> Prepacked[Tensor]:
    def build(weight: Tensor) -> Tensor:
        # A tensor made in inference mode counts no writes, and would not be packed.
        with torch.inference_mode(False):
            return weight.to(dtype)

    return Prepacked(build)
