"""Every kernel in every configuration that the package ships, to be compiled ahead of time.

Sizes are of a layer of 4096 by 4096, which stands for all whose sizes 16 divides; tensors are on
the meta device, so nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from esper_kernels.aot import REGISTERS, SHARED_MEMORY, Figures
from esper_kernels.config import Config
from esper_kernels.gpu import (
    configs,
    gated,
    linear,
    low_rank,
    masked_gradient,
    projections,
    sparse24,
    transposed,
)
from esper_kernels.gpu.running import Launch

SIZE, HIDDEN, TOKENS = 4096, 12288, 4096  # inputs and outputs; of a gated MLP; in training
GROUP, RUN, KEPT = 128, 16, 1024  # outputs of a group, inputs of a run, inputs kept
RANK, PROCESSORS = 512, 132
HEADS, KV_HEADS, HEAD_SIZE = 32, 8, 128


@dataclass(frozen=True)
class Case:
    """One kernel in one configuration.

    Attributes:
        op: name of the op, or of its derivative.
        dtype: of what is no weight.
        pattern: what the weight is.
        config: how the kernel is cut.
        precision: how float32 factors are multiplied, as `torch.set_float32_matmul_precision` says.
        build: the result and its launches; several where a second kernel adds up parts.
    """

    op: str
    dtype: torch.dtype
    pattern: str
    config: Config
    precision: str
    build: Callable[[], tuple[Any, list[Launch]]]

    @property
    def numbers(self) -> str:
        """The dtype, and tf32 where float32 factors are rounded to it."""
        name = str(self.dtype).removeprefix("torch.")
        return name + " tf32" * (self.dtype == torch.float32 and self.precision != "highest")

    @property
    def name(self) -> str:
        """A text that no other case has."""
        c = self.config
        cut = f"{c.block_m}x{c.block_n}x{c.block_k} warps {c.warps} stages {c.stages}"
        cut += f" split {c.split}" * (c.split > 1) + " swap" * c.swap
        return f"{self.op}, {self.numbers}, {self.pattern}, {cut}"

    def launches(self) -> list[Launch]:
        """The launches, built in that precision."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision)
        try:
            return self.build()[1]
        finally:
            torch.set_float32_matmul_precision(before)


def cases() -> Iterator[Case]:
    """All of them."""
    kinds = [
        _Kind(torch.bfloat16, runs=(8, RUN, 64)),
        _Kind(torch.float16),
        _Kind(torch.float32),
        _Kind(torch.float32, precision="high"),
    ]
    for kind in kinds:
        for op in (_vnm_linear, _int8, _gated, _low_rank, _projections, _sparse24):
            yield from op(kind)


