"""What a server's packets say, in the words of the port; and that bytes which say nothing are called malformed.

The packets are those of tests/packets.py, or made with kazoo's own classes, as a server lays them out.
"""

from __future__ import annotations

import random
import struct

import pytest
from kazoo import exceptions as ke
from kazoo.protocol import serialization as s

from tests.packets import greeting, packet, text
from zk import kazoo_wire as wire
from zk.kazoo_wire import NO_SESSION, Malformed, Session
from zk.tree import (
    BadVersion,
    Check,
    Checked,
    Children,
    ConnectionLost,
    Create,
    Created,
    Delete,
    Deleted,
    Done,
    Existed,
    Exists,
    Get,
    Got,
    Listed,
    Multi,
    MultiFailed,
    NodeExists,
    NoNode,
    NotEmpty,
    Op,
    Refused,
    SessionExpired,
    Set,
    Stat,
    Written,
)

HEADER = struct.pack("!iqi", 7, 1234, 0)
STAT = struct.pack("!qqqqiiiqiiq", 11, 12, 1000, 2000, 3, 4, 5, 99, 6, 7, 13)
OURS = Stat(czxid=11, mzxid=12, version=3, children=7, owner=99, ctime_ms=1000, mtime_ms=2000)
PAIR = Multi((Check("/a", 1), Delete("/b", 2)))


@pytest.mark.parametrize(
    ("op", "body", "expected"),
    [
        (Get("/a"), s.write_buffer(b"data") + STAT, Got(b"data", OURS)),
        (Get("/a"), s.write_buffer(None) + STAT, Got(b"", OURS)),
        (Exists("/a"), STAT, Existed(OURS)),
        (Children("/"), struct.pack("!i", 2) + text("b") + text("a-long-name"), Listed(("a-long-name", "b"))),
        (Children("/"), struct.pack("!i", 0), Listed(())),
        (Create("/a", sequence=True), text("/root/a0000000001") + STAT, Created("/a0000000001", OURS)),
        (Set("/a", b""), STAT, Written(OURS)),
        (Delete("/a"), b"", Deleted()),
        (
            Multi((Create("/c"), Set("/a", b""), Delete("/b"), Check("/d", 1))),
            b"".join(
                (
                    s.MultiHeader(1, False, -1).serialize() + text("/root/c"),
                    s.MultiHeader(5, False, -1).serialize() + STAT,
                    s.MultiHeader(2, False, -1).serialize(),
                    s.MultiHeader(13, False, -1).serialize(),
                    s.MultiHeader(-1, True, -1).serialize(),
                )
            ),
            Done((Created("/c", None), Written(OURS), Deleted(), Checked())),
        ),
    ],
    ids=str,
)
def test_an_answer_is_read(op: Op, body: bytes, expected: object) -> None:
    assert wire.outcome(op, "/root", 0, HEADER + body) == expected
    if body:
        with pytest.raises(Malformed, match=f"expected the answer to {type(op).__name__}"):
            wire.outcome(op, "/root", 0, HEADER + body[: len(body) - 5])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (-101, NoNode),
        (-110, NodeExists),
        (-103, BadVersion),
        (-111, NotEmpty),
        (-112, SessionExpired),
        (-118, ConnectionLost),
        (-4, ConnectionLost),
        (-102, Refused),
        (-4711, Refused),
    ],
)
def test_an_error_is_translated(error: int, expected: type[Exception]) -> None:
    outcome = wire.outcome(Get("/a"), "", error, HEADER)
    assert type(outcome) is expected
    assert expected is not Refused or str(error) in str(outcome)


def test_a_znode_that_is_not_there_does_not_exist() -> None:
    assert wire.outcome(Exists("/a"), "", ke.NoNodeError.code, HEADER) == Existed(None)


def failed(*codes: int) -> object:
    body = b"".join(s.MultiHeader(-1, False, code).serialize() + struct.pack("!i", code) for code in codes)
    return wire.outcome(PAIR, "", 0, HEADER + body + bytes(s.MultiHeader(-1, True, -1).serialize()))


