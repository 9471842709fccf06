"""Messages <-> frames: msgpack, a version, a size limit, an optional seal, and strict typed decoding.

A frame is `[16 bytes of seal, if a cluster key is set] + msgpack([major, minor, to, message])`. `to` is the guid of the
incarnation that the sender means to reach: ZeroMQ delivers what was queued for a dead process to its successor on the
same port (measured, 10 of 10), and that successor must not act on it. An answer travels back on the connection its
question came by and has `to == ""`; its call id protects it.

The seal is a keyed BLAKE3 over the rest: without the cluster's key nobody makes a frame that is read any further.
Whatever does not decode is a `BadFrame` with a short `cause` for the counters; it changes nothing.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Annotated

import blake3
import msgpack
import msgspec

from fabric.messages import PROTOCOL, AnyMessage

MAX_FRAME_BYTES = 4 * 1024 * 1024
"""A RackAnswer of 5,000 offers has about 1.3 MB."""

SEAL_BYTES = 16
KEY_BYTES = 32


class _Body(msgspec.Struct, frozen=True, array_like=True):
    """What is sealed. Decoded in one step, as converting to a bare union makes msgspec work out the union each time:
    1.4 µs instead of 11."""

    major: int
    minor: int
    to: Annotated[str, msgspec.Meta(max_length=32)]
    message: AnyMessage


class BadFrame(Exception):
    """`cause` is one of: size, seal, msgpack, version, type."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Codec:
    """`key`: the cluster's 32-byte key, or None (every frame is taken as genuine)."""

    key: bytes | None = None

    def encode(self, message: AnyMessage, to: str) -> bytes:
        """Raises ValueError when the message is larger than any peer would take."""
        body: bytes = msgpack.packb((*PROTOCOL, to, msgspec.to_builtins(message, builtin_types=(bytes,))))
        if len(body) + SEAL_BYTES > MAX_FRAME_BYTES:
            raise ValueError(
                f"{type(message).__name__}: expected at most {MAX_FRAME_BYTES} bytes on the wire, found {len(body)}"
            )
        return self._seal(body) + body if self.key is not None else body

    def decode(self, frame: bytes | memoryview) -> tuple[str, AnyMessage]:
        """(the incarnation it is meant for, the message); raises BadFrame."""
        if len(frame) > MAX_FRAME_BYTES:
            raise BadFrame("size", f"expected at most {MAX_FRAME_BYTES} bytes, found {len(frame)}")
        body = frame
        if self.key is not None:
            seal, body = frame[:SEAL_BYTES], frame[SEAL_BYTES:]
            if not hmac.compare_digest(bytes(seal), self._seal(body)):
                raise BadFrame("seal", "not sealed with this cluster's key")
        try:
            parts = msgpack.unpackb(body, use_list=False, max_ext_len=0)
        except Exception as error:  # msgpack raises many kinds, ValueError and its own among them, for bad bytes
            raise BadFrame("msgpack", str(error)[:200]) from error
        if not isinstance(parts, tuple) or len(parts) != 4:
            raise BadFrame("type", "expected [major, minor, to, message]")
        if parts[0] != PROTOCOL[0]:
            raise BadFrame("version", f"expected major version {PROTOCOL[0]}, found {str(parts[0])[:20]}")
        try:
            whole = msgspec.convert(parts, type=_Body)
        except msgspec.ValidationError as error:
            raise BadFrame("type", str(error)[:200]) from error
        return whole.to, whole.message

    def _seal(self, body: bytes | memoryview) -> bytes:
        assert self.key is not None
        return blake3.blake3(body, key=self.key).digest(SEAL_BYTES)
