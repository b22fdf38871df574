"""Tensors in and out of a stream in the safetensors format, without copies on the way.

Format: little-endian u64 length of the header, JSON header, raw little-endian row-major data
(https://huggingface.co/docs/safetensors). Written here since the library writes only whole files.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from typing import IO, Any

import torch

from esper.ir.codec import CodecError

_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, t) for name, t in _NAMES.items()}
_CODES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100 * 1024 * 1024
_MAX_RANK = 64


def write_tensors(stream: IO[bytes], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors in the order given. Raises CodecError for a dtype without a code."""
    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.dtype not in _CODES:
            raise CodecError(f"tensor {name} of {tensor.dtype}, {tensor.layout} cannot be saved")
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(struct.pack("<Q", len(text)) + text)
    for tensor in tensors.values():
        stream.write(_bytes(tensor))


def _bytes(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def read_tensors(stream: IO[bytes], length: int) -> tuple[dict[str, torch.Tensor], int]:
    """Read tensors from a stream that holds `length` more bytes, straight into their place.

    Nothing is allocated before the header is known to agree with `length`.

    Returns:
        Tensors by name in the order of the header, and the CRC-32 of all bytes read.

    Raises:
        CodecError: the header or the sizes do not add up.
    """
    start = _read(stream, 8)
    (header_length,) = struct.unpack("<Q", start)
    if header_length > min(length - 8, _MAX_HEADER):
        raise CodecError("the tensor header is longer than the file")
    text = _read(stream, header_length)
    header = json.loads(text)
    if type(header) is not dict:
        raise CodecError("the tensor header is no JSON object")
    header.pop("__metadata__", None)
    entries = sorted(
        ((name, *_entry(name, facts)) for name, facts in header.items()), key=lambda e: e[3]
    )
    position = 0
    for name, _, _, begin, end in entries:
        if begin != position:
            raise CodecError(f"tensor {name} does not begin where the one before it ends")
        position = end
    if position != length - 8 - header_length:
        raise CodecError("the tensors do not fill the place they have")
    checksum = zlib.crc32(text, zlib.crc32(start))
    tensors: dict[str, torch.Tensor] = {}
    for name, dtype, shape, begin, end in entries:
        data = torch.empty(end - begin, dtype=torch.uint8)
        _fill(stream, data.numpy().data)
        checksum = zlib.crc32(data.numpy().data, checksum)
        tensors[name] = data.view(dtype).reshape(shape)
    return {name: tensors[name] for name in header}, checksum


def _entry(name: str, facts: Any) -> tuple[torch.dtype, list[int], int, int]:
    if type(facts) is not dict or facts.keys() != {"dtype", "shape", "data_offsets"}:
        raise CodecError(f"tensor {name[:100]} is not described as it should be")
    dtype = _DTYPES.get(facts["dtype"]) if type(facts["dtype"]) is str else None
    shape, offsets = facts["shape"], facts["data_offsets"]
    for numbers in (shape, offsets):
        if type(numbers) is not list or not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
            raise CodecError(f"tensor {name[:100]} has a size that makes no sense")
    if dtype is None or len(offsets) != 2 or len(shape) > _MAX_RANK:
        raise CodecError(f"tensor {name[:100]} is not described as it should be")
    size = dtype.itemsize
    for dim in shape:
        size *= dim
    if offsets[1] - offsets[0] != size:
        raise CodecError(f"tensor {name[:100]} has other bytes than its shape asks for")
    return dtype, shape, offsets[0], offsets[1]


def _fill(stream: IO[bytes], view: memoryview) -> None:
    done = 0
    while done < len(view):
        count = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise CodecError("the tensors end early")
        done += count


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise CodecError("the tensors end early")
    return data
