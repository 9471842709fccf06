"""A later minor version of the protocol is understood by this one, on the wire and in ZooKeeper."""

from __future__ import annotations

import msgpack
import pytest

from fabric.messages import PROTOCOL, AnyMessage
from fabric.records import Deployment, Member, Spec, decode, encode
from fabric.resources import Resources
from fabric.runtime.newer import ADDED, NewerCodec, newer_op
from fabric.wire import Codec
from tests.unit.test_wire import EXAMPLES
from zk.tree import Create, Delete, Get, Multi, Set

KEY = b"k" * 32


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("message", EXAMPLES, ids=lambda one: type(one).__name__)
def test_messages_of_a_later_minor_version_are_understood(message: AnyMessage, key: bytes | None):
    frame = NewerCodec(key).encode(message, "00112233")
    assert Codec(key).decode(frame) == ("00112233", message)
    assert frame != Codec(key).encode(message, "00112233")
    assert NewerCodec(key).decode(Codec(key).encode(message, "")) == ("", message)


def test_a_later_message_says_so_and_has_what_nobody_knows():
    major, minor, _, whole = msgpack.unpackb(NewerCodec().encode(EXAMPLES[1], ""))
    assert (major, minor) == (PROTOCOL[0], PROTOCOL[1] + 1)
    assert whole["added_later"] == whole["everyone"]["added_later"] == ADDED["added_later"]
    assert "added_later" not in whole["everyone"]["resources"], "a plain map may be a user's"


def test_records_of_a_later_minor_version_are_understood():
    spec = Spec("web", "b3:" + "0" * 64, "Small", Resources(1, 2, 3), {"A": "b"}, "always")
    record = Deployment("d-abcdef12", "web", spec, 2, 2, policy="spread", created_ms=7, updated_ms=8)
    member = Member(
        node="n1", rack="r1", layer="compute", guid="00112233", address="tcp://h:1/00112233", data_endpoint="",
        total=Resources(1, 2, 3), driver="null", protocol=PROTOCOL, host="h", pid=7,
    )  # fmt: skip
    op = newer_op(Multi((Create("/m", encode(member)), Delete("/x"), Set("/d", encode(record), 3))))
    assert isinstance(op, Multi)
    made, untouched, written = op.ops
    assert isinstance(made, Create)
    assert isinstance(written, Set)
    assert b"added_later" in made.data
    assert decode(made.data, Member, "/m").protocol == (PROTOCOL[0], PROTOCOL[1] + 1)
    assert decode(written.data, Deployment, "/d") == record
    assert (untouched, newer_op(Get("/x"))) == (Delete("/x"), Get("/x"))
    assert newer_op(Set("/t", b"z1packed")) == Set("/t", b"z1packed")
