"""A kernel with its grid and arguments: built first, then run, or compiled ahead of time."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from esper_kernels.config import Config

Result = TypeVar("Result")

GROUP = 8  # rows of tiles that programs at one time cover, see `gpu.tiles.swizzle`


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        kernel: the function under `triton.jit` or `gluon.jit`.
        grid: programs along each axis.
        arguments: by name: tensors, integers, None, and constants of the compiler.
        warps, stages: see `config.Config`.
        options: further options of the compiler.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    warps: int
    stages: int
    options: dict[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        """Start it on the current stream."""
        self.kernel[self.grid](
            **self.arguments, num_warps=self.warps, num_stages=self.stages, **self.options
        )


def finish(built: tuple[Result, list[Launch]]) -> Result:
    """Run launches, one after the other on their tensors' device, and hand over what they fill."""
    result, launches = built
    for launch in launches:
        device = next(a.device for a in launch.arguments.values() if isinstance(a, Tensor))
        # Triton launches on the current device; on a CPU, under the interpreter, there is none.
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            launch.run()
    return result


def precision(dtype: torch.dtype) -> str:
    """How float32 factors are multiplied, as PyTorch is told to for its own products."""
    exact = torch.get_float32_matmul_precision() == "highest"
    return "ieee" if dtype != torch.float32 or exact else "tf32"


def check_dtype(dtype: torch.dtype) -> None:
    """Raises ValueError for float64, which the CPU has and these kernels have not."""
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"{dtype} has no kernel on CUDA; float32, float16 and bfloat16 have")


def sizes(config: Config, dtype: torch.dtype) -> dict[str, Any]:
    """The constants that every product's kernel has."""
    return {
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "PRECISION": precision(dtype),
        "GROUP": GROUP,
    }


def tiles(size: int, block: int) -> int:
    """Tiles of `block` that cover `size`."""
    return -(-size // block)


def grouped_tiles(size: int, group: int, block: int) -> int:
    """Tiles that cover `size` without crossing from one group to the next."""
    return tiles(size, group) * tiles(group, block)