@dataclass(frozen=True)
class _Kind:
    """What the cases of all ops are made for."""

    dtype: torch.dtype
    runs: tuple[int, ...] = (RUN,)
    precision: str = "highest"

    def new(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(*shape, dtype=dtype or self.dtype, device="meta")

    def index(self, outputs: int, run: int) -> Tensor:
        return self.new(outputs // GROUP, KEPT // run, dtype=torch.int32)

    def scale(self, outputs: int) -> Tensor:
        return self.new(outputs, dtype=torch.float32)

    def configs(self, wide: tuple[Config, ...], narrow: tuple[Config, ...]) -> tuple[Config, ...]:
        return configs.by_width(self.dtype, wide, narrow)

    def case(
        self, op: str, pattern: str, config: Config, launches: Callable[..., Any], *arguments: Any
    ) -> Case:
        def build() -> tuple[Any, list[Launch]]:
            built: tuple[Any, list[Launch]] = launches(*arguments, config)
            return built

        return Case(op, self.dtype, pattern, config, self.precision, build)


def _vnm_linear(kind: _Kind) -> Iterator[Case]:
    weight, x, grad = kind.new(SIZE, KEPT), kind.new(TOKENS, SIZE), kind.new(TOKENS, SIZE)
    for run in kind.runs:
        pattern, index = f"{GROUP}x{run}", kind.index(SIZE, run)
        for c in kind.configs(configs.LINEAR_32, configs.LINEAR_16):
            few = kind.new(c.block_m, SIZE)
            yield kind.case(
                "vnm_linear",
                pattern,
                c,
                linear.launches,
                few,
                weight,
                index,
                None,
                None,
                GROUP,
                run,
            )
        for c in kind.configs(configs.TRANSPOSED_32, configs.TRANSPOSED_16):
            arguments = (grad, weight, index, None, GROUP, run, SIZE)
            yield kind.case("vnm_linear_backward_x", pattern, c, transposed.launches, *arguments)
        for c in kind.configs(configs.GRADIENT_32, configs.GRADIENT_16):
            op = "vnm_linear_backward_values"
            yield kind.case(op, pattern, c, masked_gradient.launches, grad, x, index, GROUP, run)


def _int8(kind: _Kind) -> Iterator[Case]:
    weights = {
        "int8": (kind.new(SIZE, SIZE, dtype=torch.int8), None, None),
        f"{GROUP}x{RUN} int8": (
            kind.new(SIZE, KEPT, dtype=torch.int8),
            kind.index(SIZE, RUN),
            GROUP,
        ),
    }
    grad, scale = kind.new(TOKENS, SIZE), kind.scale(SIZE)
    for pattern, (weight, index, rows) in weights.items():
        op = "int8_linear" if index is None else "vnm_int8_linear"
        for c in kind.configs(configs.LINEAR_8_32, configs.LINEAR_8):
            few = kind.new(c.block_m, SIZE)
            yield kind.case(
                op, pattern, c, linear.launches, few, weight, index, scale, None, rows, RUN
            )
        for c in kind.configs(configs.TRANSPOSED_32, configs.TRANSPOSED_16):
            arguments = (grad, weight, index, scale, rows, RUN, SIZE)
            yield kind.case(f"{op}_backward_x", pattern, c, transposed.launches, *arguments)


def _gated(kind: _Kind) -> Iterator[Case]:
    for dtype, suffix, tables in (
        (kind.dtype, "", (configs.GATED_32, configs.GATED_16)),
        (torch.int8, " int8", (configs.GATED_8_32, configs.GATED_8)),
    ):
        scales = [kind.scale(HIDDEN) if dtype == torch.int8 else None] * 2
        for pattern, width, rows in (("dense", SIZE, None), (f"{GROUP}x{RUN}", KEPT, GROUP)):
            weight = kind.new(HIDDEN, width, dtype=dtype)
            indices = [kind.index(HIDDEN, RUN) if rows else None for _ in range(2)]
            for c in kind.configs(*tables):
                few = kind.new(c.block_m, SIZE)
                arguments = (few, weight, weight, *scales, *indices, "silu", rows, RUN)
                yield kind.case("gated_linear", pattern + suffix, c, gated.launches, *arguments)


def _low_rank(kind: _Kind) -> Iterator[Case]:
    down, up = kind.new(RANK, SIZE), kind.new(SIZE, RANK)
    for c in kind.configs(configs.LOW_RANK_32, configs.LOW_RANK_16):
        arguments = (kind.new(c.block_m, SIZE), down, up, None, PROCESSORS)
        yield kind.case("low_rank_linear", f"rank {RANK}", c, low_rank.launches, *arguments)


def _projections(kind: _Kind) -> Iterator[Case]:
    weight = kind.new((HEADS + 2 * KV_HEADS) * HEAD_SIZE, SIZE)
    pattern = f"{HEADS} + 2 x {KV_HEADS} heads"
    for c in kind.configs(configs.PROJECTIONS_32, configs.PROJECTIONS_16):
        arguments = (kind.new(1, c.block_m, SIZE), weight, None, HEADS, KV_HEADS, HEAD_SIZE)
        yield kind.case("attention_projections", pattern, c, projections.launches, *arguments)


def _sparse24(kind: _Kind) -> Iterator[Case]:
    values = kind.new(SIZE // 16, SIZE // 32, 32, 8)
    metadata = kind.new(SIZE // 16, SIZE // 64, 32, dtype=torch.int32)
    for c in kind.configs((), configs.SPARSE_24):
        arguments = (kind.new(c.block_m, SIZE), values, metadata, None, SIZE)
        yield kind.case("sparse24_linear", "2:4", c, sparse24.launches, *arguments)


# -- what is meant ---------------------------------------------------------------------------------


def complaints(case: Case, kernel: str, capability: int, figures: Figures) -> list[str]:
    """What is wrong with a compiled kernel; nothing if all is as meant."""
    has, found = figures.instructions, []
    if figures.stack or "local" in has:
        found.append(f"{figures.stack} bytes of a thread are not in registers")
    if figures.registers > REGISTERS:
        found.append(f"{figures.registers} registers are more than {REGISTERS}")
    if figures.shared > SHARED_MEMORY[capability]:
        found.append(f"{figures.shared} bytes of shared memory are too many")
    if kernel == "add_parts_kernel":
        return found
    wide = "load 16" if case.op == "sparse24_linear" else "cp.async 16"
    wanted = [wide, *_tensor_cores(case, capability)]
    unwanted = {"load 1", "load 2", "cp.async narrow"}
    if _may_be_narrow(case):
        unwanted.remove("cp.async narrow")
        wanted.remove(wide)
    found += [f"there is no {kind}" for kind in wanted if kind not in has]
    return found + [f"there is {kind}" for kind in sorted(unwanted & has.keys())]


def _may_be_narrow(case: Case) -> bool:
    """Whether copies of 4 bytes will do: for int8 beside float32, and in training for weights that
    are turned around as they are copied, which is so for int8 and which wgmma wants of TF32.
    """
    int8 = "int8" in case.pattern
    if "_backward_" in case.op:
        return int8 or case.numbers == "float32 tf32"
    return int8 and case.dtype == torch.float32


def _tensor_cores(case: Case, capability: int) -> tuple[str, ...]:
    """The instruction that a kernel is meant to multiply with; none for exact float32."""
    if case.op == "sparse24_linear":
        return ("sparse mma",)
    if case.numbers == "float32":
        return ()
    high = case.config.block_n if case.config.swap else case.config.block_m
    return ("wgmma",) if capability >= 90 and high >= 64 else ("mma",)
