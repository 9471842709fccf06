"""The wire: messages survive it, and whatever is not a message is refused with its cause."""

from __future__ import annotations

import asyncio
import copy

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.commands import (
    MAX_LISTED,
    MAX_NODES,
    AskOffer,
    Confirm,
    HeldList,
    Holder,
    ListHeld,
    LogText,
    Offer,
    Progress,
    Reserve,
    Reserved,
    Stop,
)
from fabric.messages import (
    PROTOCOL,
    AnyMessage,
    FindHolders,
    LeaderHello,
    NodeAnswer,
    NodeCall,
    NodeCommand,
    NodeReport,
    NodeResult,
    RackAnswer,
    RackCall,
    Submit,
)
from fabric.ordinals import MAX_COUNT, format_ordinals
from fabric.records import Spec
from fabric.resources import Resources
from fabric.runtime.bus import Bus, new_context
from fabric.wire import MAX_FRAME_BYTES, BadFrame, Codec

KEY = b"k" * 32
NEED = Resources(4, 8192, 40960)
EXAMPLES = [
    Submit("c1", "d-abcdef12", 5, 3, 0),
    RackCall("c1", 700, everyone=AskOffer("d-abcdef12", NEED, 50, 7)),
    RackCall("c1", 700, commands=(NodeCommand("n1", Reserve("d-abcdef12", 9, 1, 7, NEED, "0-3", 20_000)),)),
    RackAnswer("c1", "r1", True, (), ("n2",), ("n3",), 12),
    NodeAnswer("c1", "n1", LogText(True, b"\x00\xffoutput")),
    NodeCall("c1", ListHeld(("b3:" + "0" * 64, "b3:" + "1" * 64))),
    FindHolders("c1", "b3:" + "0" * 64, 2, ("s1",), "n1", False),
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


def test_a_rack_of_the_largest_size_can_say_what_it_holds_in_one_message():
    some = tuple(range(MAX_LISTED))
    held = HeldList(some, (), (), 4, "tcp://198.51.100.100:50000", 1 << 50, 1000)
    answer = RackAnswer("c1", "r1", True, tuple(NodeResult(f"rack0001-s{n:05d}", held) for n in range(MAX_NODES)))
    assert Codec().decode(Codec().encode(answer, ""))[1] == answer


SPEC = Spec("web", "b3:" + "0" * 64, "Large", NEED, {"PORT": "0"}, "always")
SPREAD = format_ordinals(range(0, MAX_COUNT, 2))
"""Five thousand ranges: the longest text that ten thousand ordinals can make."""
ADDRESS = "tcp://127.0.0.1:1/00000000"
PROGRESS = Progress("0-3", "5", "6", SPREAD, (), 1, 2, None, 3, 4, 5, 6)
WITH_ORDINALS = [
    (NodeCall("c", Reserve("d-abcdef12", 9, 1, 7, NEED, SPREAD, 20_000)), ("command", "ordinals")),
    (NodeCall("c", Confirm("d-abcdef12", 9, 1, SPEC, SPREAD, ADDRESS)), ("command", "ordinals")),
    (NodeCall("c", Stop("d-abcdef12", 9, 1, SPREAD)), ("command", "ordinals")),
    (NodeAnswer("c", "n1", Reserved(SPREAD, MAX_COUNT, 0, 0, NEED, ())), ("answer", "granted")),
    *(
        (NodeReport("d-abcdef12", 9, "n1", "r1", PROGRESS), ("progress", field))
        for field in ("running", "waiting", "stopping", "refused")
    ),
]
OFFER = Offer(MAX_COUNT, NEED, NEED, False, 0, 2**53 - 1, MAX_COUNT, "vcpus", (Holder("d-abcdef12", NEED),))
HELLO = LeaderHello("r1", "compute", 2**53 - 1, ADDRESS, 1000)


def frame_with(message: object, path: tuple[str | int, ...], value: object) -> bytes:
    """The message as a peer would send it, but for one value."""
    content = copy.deepcopy(msgspec.to_builtins(message, builtin_types=(bytes,)))
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    assert path[-1] in inner
    inner[path[-1]] = value
    return msgpack.packb([*PROTOCOL, "", content])


@pytest.mark.parametrize(
    ("message", "path"), WITH_ORDINALS, ids=lambda value: value[-1] if type(value) is tuple else ""
)
@pytest.mark.parametrize("text", ["zzz", "9-1", "1,1", "10000", "0-3,", " 1", "1" * 70, "0-9999" * 20_000])
def test_what_are_no_ordinals_is_refused_on_the_wire(message, path, text):
    assert Codec().decode(frame_with(message, path, SPREAD))[1] is not None
    assert cause(frame_with(message, path, text)) == "type"


@pytest.mark.parametrize(
    ("message", "path", "value"),
    [
        (NodeAnswer("c", "n1", OFFER), ("answer", "oldest"), 2**53),
        (NodeAnswer("c", "n1", OFFER), ("answer", "count"), MAX_COUNT + 1),
        (NodeAnswer("c", "n1", OFFER), ("answer", "short"), "x" * 65),
        (RackAnswer("c", "r1", True), ("messages",), 2**31),
        (RackAnswer("c", "r1", True), ("silent",), ["n"] * 5_001),
        (RackAnswer("c", "r1", True), ("silent",), ["n" * 257]),
        (EXAMPLES[-1], ("salt",), "x" * 257),
        (EXAMPLES[-1], ("exclude",), ["s"] * 5_001),
        (NodeReport("d-abcdef12", 9, "n1", "r1", PROGRESS), ("progress", "reads"), 2**31),
        (NodeReport("d-abcdef12", 9, "n1", "r1", PROGRESS), ("progress", "done_bytes"), 2**53),
        (NodeReport("d-abcdef12", 9, "n1", "r1", PROGRESS), ("node",), "n1\n"),
        (HELLO, ("interval_ms",), 99),
        (HELLO, ("interval_ms",), 60_001),
        (HELLO, ("epoch",), 2**53),
    ],
)
def test_what_is_out_of_bounds_is_refused(message, path, value):
    assert Codec().decode(Codec().encode(message, ""))[1] == message
    assert cause(frame_with(message, path, value)) == "type"


def every_text(kind: msgspec.inspect.Type, path: str, seen: set[str]):
    """(path, type) of each text, list and mapping in what a frame may hold."""
    match kind:
        case msgspec.inspect.StructType():
            if kind.cls.__qualname__ not in seen:
                seen.add(kind.cls.__qualname__)
                for field in kind.fields:
                    yield from every_text(field.type, f"{kind.cls.__name__}.{field.name}", seen)
        case msgspec.inspect.UnionType():
            for one in kind.types:
                yield from every_text(one, path, seen)
        case msgspec.inspect.VarTupleType():
            yield path, kind
            yield from every_text(kind.item_type, f"{path}[]", seen)
        case msgspec.inspect.DictType():
            yield path, kind
            yield from every_text(kind.key_type, f"{path} keys", seen)
            yield from every_text(kind.value_type, f"{path} values", seen)
        case msgspec.inspect.StrType():
            yield path, kind


def test_every_text_and_every_list_of_every_message_has_a_bound():
    found = list(every_text(msgspec.inspect.type_info(AnyMessage), "", set()))
    assert len(found) > 60
    assert [path for path, kind in found if kind.max_length is None and not getattr(kind, "pattern", None)] == []


def test_a_message_that_no_frame_can_hold_is_dropped_and_logged_once(caplog):
    async def main() -> None:
        context = new_context()
        bus = Bus(context, Codec(), "0" * 8, on_message=lambda _sender, _message: None)
        nobody = f"tcp://127.0.0.1:1/{'0' * 16}"
        try:
            for _ in range(3):
                bus.send(nobody, RackAnswer("c", "r1", True, messages=2**64))
            bus.send(nobody, RackAnswer(object(), "r1", True))
            assert bus.counters.dropped == {"encoding": 4}
            assert not bus.counters.sent
        finally:
            bus.close()
            context.destroy()

    asyncio.run(main())
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "RackAnswer to tcp://" in caplog.text
