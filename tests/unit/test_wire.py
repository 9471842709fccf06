"""The wire: messages survive it, and whatever is not a message is refused with its cause."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.messages import (
    PROTOCOL,
    AskOffer,
    FindHolders,
    LogText,
    NodeAnswer,
    NodeCommand,
    RackAnswer,
    RackCall,
    Reserve,
    Submit,
)
from fabric.resources import Resources
from fabric.wire import MAX_FRAME_BYTES, BadFrame, Codec

KEY = b"k" * 32
NEED = Resources(4, 8192, 40960)
EXAMPLES = [
    Submit("c1", "d-abcdef12", 5, 3, 0),
    RackCall("c1", 700, everyone=AskOffer("d-abcdef12", NEED, 50, 7)),
    RackCall(
        "c1", 700, commands=(NodeCommand("n1", Reserve("d-abcdef12", 9, 1, 7, NEED, "0-3", 20_000)),)
    ),
    RackAnswer("c1", "r1", True, (), ("n2",), ("n3",), 12),
    NodeAnswer("c1", "n1", LogText(True, b"\x00\xffoutput")),
    FindHolders("c1", "b3:" + "0" * 64, 2, ("s1",), "n1"),
]


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_messages_survive_the_wire(message, key):
    codec = Codec(key)
    assert codec.decode(codec.encode(message, "abc123")) == ("abc123", message)


def cause(frame: bytes, key: bytes | None = None) -> str:
    with pytest.raises(BadFrame) as caught:
        Codec(key).decode(frame)
    return caught.value.cause


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(noise: bytes):
    assert cause(noise) in {"msgpack", "type", "version"}
    assert cause(noise, KEY) == "seal"


def test_every_truncation_of_a_message_is_refused():
    frame = Codec().encode(EXAMPLES[1], "abc")
    for length in range(len(frame)):
        assert cause(frame[:length]) in {"msgpack", "type"}


def test_a_huge_frame_is_refused_before_it_is_read():
    assert cause(b"\x00" * (MAX_FRAME_BYTES + 1)) == "size"


def test_another_clusters_seal_and_a_changed_byte_are_refused():
    frame = bytearray(Codec(KEY).encode(EXAMPLES[0], "abc"))
    assert cause(bytes(frame), b"x" * 32) == "seal"
    frame[-1] ^= 1
    assert cause(bytes(frame), KEY) == "seal"


def test_another_major_version_is_refused_and_a_minor_one_with_new_fields_is_read():
    plain = {"type": "Submitted", "call": "c", "taken": True, "reason": "", "new_in_1_7": [1, 2]}
    assert cause(msgpack.packb([PROTOCOL[0] + 1, 0, "", plain])) == "version"
    _to, message = Codec().decode(msgpack.packb([PROTOCOL[0], 7, "", plain]))
    assert message.taken is True


@pytest.mark.parametrize(
    "content",
    [
        {"type": "Submit", "call": "c"},
        {"type": "Nonsense"},
        {"type": "Submit", "call": "c", "deployment": "../../etc", "accepted_ms": 1, "considered": 1, "load": 0},
        {"type": "Submit", "call": "c", "deployment": "d-abcdef12", "accepted_ms": "1", "considered": 1, "load": 0},
        {"type": "Submit", "call": "c" * 65, "deployment": "d-abcdef12", "accepted_ms": 1, "considered": 1, "load": 0},
        {"type": "Submit", "call": "c", "deployment": "d-abcdef12", "accepted_ms": -1, "considered": 1, "load": 0},
        [],
        None,
    ],
)
def test_wrong_content_is_refused(content):
    assert cause(msgpack.packb([*PROTOCOL, "", content])) == "type"


def test_a_message_too_large_for_any_peer_is_not_sent():
    with pytest.raises(ValueError, match="NodeAnswer: expected at most"):
        Codec().encode(NodeAnswer("c", "n1", LogText(True, b"x" * MAX_FRAME_BYTES)), "")