def test_of_a_multi_the_operation_that_failed_is_told() -> None:
    told = failed(0, ke.BadVersionError.code)
    assert isinstance(told, MultiFailed)
    assert (told.index, type(told.cause), told.path) == (1, BadVersion, "/b")


@pytest.mark.parametrize("error", [ke.SessionExpiredError, ke.SessionMovedError, ke.ConnectionLoss])
def test_the_end_of_the_session_is_no_failed_operation(error: type[ke.ZookeeperError]) -> None:
    """A server that no longer knows the session, or that has given it to another server, says so of each operation of a
    Multi by itself; that is no conflict, and nobody who looks for one may take it for that."""
    told = failed(error.code, ke.RuntimeInconsistency.code)
    assert isinstance(told, SessionExpired if error is ke.SessionExpiredError else ConnectionLost)


def test_a_multi_with_fewer_results_than_operations_is_malformed() -> None:
    with pytest.raises(Malformed):
        failed(0)


def test_requests_name_paths_below_the_root() -> None:
    assert wire.request(1, Get("/"), "") == request(1, 4, text("/") + b"\0")
    assert wire.request(1, Get("/", watch=True), "/r") == request(1, 4, text("/r") + b"\1")
    assert wire.request(2, Exists("/a"), "/r") == request(2, 3, text("/r/a") + b"\0")
    assert wire.sync(3, "") == request(3, 9, text("/"))
    assert wire.goodbye(4) == request(4, -11, b"")
    assert request(-2, 11, b"") == wire.PING


def request(xid: int, kind: int, body: bytes) -> bytes:
    return packet(struct.pack("!ii", xid, kind) + body)


def test_greetings() -> None:
    session = Session(77, b"p" * 16)
    asked, _ = s.Connect.deserialize(wire.greet(session, 1.5, 0)[4:], 8)  # a request has the last zxid in between
    assert wire.greet(NO_SESSION, 10, 5)[4:16] == struct.pack("!iq", 0, 5)
    assert (asked.session_id, asked.passwd, asked.time_out) == (77, b"p" * 16, 1500)
    granted = greeting(77, 4000, b"p" * 16)[4:]
    assert wire.greeting(granted) == (session, 4.0, False)
    assert wire.greeting(granted[:-1] + b"\1").read_only
    with pytest.raises(Malformed, match="expected a greeting, found 5 bytes"):
        wire.greeting(b"HTTP/")


@pytest.mark.parametrize(
    ("kind", "of_data", "of_children"), [(1, True, False), (2, True, True), (3, True, False), (4, False, True)]
)
def test_events_say_which_watches_fired(kind: int, of_data: bool, of_children: bool) -> None:
    assert wire.event(HEADER + struct.pack("!ii", kind, 3) + text("/a")) == ("/a", of_data, of_children)


@pytest.mark.parametrize("body", [b"", struct.pack("!ii", 9, 3) + text("/a"), struct.pack("!iii", 1, 3, -1)], ids=repr)
def test_an_event_that_is_none_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed, match="a watch's event"):
        wire.event(HEADER + body)


def test_whatever_a_server_says_is_an_answer_or_malformed() -> None:
    rng = random.Random(1)
    ops: list[Op] = [Get("/a"), Exists("/a"), Children("/a"), Create("/a"), Set("/a", b""), Delete("/a"), PAIR]
    read = 0

    def outcome(body: bytes) -> object:
        return wire.outcome(rng.choice(ops), "", 0, HEADER + body)

    for _ in range(5000):
        body = rng.randbytes(rng.randrange(150)) if rng.random() < 0.5 else bytes(rng.choices((0, 0, 0, 1, 255), k=120))
        for call in (wire.greeting, wire.header, wire.event, outcome):
            try:
                call(body)
                read += 1
            except Malformed:
                pass
    assert 0 < read < 20_000
