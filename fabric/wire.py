"""Messages <-> frames: msgpack, a version, a size limit, an optional seal, and strict typed decoding.

A frame is `[16 bytes of seal, if a cluster key is set] + msgpack([major, minor, to, message])`. `to` is the guid of the
incarnation that the sender means to reach: ZeroMQ delivers what was queued for a dead process to its successor on the
same port (measured, 10 of 10), and that successor must not act on it. An answer travels back on the connection its
question came by and has `to == ""`; its call id protects it.

The seal is a keyed BLAKE2b over the rest: without the cluster's key nobody makes a frame that is read any further. (For
frames of some hundred bytes it costs a quarter of a keyed BLAKE3, as the keyed state is copied, not made anew.)
Whatever does not decode is a `BadFrame` with a short `cause` for the counters; it changes nothing.

Several protocols travel in such frames, each a `Vocabulary`: a union of messages with a major version of its own, so
that a frame of one is refused by the ears of another. The fabric's own is the default.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from typing import Annotated, Generic, TypeVar

import msgpack
import msgspec

from fabric.messages import PROTOCOL, AnyMessage

MAX_FRAME_BYTES = 4 * 1024 * 1024
"""A RackAnswer of 5,000 offers has about 1.3 MB."""

SEAL_BYTES = 16
KEY_BYTES = 32


M = TypeVar("M")


class Body(msgspec.Struct, Generic[M], frozen=True, array_like=True):
    """What is sealed. Decoded in one step, as converting to a bare union makes msgspec work out the union each time:
    1.4 µs instead of 11. Each vocabulary has a class of its own, which msgspec finds sooner than `Body[union]`."""

    major: int
    minor: int
    to: Annotated[str, msgspec.Meta(max_length=32)]
    message: M


class BadFrame(Exception):
    """`cause` is one of: size, seal, msgpack, version, type."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause


class Vocabulary(Generic[M]):
    """One protocol: its version as (major, minor), and a class made of `Body[union of its messages]`. Another major
    version is refused; a minor one only adds fields with defaults."""

    def __init__(self, version: tuple[int, int], body: type[Body[M]]) -> None:
        self.version = version
        self.body = body

    def prepare(self) -> None:
        """Work the union out now, which else the first frame does (10 ms): for a process that will fork many that speak
        this protocol."""
        with contextlib.suppress(msgspec.ValidationError):
            msgspec.convert(None, type=self.body)


class _FabricBody(Body[AnyMessage], frozen=True, array_like=True): ...


FABRIC: Vocabulary[AnyMessage] = Vocabulary(PROTOCOL, _FabricBody)


class FrameCodec(Generic[M]):
    """`key`: the cluster's 32-byte key, or None (every frame is taken as genuine)."""

    def __init__(self, key: bytes | None, vocabulary: Vocabulary[M]) -> None:
        self.key = key
        self._keyed = hashlib.blake2b(key=key, digest_size=SEAL_BYTES) if key is not None else None
        self._packer = msgpack.Packer()  # one for all: packb makes one each time, with a buffer of 256 KiB
        self._version = vocabulary.version
        self._body = vocabulary.body

    def encode(self, message: M, to: str) -> bytes:
        """Raises ValueError when the message is larger than any peer would take."""
        body = self._packed((*self._version, to, msgspec.to_builtins(message, builtin_types=(bytes,))))
        if len(body) + SEAL_BYTES > MAX_FRAME_BYTES:
            raise ValueError(
                f"{type(message).__name__}: expected at most {MAX_FRAME_BYTES} bytes on the wire, found {len(body)}"
            )
        return self.sealed(body)

    def _packed(self, parts: object) -> bytes:
        try:
            body: bytes = self._packer.pack(parts)
        except BaseException:
            self._packer.reset()  # of what it has packed before what it can't
            raise
        return body

    def sealed(self, body: bytes) -> bytes:
        """The frame."""
        return self._seal(body) + body if self.key is not None else body

    def decode(self, frame: bytes | memoryview) -> tuple[str, M]:
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
        if parts[0] != self._version[0]:
            raise BadFrame("version", f"expected major version {self._version[0]}, found {str(parts[0])[:20]}")
        try:
            whole = msgspec.convert(parts, type=self._body)
        except msgspec.ValidationError as error:
            raise BadFrame("type", str(error)[:200]) from error
        return whole.to, whole.message

    def _seal(self, body: bytes | memoryview) -> bytes:
        assert self._keyed is not None
        keyed = self._keyed.copy()
        keyed.update(body)
        return keyed.digest()


class Codec(FrameCodec[AnyMessage]):
    """The fabric's own."""

    def __init__(self, key: bytes | None = None) -> None:
        super().__init__(key, FABRIC)
