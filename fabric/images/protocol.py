"""The bulk protocol: how chunks travel between a holder and whoever fetches from it or pushes to it.

It has an endpoint of its own for each storage agent, apart from the bus of the agents, so that a transfer never
delays a heartbeat; and it speaks plain TCP (`fabric.images.wire`), over which the kernel sends files without their
bytes passing through the process. A message is

    header   MessagePack map: {"v": 1, "k": kind, "id": number, and the fields of the kind}
    data     a chunk or a manifest, where the kind has one

Every request carries an id that its answer repeats; answers may come in any order. Every request may be repeated
without harm: reading changes nothing, and `Begin`, `Put`, `Commit`, `Abort` and `Replicate` name the push or the
image they mean.

    GetManifest(digest)          -> Data + manifest        | Refused
    GetChunk(hash)               -> Data + chunk           | Refused      a mate may say Underway before: it waits, too
    GetMates(digest, mate)       -> Mates + those of the asker's rack that fetch the same, or did lately
    GetHave(digest)              -> Have + one bit a chunk | Refused
    Begin(push)                  -> Done                   | Refused
    Put(push, hash) + chunk      -> Done                   | Refused
    Commit(push) + manifest      -> Done (held, durably)   | Refused
    Abort(push)                  -> Done
    Replicate(digest, sources)   -> Done (held) | Underway | Refused    asked again until it is one of the others

Mates are nodes of one rack that fetch the same image at the same time, and pass chunks on to each other
(`fabric.images.mates`). A holder tells an asker of its mates; `Data.mates` is a number that changes when there are
others, so that whoever is being served knows when to ask again.

Decoding is strict: a version, kind, field or type that isn't in this file, or a message over its size, is a
`ProtocolError`. The receiver closes the connection and does nothing else. Bytes are never trusted for what a header
says of them: chunks are hashed, manifests are compared with their digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from fabric.images.errors import ImageError
from fabric.images.manifest import DIGEST_PATTERN, MAX_MANIFEST_BYTES, Buffer

T = TypeVar("T")

VERSION = 1
MAX_HEADER_BYTES = 8192
MAX_DATA_BYTES = MAX_MANIFEST_BYTES
"""A chunk is smaller: one limit serves both."""
MAX_SOURCES = 8
MAX_MATES = 128
"""Told to one asker; a rack with more at the same image has those that came first."""
MAX_REASON_CHARS = 300

Code = Literal["not_found", "corrupt", "full", "busy", "unknown_push", "refused", "failed"]
"""Why a request was refused: not here; rotted here; no room; too much at once; push gone; wrong content; tried in
vain.
"""

_Id = Annotated[int, Meta(ge=0, lt=1 << 62)]
_Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
_Digest = Annotated[str, Meta(pattern=DIGEST_PATTERN)]
_PushId = Annotated[str, Meta(min_length=1, max_length=64)]
_Name = Annotated[str, Meta(min_length=1, max_length=255)]


class ProtocolError(ImageError):
    """Something that is no message of this protocol."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A node that has (a part of) an image, and the endpoint of its chunk server, such as `tcp://192.0.2.7:7401`."""

    node: _Name
    rack: _Name
    endpoint: _Name


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="k", kw_only=True):
    v: Literal[1] = 1
    id: _Id


class GetManifest(_Header, frozen=True, tag="manifest", kw_only=True):
    digest: _Digest


class GetChunk(_Header, frozen=True, tag="chunk", kw_only=True):
    hash: _Hash


class GetMates(_Header, frozen=True, tag="mates?", kw_only=True):
    """`mate`: the asker, who serves what it has of the image from now on."""

    digest: _Digest
    mate: Holder


class GetHave(_Header, frozen=True, tag="have?", kw_only=True):
    digest: _Digest


class Begin(_Header, frozen=True, tag="begin", kw_only=True):
    push: _PushId


class Put(_Header, frozen=True, tag="put", kw_only=True):
    push: _PushId
    hash: _Hash


