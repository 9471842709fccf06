"""What a ZooKeeper server says, as bytes: made by hand, as the protocol lays it out."""

from __future__ import annotations

import struct

STAT = struct.pack("!qqqqiiiqiiq", 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 1)
NO_PASSWORD = bytes(16)


def packet(body: bytes) -> bytes:
    return struct.pack("!i", len(body)) + body


def text(value: str) -> bytes:
    return packet(value.encode())


def reply(xid: int, body: bytes = b"", *, zxid: int = 5, error: int = 0) -> bytes:
    return packet(struct.pack("!iqi", xid, zxid, error) + body)


def greeting(session_id: int, timeout_ms: int, password: bytes = NO_PASSWORD, tail: bytes = b"\0") -> bytes:
    """`tail`: whether the server takes no writes, in one byte; old servers leave it out."""
    return packet(struct.pack("!iiq", 0, timeout_ms, session_id) + packet(password) + tail)


def fired(kind: int, path: str) -> bytes:
    """`kind`: created 1, deleted 2, changed 3, children 4."""
    return reply(-1, struct.pack("!ii", kind, 3) + text(path), zxid=-1)
