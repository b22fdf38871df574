"""A machine for the few instructions of PTX that a kernel without loops over branches needs.

All threads of a block go through an instruction together, so barriers need nothing, and a branch
that threads take differently is refused. Registers hold raw bits. What is unknown raises
NotImplementedError with the instruction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.kernels.mma_sp import mma_sp

Array = npt.NDArray[Any]

_TYPES = {
    "b16": "u2", "u16": "u2", "s16": "i2", "b32": "u4", "u32": "u4", "s32": "i4",
    "b64": "u8", "u64": "u8", "s64": "i8", "f32": "f4", "f16": "f2",
}  # fmt: skip
_COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "eq": np.equal, "ne": np.not_equal,
}  # fmt: skip
_BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor, "min": np.minimum, "max": np.maximum,
}  # fmt: skip


def bfloat16(bits: Array) -> npt.NDArray[np.float32]:
    """The number that 16 bits stand for."""
    numbers: npt.NDArray[np.float32] = (bits.astype("u4") << 16).view("f4")
    return numbers


def float16(bits: Array) -> npt.NDArray[np.float32]:
    """The number that 16 bits stand for."""
    return bits.view("f2").astype("f4")


def to_bfloat16(numbers: npt.NDArray[np.float32]) -> Array:
    """Bits of the nearest bfloat16, ties to even."""
    bits = numbers.view("u4")
    rounded: Array = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype("u2")


def _instruction(line: str) -> tuple[str | None, list[str], list[str]]:
    """(guard, parts of the name, operands) of a line."""
    match = re.fullmatch(r"(?:@(!?%p\d+) )?(\S+)(?: (.*))?", line)
    assert match is not None, line
    operands = re.split(r",(?![^{]*\})", match[3] or "")
    return match[1], match[2].split("."), [operand.strip() for operand in operands]


class Machine:
    """A kernel in PTX.

    Args:
        ptx: a module with one kernel.
        threads: of a block.
    """

    def __init__(self, ptx: str, threads: int) -> None:
        body = ptx[ptx.index(".entry") :]
        self.threads = threads
        self.parameters = re.findall(r"\.param\s+\.(\w+)[^,)]*?(\w+_param_\d+)", body)
        self.code: list[tuple[str | None, list[str], list[str]]] = []
        self.labels: dict[str, int] = {}
        for raw in body[body.index("{") + 1 :].splitlines():
            line = " ".join(raw.partition("//")[0].split()).rstrip(";")
            if label := re.fullmatch(r"(\$\w+):", line):
                self.labels[label[1]] = len(self.code)
            elif line and line[0] not in ".{}":  # the rest are directives
                self.code.append(_instruction(line))

    def run(self, grid: Sequence[int], arguments: Sequence[Array | int]) -> None:
        """Run a grid's blocks in turn. Arrays are memory that the kernel may write."""
        self.memory = np.zeros(64, "u1")  # nothing at address 0
        values: list[int] = []
        arrays: list[tuple[int, Array]] = []
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                at = -(-len(self.memory) // 64) * 64
                self.memory = np.concatenate(
                    [
                        self.memory,
                        np.zeros(at - len(self.memory), "u1"),
                        argument.ravel().view("u1"),
                    ]
                )
                arrays.append((at, argument))
                values.append(at)
            else:
                values.append(argument)
        # Triton adds two of its own, of which this kernel reads nothing.
        values += [0] * (len(self.parameters) - len(values))
        self.constants = {name: v for (_, name), v in zip(self.parameters, values, strict=True)}
        for y in range(grid[1]):
            for x in range(grid[0]):
                self._block(x, y)
        for at, array in arrays:
            array.ravel().view("u1")[:] = self.memory[at : at + array.nbytes]

    def _block(self, x: int, y: int) -> None:
        self.registers: dict[str, Array] = {}
        self.special = {
            "%tid.x": np.arange(self.threads, dtype="u8"),
            "%ctaid.x": np.full(self.threads, x, "u8"),
            "%ctaid.y": np.full(self.threads, y, "u8"),
        }
        self.shared = np.zeros(1 << 17, "u1")
        at = 0
        while True:
            guard, name, operands = self.code[at]
            active = np.ones(self.threads, bool)
            if guard is not None:
                active = self.registers[guard.lstrip("!")] ^ guard.startswith("!")
            at += 1
            if name[0] == "ret":
                return
            if name[0] == "bra":
                if active.any() != active.all():
                    raise NotImplementedError("threads part at a branch")
                if active.any():
                    at = self.labels[operands[0]]
            elif name[0] not in ("bar", "barrier"):
                self._do(name, operands, active)

    # -- operands ----------------------------------------------------------------------------------

    def _read(self, operand: str, kind: str) -> Array:
        """An operand as an array of a type, one for each thread."""
        if operand.startswith("%p"):
            return self.registers[operand]
        if operand.startswith("%"):
            found = self.special.get(operand)
            raw = self.registers[operand] if found is None else found
        elif operand.startswith("0f"):
            raw = np.full(self.threads, int("0x" + operand[2:], 0), "u8")
        elif operand == "global_smem":
            raw = np.zeros(self.threads, "u8")
        else:
            raw = np.full(self.threads, int(operand, 0) & (2**64 - 1), "u8")
        dtype = np.dtype(_TYPES[kind])
        return raw.astype(f"u{dtype.itemsize}").view(dtype)

    def _write(self, operand: str, value: Array, active: Array) -> None:
        if operand.startswith("%p"):
            before = self.registers.get(operand, np.zeros(self.threads, bool))
            self.registers[operand] = np.where(active, value.astype(bool), before)
            return
        raw = value.view(f"u{value.dtype.itemsize}").astype("u8")
        before = self.registers.get(operand, np.zeros(self.threads, "u8"))
        self.registers[operand] = np.where(active, raw, before)

    def _place(self, operand: str) -> tuple[Array, str]:
        """Addresses of [base + offset], and the base."""
        match = re.fullmatch(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\d+))?\s*\]", operand)
        assert match is not None, operand
        return self._read(match[1], "s64") + int(match[2] or 0), match[1]

    @staticmethod
    def _vector(operand: str) -> list[str]:
        return [o.strip() for o in operand.strip("{} ").split(",")]

    # -- instructions ------------------------------------------------------------------------------

    def _do(self, name: list[str], operands: list[str], active: Array) -> None:
        kind = name[-1]
        match name[0]:
            case "ld" | "st":
                self._memory(name, operands, active)
            case "mma":
                self._mma(name, operands, active)
            case "mov" if operands[0].startswith("{"):
                word = self._read(operands[1], "b32")
                for place, half in enumerate(self._vector(operands[0])):
                    self._write(half, (word >> (16 * place)).astype("u2"), active)
            case "mov" if operands[1].startswith("{"):
                low, high = (self._read(o, "u16") for o in self._vector(operands[1]))
                self._write(operands[0], low.astype("u4") | high.astype("u4") << 16, active)
            case "mov" if kind == "pred":
                value = operands[1]
                known = {"-1": True, "1": True, "0": False}
                pred = (
                    np.full(self.threads, known[value]) if value in known else self._read(value, "")
                )
                self._write(operands[0], pred, active)
            case "mov":
                self._write(operands[0], self._read(operands[1], kind), active)
            case "and" | "or" | "xor" if kind == "pred":
                a, b = (self._read(o, "") for o in operands[1:])
                self._write(operands[0], _BINARY[name[0]](a, b), active)
            case "add" | "sub" | "mul" | "and" | "or" | "xor" | "min" | "max" if "wide" not in name:
                a, b = (self._read(o, kind) for o in operands[1:])
                self._write(operands[0], _BINARY[name[0]](a, b), active)
            case "mul" | "mad":
                wide = f"{kind[0]}64" if "wide" in name else kind
                a, b = (self._read(o, kind).astype(_TYPES[wide]) for o in operands[1:3])
                c = self._read(operands[3], wide) if name[0] == "mad" else np.zeros_like(a)
                self._write(operands[0], a * b + c, active)
            case "shl" | "shr":
                a, by = self._read(operands[1], kind), self._read(operands[2], "u32")
                shift = np.left_shift if name[0] == "shl" else np.right_shift
                self._write(operands[0], shift(a, by.astype(a.dtype)), active)
            case "neg" | "not":
                a = self._read(operands[1], kind)
                self._write(operands[0], -a if name[0] == "neg" else ~a, active)
            case "bfe":
                a, first, length = (self._read(o, "u32") for o in operands[1:])
                high = a << (32 - first - length)  # the field's highest bit is its sign, if any
                field = high.view(_TYPES[kind]) >> (32 - length).astype(_TYPES[kind])
                self._write(operands[0], field, active)
            case "setp":
                a, b = (self._read(o, kind) for o in operands[1:])
                self._write(operands[0], _COMPARISONS[name[1]](a, b), active)
            case "selp":
                a, b = (self._read(o, kind) for o in operands[1:3])
                self._write(operands[0], np.where(self._read(operands[3], ""), a, b), active)
            case "cvt":
                self._write(operands[0], self._convert(name, operands[1]), active)
            case "shfl" if "bfly" in name:
                lane = np.arange(self.threads) ^ self._read(operands[2], "u32").astype("i8")
                self._write(operands[0], self._read(operands[1], "b32")[lane], active)
            case _:
                raise NotImplementedError(f"{'.'.join(name)} {', '.join(operands)}")

    def _convert(self, name: list[str], operand: str) -> Array:
        to, source = name[-2], name[-1]
        if source == "bf16":
            return bfloat16(self._read(operand, "u16"))
        if to == "bf16":
            return to_bfloat16(self._read(operand, source))
        return self._read(operand, source).astype(_TYPES[to])

    def _memory(self, name: list[str], operands: list[str], active: Array) -> None:
        if name[1] == "param":
            match = re.fullmatch(r"\[(\w+)\]", operands[1])
            assert match is not None
            constant = self.constants[match[1]] & (2**64 - 1)
            self._write(operands[0], np.full(self.threads, constant, "u8"), active)
            return
        registers, place = operands if name[0] == "ld" else operands[::-1]
        address, _ = self._place(place)
        memory = self.shared if name[1] == "shared" else self.memory
        size = np.dtype(_TYPES[name[-1]]).itemsize
        for number, register in enumerate(self._vector(registers)):
            at = (address + number * size)[:, None] + np.arange(size)
            at = np.where(active[:, None], at, 0)
            if name[0] == "ld":
                value = np.ascontiguousarray(memory[at]).view(_TYPES[name[-1]])[:, 0]
                self._write(register, value, active)
            else:
                raw = self._read(register, name[-1])
                memory[at[active]] = raw.view("u1").reshape(-1, size)[active]

    def _mma(self, name: list[str], operands: list[str], active: Array) -> None:
        assert name[1:5] == ["sp::ordered_metadata", "sync", "aligned", "m16n8k32"]
        assert active.all(), "all threads of a warp take part"
        number = bfloat16 if name[8] == "bf16" else float16
        a, b = (np.stack([self._read(r, "b32") for r in self._vector(o)], 1) for o in operands[1:3])
        c = np.stack([self._read(r, "f32") for r in self._vector(operands[3])], 1)
        metadata = self._read(operands[4], "b32")
        out = np.empty_like(c)
        for warp in range(0, self.threads, 32):
            own = slice(warp, warp + 32)
            out[own] = mma_sp(a[own], b[own], c[own], metadata[own], int(operands[5], 0), number)
        for place, register in enumerate(self._vector(operands[0])):
            self._write(register, np.ascontiguousarray(out[:, place]), active)