class Commit(_Header, frozen=True, tag="commit", kw_only=True):
    push: _PushId


class Abort(_Header, frozen=True, tag="abort", kw_only=True):
    push: _PushId


class Replicate(_Header, frozen=True, tag="replicate", kw_only=True):
    digest: _Digest
    sources: Annotated[tuple[Holder, ...], Meta(min_length=1, max_length=MAX_SOURCES)]


class Data(_Header, frozen=True, tag="data", kw_only=True):
    """`mates`: another number when the asker has other mates than when it asked for them; 0: it never did."""

    mates: Annotated[int, Meta(ge=0)] = 0


class Mates(_Header, frozen=True, tag="mates", kw_only=True):
    """With a list of `Holder`s (`decode_mates`). `version`: see `Data.mates`."""

    version: Annotated[int, Meta(ge=0)]


class Have(_Header, frozen=True, tag="have", kw_only=True):
    """With one bit a chunk, the lowest bit of the first byte for the first one: it is here, or a holder was asked."""


class Done(_Header, frozen=True, tag="done", kw_only=True):
    pass


class Underway(_Header, frozen=True, tag="underway", kw_only=True):
    """`done` of `total` bytes so far; `total` is 0 while it isn't known."""

    done: Annotated[int, Meta(ge=0)]
    total: Annotated[int, Meta(ge=0)]


class Refused(_Header, frozen=True, tag="refused", kw_only=True):
    code: Code
    reason: Annotated[str, Meta(max_length=MAX_REASON_CHARS)]


Intake = Begin | Put | Commit | Abort | Replicate
"""What a storage agent alone is asked."""
Request = GetManifest | GetChunk | GetMates | GetHave | Intake
Answer = Data | Mates | Have | Done | Underway | Refused

WITH_DATA = frozenset({Put, Commit, Data, Mates, Have})
"""The kinds that have data; no other may have any."""

_REQUESTS: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_ANSWERS: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
_MATES: msgspec.msgpack.Decoder[tuple[Holder, ...]] = msgspec.msgpack.Decoder(
    Annotated[tuple[Holder, ...], Meta(max_length=MAX_MATES)]
)
_ENCODER = msgspec.msgpack.Encoder()


def encode(header: Request | Answer) -> bytes:
    return _ENCODER.encode(header)


def refused(request_id: int, code: Code, reason: str) -> Refused:
    """A refusal with its reason cut to what a header may hold."""
    return Refused(id=request_id, code=code, reason=reason[:MAX_REASON_CHARS])


def decode_request(header: bytes, data_bytes: int | None) -> Request:
    """The request of a message. `data_bytes`: the length of its data, None if it has none. Raises `ProtocolError`."""
    request = _decode(_REQUESTS, header)
    if (type(request) in WITH_DATA) != (data_bytes is not None):
        raise _other_data(request)
    return request


def decode_answer(header: bytes, data_bytes: int | None) -> Answer:
    """The answer of a message. `data_bytes`: the length of its data, None if it has none. Raises `ProtocolError`."""
    answer = _decode(_ANSWERS, header)
    if (type(answer) in WITH_DATA) != (data_bytes is not None):
        raise _other_data(answer)
    return answer


def encode_mates(mates: Sequence[Holder]) -> bytes:
    return _ENCODER.encode(mates[:MAX_MATES])


def decode_mates(data: Buffer) -> tuple[Holder, ...]:
    """Raises `ProtocolError`."""
    try:
        return _MATES.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"expected a list of mates, found: {error}") from None


def _decode(decoder: msgspec.msgpack.Decoder[T], header: bytes) -> T:
    try:
        return decoder.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"expected a version {VERSION} header, found: {error}") from None


def _other_data(header: Request | Answer) -> ProtocolError:
    wanted = "data" if type(header) in WITH_DATA else "no data"
    return ProtocolError(f"expected {wanted} with {type(header).__name__}")
