"""Who believes which datagram: strangers, replays, old and oversized ones change nothing and are counted."""

from __future__ import annotations

import msgspec
import pytest

from deploy.discovery.words import (
    ANSWERS_PER_S,
    MAX_AGE_S,
    MAX_DATAGRAM_BYTES,
    MAX_NONCES,
    AnyWord,
    DirectoryCall,
    DirectoryHere,
    Ears,
    StubHere,
    StubsCall,
    WordCodec,
)
from deploy.messages import Parent, StubPing, deploy_codec
from deploy.records import StubRecord
from fabric.wire import BadFrame
from tests.deployment import guid_of, stub_record

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
RECORD = stub_record("r1c01")
WALL_MS = 1_800_000_000_000


def call(number: int = 0, sent_ms: int = WALL_MS, kind: type[StubsCall | DirectoryCall] = StubsCall) -> AnyWord:
    return kind(guid_of(str(number)), sent_ms, 250)


def sealed(word: AnyWord, key: bytes = KEY) -> bytes:
    return WordCodec(key).encode(word)


def ears(directory: str = "") -> Ears:
    return Ears(KEY, lambda: RECORD, directory)


def test_a_call_is_answered_with_its_nonce() -> None:
    one = ears("192.0.2.1:2181/site")
    reply = one.hear(0.0, WALL_MS, sealed(call(1)))
    assert reply is not None
    assert reply.within_s == 0.25
    assert WordCodec(KEY).decode(reply.data) == StubHere(guid_of("1"), RECORD)
    reply = one.hear(0.0, WALL_MS, sealed(call(2, kind=DirectoryCall)))
    assert reply is not None
    assert WordCodec(KEY).decode(reply.data) == DirectoryHere(guid_of("2"), "192.0.2.1:2181/site")
    assert (one.counters.heard, one.counters.answered, dict(one.counters.ignored)) == (2, 2, {})


PING = StubPing("c", Parent("", "tcp://127.0.0.1:1/" + guid_of("x")))


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "seal"),
        (b"hello, who is there?", "seal"),
        (sealed(call(), OTHER_KEY), "seal"),
        (sealed(call())[:-1], "seal"),
        (b"x" * (MAX_DATAGRAM_BYTES + 1), "size"),
        (deploy_codec(KEY).encode(PING, ""), "version"),
        (sealed(StubHere(guid_of("0"), RECORD)), "other"),
        (sealed(call(kind=DirectoryCall)), "other"),
        (sealed(call(sent_ms=WALL_MS - int(MAX_AGE_S * 1000) - 1)), "age"),
        (sealed(call(sent_ms=WALL_MS + int(MAX_AGE_S * 1000) + 1)), "age"),
    ],
)
def test_what_is_none_of_ours_is_ignored_and_counted(data: bytes, cause: str) -> None:
    one = ears()
    assert one.hear(0.0, WALL_MS, data) is None
    assert dict(one.counters.ignored) == {cause: 1}
    assert one.hear(0.0, WALL_MS, sealed(call())) is not None, "it goes on hearing"


def test_a_replay_is_ignored_as_long_as_its_call_would_be_believed() -> None:
    one = ears()
    early = sealed(call(sent_ms=WALL_MS + int(MAX_AGE_S * 1000)))  # made by a clock that is ahead
    assert one.hear(0.0, WALL_MS, early) is not None
    for after_s in (0.0, 1.0, MAX_AGE_S, 2 * MAX_AGE_S - 0.001):
        assert one.hear(after_s, WALL_MS + int(after_s * 1000), early) is None
    assert one.counters.ignored["replay"] == 4
    assert one.hear(2 * MAX_AGE_S + 1, WALL_MS + int((2 * MAX_AGE_S + 1) * 1000), early) is None
    assert one.counters.ignored["age"] == 1


def test_a_flood_of_genuine_calls_is_answered_at_a_bounded_rate() -> None:
    one = ears()
    burst = [one.hear(100.0, WALL_MS, sealed(call(number))) for number in range(100)]
    assert sum(reply is not None for reply in burst) == ANSWERS_PER_S
    assert one.counters.ignored["rate"] == 100 - ANSWERS_PER_S
    later = [one.hear(100.5, WALL_MS, sealed(call(number))) for number in range(100, 200)]
    assert sum(reply is not None for reply in later) == ANSWERS_PER_S / 2


def test_what_is_remembered_has_a_bound_and_is_forgotten() -> None:
    one = ears()
    for number in range(MAX_NONCES):
        assert one.hear(number / ANSWERS_PER_S, WALL_MS, sealed(call(number))) is not None
    at = MAX_NONCES / ANSWERS_PER_S
    assert one.hear(at, WALL_MS, sealed(call(-1))) is None
    assert one.counters.ignored["rate"] == 1
    assert one.hear(at + 2 * MAX_AGE_S, WALL_MS, sealed(call(-1))) is not None


def test_who_has_nothing_to_say_says_nothing() -> None:
    one = Ears(KEY)
    assert one.hear(0.0, WALL_MS, sealed(call())) is None
    assert one.counters.ignored["other"] == 1


def test_the_largest_record_fits_a_datagram_and_nothing_larger_is_sent_or_taken() -> None:
    path = "/" + "/".join(["d" * 63] * 8)[:511]
    address = "tcp://" + "a" * 180 + ":65535/" + "f" * 32
    largest = StubRecord("n" * 64, address, path, "f" * 32, "h" * 256, 2**53 - 1, "discovery")
    assert WordCodec(KEY).decode(sealed(StubHere(guid_of("x"), largest))) == StubHere(guid_of("x"), largest)
    with pytest.raises(ValueError, match=f"at most {MAX_DATAGRAM_BYTES} bytes"):
        sealed(DirectoryHere(guid_of("x"), "h" * 2000))
    with pytest.raises(BadFrame):
        WordCodec(KEY).decode(b"\0" * 65_000)


def test_a_nonce_that_is_none_is_refused() -> None:
    with pytest.raises(BadFrame, match="type"):
        WordCodec(KEY).decode(sealed(msgspec.structs.replace(call(), nonce="short")))
