"""The file format: frames in a hash chain, and how to find where a file stops being good.

    file    = magic version(u16) frame*
    frame   = tag(4 bytes) length(u32) payload hash(32 bytes)          (numbers are little-endian)
    hash_i  = BLAKE2b-256(hash_(i-1) tag length payload)               (hash_-1 is of magic version)

The first frame is `HEAD` (format and run), then come `EVNT` and `SEAL`. Payloads are canonical
JSON. A seal is written *after* an fsync has returned and says that everything before it was then
on disk. So a bad frame with a good seal behind it is damage, and a bad frame without one is a tail
that was never promised.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from esper.errors import InputError
from esper.recorder import canonical

MAGIC = b"\x89ESPERLOG\r\n\x1a\n"
VERSION = 1
START = MAGIC + struct.pack("<H", VERSION)
HEAD, EVENT, SEAL = b"HEAD", b"EVNT", b"SEAL"
_PREFIX = struct.Struct("<4sI")
_HASH = 32
_LONGEST = 1 << 28  # a longer record is a mistake; tensors belong into the side directory


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that was read and whose hash agrees: bytes [start, end) of the file."""

    tag: bytes
    payload: bytes
    start: int
    end: int
    hash: bytes


class BrokenError(Exception):
    """What stands at `offset` is no whole frame of the chain."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.offset = offset
        self.reason = reason


def genesis() -> bytes:
    """The hash before the first frame."""
    return hashlib.blake2b(START, digest_size=_HASH).digest()


def pack(previous: bytes, tag: bytes, payload: bytes) -> tuple[bytes, bytes]:
    """A frame after the one whose hash is `previous`: its bytes, and its hash."""
    body = _PREFIX.pack(tag, len(payload)) + payload
    found = hashlib.blake2b(previous + body, digest_size=_HASH).digest()
    return body + found, found


def header(run: str) -> tuple[bytes, bytes]:
    """The bytes of a log without events, and its hash."""
    frame, found = pack(genesis(), HEAD, canonical.encode({"run": run}))
    return START + frame, found


def read_start(stream: BinaryIO, name: str) -> None:
    """Read magic and version. Raises InputError for what is no log, or that of a newer Esper."""
    stream.seek(0)
    found = stream.read(len(START))
    if found[: len(MAGIC)] != MAGIC or len(found) < len(START):
        raise InputError(f"{name} is not a flight record of Esper (a .esperlog file)")
    version = struct.unpack("<H", found[len(MAGIC) :])[0]
    if version != VERSION:
        raise InputError(
            f"{name} is in format {version}, and this Esper reads format {VERSION}: use the Esper "
            "that wrote it"
        )


def read(stream: BinaryIO, previous: bytes, at: int) -> Iterator[Frame]:
    """Frames from offset `at` on, each held against the chain; ends at the end of the file.

    The position of the stream may be changed between frames. Raises BrokenError.
    """
    while True:
        stream.seek(at)
        frame = _one(stream, previous, at)
        if frame is None:
            return
        yield frame
        previous, at = frame.hash, frame.end


def _one(stream: BinaryIO, previous: bytes, at: int) -> Frame | None:
    prefix = stream.read(_PREFIX.size)
    if not prefix:
        return None
    if len(prefix) < _PREFIX.size:
        raise BrokenError(at, "it is cut off")
    tag, length = _PREFIX.unpack(prefix)
    if tag not in (HEAD, EVENT, SEAL):
        raise BrokenError(at, "no record begins here")
    if length > _LONGEST:
        raise BrokenError(at, "its length is impossible")
    rest = stream.read(length + _HASH)
    if len(rest) < length + _HASH:
        raise BrokenError(at, "it is cut off")
    payload, stated = rest[:length], rest[length:]
    if hashlib.blake2b(previous + prefix + payload, digest_size=_HASH).digest() != stated:
        raise BrokenError(at, "its hash does not agree with its content and what came before")
    return Frame(tag, payload, at, at + _PREFIX.size + length + _HASH, stated)


def seal_payload(events: int, previous: bytes) -> bytes:
    """Content of a seal: how many events it vouches for, and the hash that it follows."""
    return canonical.encode({"events": events, "head": previous.hex()})


def sealed_after(stream: BinaryIO, offset: int) -> bool:
    """Whether a whole seal stands anywhere after this byte.

    A seal names the hash that it follows, so it can be checked without what came before it.
    """
    stream.seek(offset)
    rest = stream.read()
    at = rest.find(SEAL)
    while at >= 0:
        if _is_seal(rest, at):
            return True
        at = rest.find(SEAL, at + 1)
    return False


def _is_seal(data: bytes, at: int) -> bool:
    if len(data) - at < _PREFIX.size:
        return False
    _, length = _PREFIX.unpack_from(data, at)
    end = at + _PREFIX.size + length
    if length > 200 or end + _HASH > len(data):
        return False
    try:
        content: Any = canonical.decode(data[at + _PREFIX.size : end])
        previous = bytes.fromhex(content["head"])
    except (ValueError, KeyError, TypeError):
        return False
    return (
        hashlib.blake2b(previous + data[at:end], digest_size=_HASH).digest()
        == data[end : end + _HASH]
    )


def size(stream: BinaryIO) -> int:
    """Bytes of the file."""
    return os.fstat(stream.fileno()).st_size


def payload_of(frame: bytes) -> bytes:
    """The payload within the bytes of a frame that was read before."""
    return frame[_PREFIX.size : -_HASH]
