"""One connection without its socket: what its bytes mean, what breaks it, what is lost with it; and its pulse.

The server's bytes are those of tests/packets.py.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest

from tests.packets import STAT, fired, greeting, packet, reply, text
from zk.connection import (
    MAX_PACKET_BYTES,
    MAX_XID,
    Answered,
    Broken,
    Connection,
    Ended,
    Event,
    Expired,
    Fired,
    Pulse,
    Welcomed,
)
from zk.kazoo_wire import NO_SESSION, Session
from zk.tree import Children, ConnectionLost, Delete, Deleted, Exists, Get, Op, SessionExpired

OURS = Session(77, b"p" * 16)
NO_NODE = -101
CREATED, DELETED, CHANGED, CHILD = 1, 2, 3, 4


WELCOME = greeting(OURS.session_id, 4000, OURS.password)


def welcome(chroot: str = "", session: Session = NO_SESSION) -> Connection:
    connection = Connection(session, 10.0, 0, chroot)
    assert connection.receive(WELCOME) == [Welcomed(OURS, 4.0)]
    return connection


def ignore(_: Any) -> None:
    """Nobody waits for it."""


def shown(events: list[Event] | list[Answered | Fired]) -> list[str]:
    """What came, without the callbacks."""
    told = []
    for each in events:
        assert isinstance(each, Answered | Fired)
        told.append(f"fired {each.path}" if isinstance(each, Fired) else type(each.outcome).__name__)
    return told


# --- greetings ------------------------------------------------------------------------------------------------------


def test_no_request_before_the_welcome() -> None:
    connection = Connection(NO_SESSION, 10.0, 0)
    assert not connection.is_welcome
    assert connection.receive(WELCOME) == [Welcomed(OURS, 4.0)]
    assert connection.is_welcome


def test_an_old_servers_greeting_lacks_its_last_byte() -> None:
    said = greeting(OURS.session_id, 4000, OURS.password, tail=b"")
    assert Connection(NO_SESSION, 10.0, 0).receive(said) == [Welcomed(OURS, 4.0)]


def test_a_session_that_is_over() -> None:
    connection = Connection(OURS, 10.0, 9)
    assert connection.receive(greeting(0, 0)) == [Expired()]
    assert not connection.is_welcome


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (greeting(OURS.session_id, 4000, OURS.password, tail=b"\1"), "expected a server that takes writes"),
        (greeting(78, 4000), "expected session 0x4d, found 0x4e"),
        (packet(b"HTTP/1.1 400 Bad Request"), "expected a greeting"),
        (b"HTTP/1.1 400 Bad Request", "expected a packet of at most"),
        (struct.pack("!i", -1), "found one of -1"),
        (struct.pack("!i", MAX_PACKET_BYTES + 1), f"found one of {MAX_PACKET_BYTES + 1}"),
    ],
)
def test_a_greeting_that_is_none_breaks_the_connection(said: bytes, why: str) -> None:
    connection = Connection(OURS, 10.0, 9)
    (broken,) = connection.receive(said + WELCOME)
    assert isinstance(broken, Broken)
    assert why in broken.why
    assert connection.receive(WELCOME) == [], "nothing is read any more"
    assert not connection.is_welcome


def test_a_new_session_that_is_refused_breaks_the_connection() -> None:
    (broken,) = Connection(NO_SESSION, 10.0, 0).receive(greeting(0, 0))
    assert isinstance(broken, Broken)
    assert "expected a new session" in broken.why


# --- answers --------------------------------------------------------------------------------------------------------


def conversation() -> tuple[Connection, bytes, list[str]]:
    """A connection that has asked, what its server says to that, and what that means."""
    connection = welcome()
    connection.ask(Get("/a", watch=True), "", ignore)
    connection.ask(Children("/", watch=True), "", ignore)
    connection.ask(Get("/none", watch=True), "", ignore)
    connection.sync(ignore)
    connection.ask(Delete("/a"), "", ignore)
    said = (
        reply(1, text("data") + STAT)
        + reply(-2)
        + reply(2, struct.pack("!i", 1) + text("a"))
        + reply(3, error=NO_NODE)
        + reply(4, text("/"))
        + fired(DELETED, "/a")
        + fired(CHILD, "/")
        + reply(5)
    )
    return connection, said, ["Got", "Listed", "NoNode", "NoneType", "fired /a", "fired /", "Deleted"]


def test_answers_and_events_in_whatever_pieces_they_come() -> None:
    rng = random.Random(3)
    for _ in range(200):
        connection, said, expected = conversation()
        found: list[Event] = []
        while said:
            count = rng.choice((1, 3, 10, 100, 1000))
            found += connection.receive(said[:count])
            said = said[count:]
        assert shown(found) == expected


def test_an_answer_goes_to_whoever_asked() -> None:
    connection = welcome()
    heard: list[tuple[str, Any]] = []

    def hear(name: str) -> Callable[[Any], None]:
        return lambda outcome: heard.append((name, outcome))

    connection.ask(Delete("/a"), "", hear("first"))
    connection.ask(Delete("/b"), "", hear("second"))
    for event in connection.receive(reply(1) + reply(2, error=-112)):
        assert isinstance(event, Answered)
        event.done(event.outcome)
    assert [name for name, _ in heard] == ["first", "second"]
    assert heard[0][1] == Deleted()
    assert isinstance(heard[1][1], SessionExpired)
    assert heard[1][1].path == "/b"


@pytest.mark.parametrize(
    "said",
    [reply(2), reply(0), reply(-3), reply(1) + reply(1), packet(b"\0\0"), packet(b""), packet(bytes(15))],
    ids=["out of turn", "none", "no such xid", "twice", "short", "empty", "no header"],
)
def test_what_is_no_answer_to_what_was_asked_breaks_the_connection(said: bytes) -> None:
    connection = welcome()
    connection.ask(Delete("/a"), "", ignore)
    *_, broken = connection.receive(said)
    assert isinstance(broken, Broken)
    assert "expected" in broken.why
    assert not connection.is_welcome


def test_an_answer_that_cannot_be_read_is_none() -> None:
    connection = welcome()
    connection.ask(Get("/a", watch=True), "", ignore)
    connection.ask(Delete("/b"), "", ignore)
    (broken,) = connection.receive(reply(1, b"\0\0\1\0 not so long") + reply(2))
    assert isinstance(broken, Broken)
    assert "expected the answer to Get at /a, found" in broken.why
    assert shown(connection.lose()) == ["ConnectionLost", "ConnectionLost"]


def test_no_bytes_make_it_raise() -> None:
    rng = random.Random(5)
    for _ in range(2000):
        connection, said, _ = conversation()
        spoiled = bytearray(said)
        for _ in range(rng.randrange(1, 6)):
            spoiled[rng.randrange(len(spoiled))] = rng.choice((0, 1, 255, rng.randrange(256)))
        events = connection.receive(bytes(spoiled))
        assert not any(isinstance(event, Broken) for event in events[:-1]), "it is the last word"
        assert len(connection.lose()) + sum(isinstance(event, Answered) for event in events) >= 5


def test_numbers_begin_again_before_they_are_too_large() -> None:
    connection = welcome()
    connection._xid = MAX_XID - 1
    for _ in range(2):
        connection.ask(Delete("/a"), "", ignore)
    assert shown(connection.receive(reply(MAX_XID) + reply(1))) == ["Deleted", "Deleted"]


def test_the_last_transaction_seen_is_kept_for_the_next_server() -> None:
    connection = Connection(OURS, 10.0, 3)
    connection.receive(WELCOME)
    for _ in range(3):
        connection.ask(Delete("/a"), "", ignore)
    connection.receive(reply(1, zxid=8) + reply(2, zxid=-1) + fired(CREATED, "/x") + reply(3, zxid=7))
    assert connection.zxid == 8
    assert Connection(OURS, 10.0, connection.zxid).greet()[8:16] == struct.pack("!q", 8)


def test_a_goodbye_is_behind_all_that_was_asked_for() -> None:
    connection = welcome()
    connection.ask(Delete("/a"), "", ignore)
    connection.goodbye()
    assert [type(event) for event in connection.receive(reply(1) + reply(2))] == [Answered, Ended]
    assert connection.lose() == []


# --- watches --------------------------------------------------------------------------------------------------------


def armed(connection: Connection, op: Op, said: Callable[[int], bytes]) -> None:
    connection.ask(op, "/root", ignore)
    assert len(connection.receive(said(connection._xid))) == 1


def test_a_watch_fires_once_however_often_it_was_armed() -> None:
    connection = welcome("/root")
    for _ in range(2):
        armed(connection, Get("/a", watch=True), lambda xid: reply(xid, text("") + STAT))
        armed(connection, Exists("/", watch=True), lambda xid: reply(xid, STAT))
    assert connection.receive(fired(CHANGED, "/root/a")) == [Fired("/a")]
    assert connection.receive(fired(CHANGED, "/root/a")) == []
    assert connection.receive(fired(CHILD, "/root")) == [], "that is another watch"
    assert connection.receive(fired(CREATED, "/root")) == [Fired("/")]


def test_a_deletion_fires_the_watches_of_data_and_of_children() -> None:
    connection = welcome("/root")
    armed(connection, Exists("/a", watch=True), lambda xid: reply(xid, error=NO_NODE))
    armed(connection, Children("/a", watch=True), lambda xid: reply(xid, struct.pack("!i", 0)))
    assert connection.receive(fired(DELETED, "/root/a")) == [Fired("/a"), Fired("/a")]


def test_a_read_that_failed_or_did_not_ask_for_it_arms_nothing() -> None:
    connection = welcome("/root")
    armed(connection, Get("/a", watch=True), lambda xid: reply(xid, error=NO_NODE))
    armed(connection, Children("/a", watch=True), lambda xid: reply(xid, error=NO_NODE))
    armed(connection, Exists("/a"), lambda xid: reply(xid, STAT))
    assert connection.receive(fired(DELETED, "/root/a")) == []
    assert connection.lose() == []


def test_what_is_lost_with_a_connection_is_told_once() -> None:
    connection = welcome("/root")
    armed(connection, Exists("/a", watch=True), lambda xid: reply(xid, STAT))
    armed(connection, Children("/b", watch=True), lambda xid: reply(xid, struct.pack("!i", 0)))
    connection.ask(Exists("/c", watch=True), "/root", ignore)
    connection.sync(ignore)
    connection.goodbye()
    lost = connection.lose()
    assert shown(lost) == ["ConnectionLost", "ConnectionLost", "fired /b", "fired /a"]
    assert isinstance(lost[0], Answered)
    assert isinstance(lost[0].outcome, ConnectionLost)
    assert lost[0].outcome.path == "/c"
    assert connection.lose() == []
    assert connection.receive(reply(3, STAT)) == []


# --- the pulse ------------------------------------------------------------------------------------------------------


def test_a_ping_is_due_when_nothing_was_sent_for_a_third() -> None:
    pulse = Pulse(9.0, 100.0)
    assert 102.9 <= pulse.ping_at <= 103.0
    pulse.sent(101.7)
    pulse.heard(101.7)
    assert 104.6 <= pulse.ping_at <= 104.7
    assert pulse.next_at == pulse.ping_at


def test_pings_of_many_sessions_are_due_together() -> None:
    due = {Pulse(9.0, 100.0 + number / 1000).ping_at for number in range(1000)}
    assert 10 <= len(due) <= 12, "in a second, of the 32 moments in three"


def test_a_server_that_was_asked_for_nothing_is_not_silent() -> None:
    assert Pulse(9.0, 100.0).silent_at == math.inf


def test_an_idle_server_is_silent_two_thirds_after_its_last_word() -> None:
    pulse = Pulse(9.0, 100.0)
    pulse.sent(103.0)  # a ping
    assert pulse.silent_at == 106.0
    pulse.heard(103.1)
    assert pulse.silent_at == math.inf


def test_a_busy_clients_server_is_silent_two_thirds_after_its_last_word() -> None:
    pulse = Pulse(9.0, 100.0)
    for now in (100.1, 101.0, 102.0, 105.9):
        pulse.sent(now)
    assert pulse.silent_at == 106.0
    assert pulse.next_at == 106.0


def test_who_was_stopped_for_long_gives_its_server_a_third_to_answer() -> None:
    pulse = Pulse(9.0, 100.0)
    pulse.sent(150.0)
    assert pulse.silent_at == 153.0
