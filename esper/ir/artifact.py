"""The `.esper` file: a model with its graph, tensors, anatomy and history.

An uncompressed zip archive with

- `format`: JSON with the format version and the versions that wrote it,
- `graph.json`: symbols, nodes, signature, tensor list, modes,
- `tensors.safetensors`: parameters and buffers, tied ones once,
- `anatomy.json`: the memory behind stable IDs,
- `history.json`: committed proposals and notes.

There is no pickle in it. A file is taken as hostile: every value is checked before it is used,
ops come from `torch.ops` only, names are checked because they end up in generated code, and no
allocation is larger than the file.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Callable
from typing import IO, Any

import torch

from esper.errors import InputError, OutputError
from esper.ir import decoder, encoder
from esper.ir.atomic import atomic_write
from esper.ir.codec import CodecError, one_line
from esper.ir.model import Model
from esper.ir.tensors import read_tensors, write_tensors

FORMAT_VERSION = 1
_TENSORS = "tensors.safetensors"
_JSON = ("format", "graph.json", "anatomy.json", "history.json")
_MEMBERS = {*_JSON, _TENSORS}
_MAX_JSON = 256 * 1024 * 1024
# A fixed date: equal models make equal files.
_DATE = (1980, 1, 1, 0, 0, 0)


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Write a model to a `.esper` file, whole or not at all.

    Raises:
        OutputError: the file cannot be written, or the graph holds something that a file cannot
            (the sentence names the node).
    """
    if not isinstance(model, Model):
        raise OutputError(f"esper.save writes an esper.Model, not {type(model).__name__}")
    try:
        parts = {
            "format": {
                "version": FORMAT_VERSION,
                "torch": str(torch.__version__),
                "esper": _version(),
            },
            "graph.json": encoder.graph(model),
            "anatomy.json": encoder.anatomy(model),
            "history.json": {"history": model.history, "notes": [*map(one_line, model.notes)]},
        }
        texts = {name: _dump(name, part) for name, part in parts.items()}
        tensors = encoder.tensors(model)
        with atomic_write(path) as stream, zipfile.ZipFile(stream, "w") as archive:
            for name, text in texts.items():
                archive.writestr(zipfile.ZipInfo(name, _DATE), text)
            entry = zipfile.ZipInfo(_TENSORS, _DATE)
            with archive.open(entry, "w", force_zip64=True) as member:
                write_tensors(member, tensors)
    except CodecError as error:
        raise OutputError(f"the model cannot be saved: {error}") from error


def _version() -> str:
    import esper

    return esper.__version__


def _dump(name: str, value: Any) -> bytes:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise CodecError(f"{name} holds a value that is no JSON: {error}") from error


def load(path: str | os.PathLike[str]) -> Model:
    """Read a model from a `.esper` file; nothing in the file is executed.

    Raises:
        InputError: the file cannot be read, is damaged, or asks for something not admitted.
    """
    try:
        with open(path, "rb") as stream:
            return _load(stream)
    except OSError as error:
        raise InputError(f"{os.fspath(path)} cannot be read: {error.strerror or error}") from error
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{os.fspath(path)} is no .esper file, or is damaged: {_line(error)}"
        ) from error
    except Exception as error:  # whatever a damaged file provokes in the libraries below
        raise InputError(f"{os.fspath(path)} cannot be loaded: {_line(error)}") from error


def _line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = " ".join(str(error).split()).rstrip(".")[:300]
    if isinstance(error, CodecError):
        return text
    return f"it does not hold what it should ({type(error).__name__} {text})"


def _load(stream: IO[bytes]) -> Model:
    with zipfile.ZipFile(stream) as archive:
        entries = _entries(archive)
        size = stream.seek(0, os.SEEK_END)
        if sum(entry.file_size for entry in entries.values()) > size:
            raise CodecError("its parts are larger than the file")
        version = _read_json(archive, entries, "format")
        if version.get("version") != FORMAT_VERSION:
            raise CodecError(
                f"it has format version {str(version.get('version'))[:20]}, "
                f"this Esper reads version {FORMAT_VERSION}"
            )
        graph, anatomy, history = (_read_json(archive, entries, name) for name in _JSON[1:])
        # Not through zipfile, which would copy every tensor twice.
        entry = entries[_TENSORS]
        _seek(stream, entry)
        tensors, checksum = read_tensors(stream, entry.file_size)
        if checksum != entry.CRC:
            raise CodecError("its tensors are damaged: the checksum differs")
    return decoder.model(graph, anatomy, history, tensors)


def _seek(stream: IO[bytes], entry: zipfile.ZipInfo) -> None:
    """Go to the data of an entry: behind its local header, name and extra field."""
    stream.seek(entry.header_offset)
    header = stream.read(30)
    if len(header) != 30 or header[:4] != b"PK\x03\x04":
        raise CodecError(f"its part {entry.filename} is not where it should be")
    name_length, extra_length = struct.unpack("<HH", header[26:])
    stream.seek(name_length + extra_length, os.SEEK_CUR)


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    listed = archive.infolist()
    entries = {entry.filename: entry for entry in listed}
    if entries.keys() != _MEMBERS or len(listed) != len(entries):
        raise CodecError("it is no .esper file: it does not hold the parts of one")
    for entry in listed:
        stored = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1
        if not stored or entry.file_size != entry.compress_size:
            raise CodecError(f"its part {entry.filename} is compressed or encrypted")
    return entries


def _read_json(
    archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], name: str
) -> dict[str, Any]:
    if entries[name].file_size > _MAX_JSON:
        raise CodecError(f"its part {name} is too large")
    refuse: Callable[[str], Any] = _refuse_constant
    value = json.loads(archive.read(entries[name]), parse_constant=refuse)
    if type(value) is not dict:
        raise CodecError(f"its part {name} is no JSON object")
    return value


def _refuse_constant(name: str) -> Any:
    raise CodecError(f"{name} is no JSON")
