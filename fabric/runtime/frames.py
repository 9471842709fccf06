"""The frames of a journal, as bytes.

    magic "FJ1\\n" | sequence, 8 bytes | length, 4 bytes | crc32 of sequence, length and payload, 4 bytes | payload

Numbers are big-endian. Sequences count from 1 within a file, so that a frame in the wrong place is noticed. The payload
is msgpack([[[key, value], …] to put, [key, …] to forget]).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import msgpack
import msgspec

Put = tuple[str, bytes]

_MAGIC = b"FJ1\n"
_HEADER = struct.Struct(">4sQII")
_CHECKED = struct.Struct(">QI")
HEADER_BYTES = _HEADER.size


def cost(key: str, value: bytes) -> int:
    """Bytes that an entry takes in a log, about."""
    return len(key) + len(value) + 8


def frame_of(sequence: int, puts: Sequence[Put], deletes: Sequence[str]) -> bytes:
    payload: bytes = msgpack.packb((puts, deletes))
    crc = zlib.crc32(payload, zlib.crc32(_CHECKED.pack(sequence, len(payload))))
    return _HEADER.pack(_MAGIC, sequence, len(payload), crc) + payload


def payload_at(data: bytes, position: int, sequence: int | None) -> memoryview | None:
    """The payload of the whole frame at `position`, or None. With `sequence` None, of any sequence number."""
    if position + HEADER_BYTES > len(data):
        return None
    magic, found, length, crc = _HEADER.unpack_from(data, position)
    start = position + HEADER_BYTES
    if magic != _MAGIC or sequence not in (None, found) or start + length > len(data):
        return None
    payload = memoryview(data)[start : start + length]
    return payload if zlib.crc32(payload, zlib.crc32(_CHECKED.pack(found, length))) == crc else None


def next_frame(data: bytes, position: int) -> int | None:
    """Where the next whole frame begins, at or after `position`, whatever its sequence number."""
    while (position := data.find(_MAGIC, position)) >= 0:
        if payload_at(data, position, None) is not None:
            return position
        position += 1
    return None


def decode_payload(payload: memoryview) -> tuple[list[Put], list[str]]:
    """(puts, deletes). Raises ValueError."""
    try:
        return msgspec.convert(msgpack.unpackb(payload), type=tuple[list[Put], list[str]])
    except (ValueError, msgpack.UnpackException) as error:
        raise ValueError(str(error)[:200]) from None
