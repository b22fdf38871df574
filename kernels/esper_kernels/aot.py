"""Compiling launches for devices that are not here, and what the compiler made of them."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from esper_kernels.gpu.running import Launch

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may have: CUDA C++ guide, table 24
REGISTERS = 255  # of a thread, likewise
CAPABILITIES = tuple(SHARED_MEMORY)

_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int8: "*i8",
    torch.int32: "*i32",
}

# Instructions of SASS by what they tell; the first that fits counts.
_KINDS = {
    "wgmma": r"\bHGMMA\.",
    "sparse mma": r"\b[HI]MMA\.SP\.",
    "mma": r"\b[HI]MMA\.",
    "cp.async 16": r"\bLDGSTS\.E[.\w]*\.128\b",
    "cp.async narrow": r"\bLDGSTS\.",
    "load 16": r"\bLDG\.E[.\w]*\.128\b",
    "load 2": r"\bLDG\.E[.\w]*\.[US]16\b",
    "load 1": r"\bLDG\.E[.\w]*\.[US]8\b",
    "load": r"\bLDG\.",
    "store 16": r"\bSTG\.E[.\w]*\.128\b",
    "store": r"\bSTG\.",
    "local": r"\b(?:LDL|STL)\b",
}


@dataclass(frozen=True)
class Figures:
    """What a compiled kernel takes and has.

    Attributes:
        registers: of a thread.
        stack: bytes of a thread that did not fit into registers, or were indexed.
        shared: bytes of a block.
        instructions: how many there are of each kind, of those there are.
    """

    registers: int
    stack: int
    shared: int
    instructions: dict[str, int]

    @property
    def text(self) -> str:
        """The instructions on one line."""
        return ", ".join(f"{number} {kind}" for kind, number in sorted(self.instructions.items()))


def specialise(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[Any, Any]]:
    """(types, constants, attributes) as Triton's own launcher would derive them.

    Integers of value 1 and None become constants; pointers and integers that 16 divides are marked
    so, without which no load would be wide. Tensors on the meta device count as aligned.
    """
    types, constants, attributes = {}, {}, {}
    declared = {p.name: p.is_constexpr for p in launch.kernel.params}
    for place, (name, constant) in enumerate(declared.items()):
        value = launch.arguments[name]
        if constant or value is None or (isinstance(value, int) and value == 1):
            types[name], constants[name] = "constexpr", value
            continue
        if isinstance(value, Tensor):
            types[name] = _POINTERS[value.dtype]
            aligned = value.is_meta or value.data_ptr() % 16 == 0
        else:
            types[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0
        if aligned:
            attributes[(place,)] = [["tt.divisibility", 16]]
    return types, constants, attributes


def compiled(launch: Launch, capability: int) -> Any:
    """Triton's compiled kernel of a launch for a compute capability such as 80 or 90."""
    types, constants, attributes = specialise(launch)
    source = _source(launch.kernel)(
        fn=launch.kernel, signature=types, constexprs=constants, attrs=attributes
    )
    options = {"num_warps": launch.warps, "num_stages": launch.stages, **launch.options}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def _source(kernel: Any) -> Any:
    if kernel.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource

        return GluonASTSource
    return ASTSource


def figures(launch: Launch, capability: int) -> Figures:
    """Compile a launch and take its figures from the machine code."""
    kernel = compiled(launch, capability)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _cuobjdump("--dump-resource-usage", file.name)
        code = _cuobjdump("-sass", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump told no registers: {usage!r}")
    return Figures(int(found[1]), int(found[2]), kernel.metadata.shared, count(code))


def count(code: str) -> dict[str, int]:
    """Instructions of each kind in SASS."""
    counts: dict[str, int] = {}
    for line in code.splitlines():
        for kind, pattern in _KINDS.items():
            if re.search(pattern, line):
                counts[kind] = counts.get(kind, 0) + 1
                break
    return counts


def _cuobjdump(*arguments: str) -> str:
    """What Triton's own cuobjdump prints."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, check=True)
    return done.stdout
