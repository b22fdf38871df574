"""A log as an event file of TensorBoard, written here: the format is a few fields of protobuf.

Losses, metrics, outcomes and what heads computed are scalars over ticks; proposals, verdicts,
transitions, probes and rollbacks are texts that begin with the code of the event.

Format: records `length(u64) crc(length) data crc(data)` with masked CRC-32C, of messages from
https://github.com/tensorflow/tensorboard/tree/master/tensorboard/compat/proto (event, summary,
tensor).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from esper.errors import OutputError
from esper.ir.atomic import atomic_write
from esper.recorder.decisions import HeadSample, Outcome, Verdict
from esper.recorder.event import Event
from esper.recorder.happenings import Metric, Probe, Rollback, Tick, Transition
from esper.recorder.log import Log

FILE = "events.out.tfevents.0000000000.esper"
_STRING = 7  # DT_STRING


def export_tensorboard(log: Log, folder: Path) -> None:
    """Write the event file into a directory that `tensorboard --logdir` is given.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror or error}") from error
    with atomic_write(folder / FILE) as stream:
        stream.write(_record(_field(1, 0.0) + _field(3, b"brain.Event:2")))
        for event in log:
            for summary in _summaries(event):
                time = event.time / 1e9 if event.time else float(event.tick)
                message = _field(1, time) + _field(2, event.tick) + _field(5, summary)
                stream.write(_record(message))


def _summaries(event: Event) -> Iterator[bytes]:
    payload = event.payload
    who = event.agent or "run"
    if isinstance(payload, Tick):
        if payload.loss is not None:
            yield _scalar("loss", payload.loss)
    elif isinstance(payload, Metric):
        yield _scalar(payload.name, payload.value)
    elif isinstance(payload, Outcome):
        for name, value in sorted(payload.metrics.items()):
            yield _scalar(f"outcome/{name}", value)
    elif isinstance(payload, HeadSample):
        yield _scalar(f"{who}/{payload.head}/entropy", payload.entropy)
        yield _scalar(f"{who}/{payload.head}/log_probability", payload.log_probability)
    else:
        said = _said(payload)
        if said:
            where = f" {event.target}:" if event.target else ""
            yield _text(f"{who}/{event.kind}", f"{event.code}{where} {said}")


def _said(payload: object) -> str:
    if isinstance(payload, Verdict):
        return f"{payload.result} [{payload.code}] {payload.reason}"
    if isinstance(payload, Transition):
        return f"{payload.before} to {payload.after}"
    if isinstance(payload, Probe):
        return " ".join(filter(None, (payload.probe, payload.phase, payload.decision)))
    return payload.reason if isinstance(payload, Rollback) else ""


def _scalar(tag: str, value: float) -> bytes:
    """Summary of one `value { tag, simple_value }`."""
    return _field(1, _field(1, tag.encode()) + b"\x15" + struct.pack("<f", _narrow(value)))


def _narrow(value: float) -> float:
    """What float32 holds: beyond its range lies infinity."""
    try:
        struct.pack("<f", value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
    return value


def _text(tag: str, text: str) -> bytes:
    """Summary of one `value { tag, tensor, metadata }` for the plugin of texts."""
    one = _field(2, _field(1, 1))  # shape: a single dimension of size 1
    tensor = _field(1, _STRING) + _field(2, one) + _field(8, text.encode())
    plugin = _field(1, _field(1, b"text"))
    return _field(1, _field(1, tag.encode()) + _field(8, tensor) + _field(9, plugin))


def _field(number: int, value: int | float | bytes) -> bytes:
    """A protobuf field: a variable-length integer, a double, or bytes with their length."""
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 1) + struct.pack("<d", value)
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    """CRC-32C (Castagnoli), masked as TFRecord wants it."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@cache
def _table() -> tuple[int, ...]:
    found = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        found.append(crc)
    return tuple(found)
