"""The bulk protocol decodes what it encodes, and nothing else."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.images.protocol import (
    MAX_HEADER_BYTES,
    MAX_MATES,
    MAX_REASON_CHARS,
    MAX_SOURCES,
    WITH_DATA,
    Abort,
    Answer,
    Begin,
    Commit,
    Data,
    Done,
    GetChunk,
    GetHave,
    GetManifest,
    GetMates,
    Have,
    Holder,
    Mates,
    ProtocolError,
    Put,
    Refused,
    Replicate,
    Request,
    Underway,
    decode_answer,
    decode_mates,
    decode_request,
    encode,
    encode_mates,
    refused,
)

DIGEST = "b3:" + "a" * 64
HASH = b"h" * 32
SOURCE = Holder("node-1", "rack-1", "tcp://127.0.0.1:7401")
REQUESTS: list[Request] = [
    GetManifest(id=1, digest=DIGEST),
    GetChunk(id=2, hash=HASH),
    Begin(id=3, push="p"),
    Put(id=4, push="p", hash=HASH),
    Commit(id=5, push="p"),
    Abort(id=6, push="p"),
    Replicate(id=7, digest=DIGEST, sources=(SOURCE,) * MAX_SOURCES),
    GetMates(id=8, digest=DIGEST, mate=SOURCE),
    GetHave(id=9, digest=DIGEST),
]
ANSWERS: list[Answer] = [
    Data(id=1),
    Data(id=1, mates=7),
    Mates(id=5, version=7),
    Have(id=6),
    Done(id=2),
    Underway(id=3, done=1, total=2),
    Refused(id=4, code="full", reason="x"),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: type(r).__name__)
def test_requests_come_back_as_they_were(request_: Request) -> None:
    data = 5 if type(request_) in WITH_DATA else None
    assert decode_request(encode(request_), data) == request_
    with pytest.raises(ProtocolError, match=r"expected (no )?data with"):
        decode_request(encode(request_), None if data else 5)


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda a: type(a).__name__)
def test_answers_come_back_as_they_were(answer: Answer) -> None:
    assert decode_answer(encode(answer), 5 if type(answer) in WITH_DATA else None) == answer


@pytest.mark.parametrize(
    "header",
    [
        {"k": "chunk", "v": 2, "id": 1, "hash": HASH},
        {"k": "chunk", "v": 1, "id": "1", "hash": HASH},
        {"k": "chunk", "v": 1, "id": -1, "hash": HASH},
        {"k": "chunk", "v": 1, "id": 1, "hash": HASH[:31]},
        {"k": "chunk", "v": 1, "id": 1, "hash": "h" * 32},
        {"k": "chunk", "v": 1, "id": 1, "hash": HASH, "more": 1},
        {"k": "chunk", "v": 1, "hash": HASH},
        {"k": "erase", "v": 1, "id": 1},
        {"k": "manifest", "v": 1, "id": 1, "digest": DIGEST + "\n"},
        {"k": "begin", "v": 1, "id": 1, "push": "p" * 65},
        {"k": "replicate", "v": 1, "id": 1, "digest": DIGEST, "sources": []},
        {"k": "mates?", "v": 1, "id": 1, "digest": DIGEST, "mate": {"node": "", "rack": "r", "endpoint": "e"}},
        {"k": "mates?", "v": 1, "id": 1, "digest": DIGEST},
        {"k": "data", "v": 1, "id": 1},
        [1, 2, 3],
        None,
    ],
)
def test_what_is_not_in_the_protocol_is_refused(header: object) -> None:
    with pytest.raises(ProtocolError):
        decode_request(msgspec.msgpack.encode(header), None)


def test_mates_come_back_as_they_were_and_are_bounded() -> None:
    assert decode_mates(encode_mates([SOURCE, SOURCE])) == (SOURCE, SOURCE)
    assert len(decode_mates(encode_mates([SOURCE] * (MAX_MATES + 5)))) == MAX_MATES
    for wrong in ([[1]], {"a": 1}, [{"node": "n", "rack": "r"}], [{"node": "n", "rack": "r", "endpoint": ""}], None):
        with pytest.raises(ProtocolError, match="list of mates"):
            decode_mates(msgspec.msgpack.encode(wrong))
    with pytest.raises(ProtocolError):
        decode_mates(msgspec.msgpack.encode([msgspec.to_builtins(SOURCE)] * (MAX_MATES + 1)))


def test_sizes_are_bounded() -> None:
    assert len(refused(1, "failed", "x" * 1000).reason) == MAX_REASON_CHARS
    assert max(len(encode(request)) for request in REQUESTS) < MAX_HEADER_BYTES


@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_else(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_request(data, None)
    with pytest.raises(ProtocolError):
        decode_answer(data, None)


@given(which=st.sampled_from(REQUESTS), position=st.integers(0), byte=st.integers(0, 255))
def test_a_damaged_header_raises_nothing_else(which: Request, position: int, byte: int) -> None:
    header = bytearray(encode(which))
    header[position % len(header)] = byte
    with suppress(ProtocolError):
        decode_request(bytes(header), 5 if type(which) in WITH_DATA else None)


def test_a_deeply_nested_header_is_refused() -> None:
    with pytest.raises(ProtocolError):
        decode_request(b"\x91" * (MAX_HEADER_BYTES - 1) + b"\x01", None)
