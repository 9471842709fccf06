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
import msgspec

from fabric.messages import PROTOCOL, AnyMessage

MAX_FRAME_BYTES = 4 * 1024 * 1024
"""A RackAnswer of 5,000 offers has about 1.3 MB."""

SEAL_BYTES = 16
KEY_BYTES = 32


class _Body(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is sealed. It is read and written in one step, types and all: a third of the time that it takes to unpack
    plain values first and make messages of these."""

    major: int
    minor: int
    to: Annotated[str, msgspec.Meta(max_length=32)]
    message: AnyMessage


class _Head(msgspec.Struct, frozen=True, array_like=True):
    """What every major version begins with."""

    major: int


_WRITER = msgspec.msgpack.Encoder()
_READER = msgspec.msgpack.Decoder(_Body)
_HEAD_READER = msgspec.msgpack.Decoder(_Head)


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
        body = _WRITER.encode(_Body(*PROTOCOL, to, message))
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
            whole = _READER.decode(body)
        except msgspec.ValidationError as error:
            raise _misfit(body, error) from error
        except Exception as error:  # bad bytes raise several kinds: too short, no text, too deep
            raise BadFrame("msgpack", str(error)[:200]) from error
        if whole.major != PROTOCOL[0]:
            raise _other_version(whole.major)
        return whole.to, whole.message

    def _seal(self, body: bytes | memoryview) -> bytes:
        assert self.key is not None
        return blake3.blake3(body, key=self.key).digest(SEAL_BYTES)


def _misfit(body: bytes | memoryview, error: msgspec.ValidationError) -> BadFrame:
    """It is msgpack, and no message of ours: perhaps one of another major version."""
    try:
        major = _HEAD_READER.decode(body).major
    except msgspec.DecodeError:
        major = PROTOCOL[0]
    return _other_version(major) if major != PROTOCOL[0] else BadFrame("type", str(error)[:200])


def _other_version(major: int) -> BadFrame:
    return BadFrame("version", f"expected major version {PROTOCOL[0]}, found {major}")
