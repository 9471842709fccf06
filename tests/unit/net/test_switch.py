"""The switch with sockets for taps: who gets which packet, and when."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address
from random import Random

import pytest

from fabric.net import switch
from fabric.net.orders import Giver, NotTaken, Taker
from fabric.net.rules import Names, Rule, Verdict, cut
from fabric.net.switch import Switch

NAMES = Names(("a", "b", "c"))
ADDRESSES = {name: IPv4Address(f"10.91.0.{number}") for number, name in enumerate(NAMES.endpoints, start=1)}


class Bench:
    def __init__(self) -> None:
        self.now = 100.0
        self.giver = Giver()
        pairs = {
            name: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            for name in NAMES.endpoints
        }
        self.inside = {name: mine for name, (mine, _) in pairs.items()}
        self.taps = {name: theirs for name, (_, theirs) in pairs.items()}
        self.orders = Taker(self.giver._theirs.dup().detach(), self.giver.now)
        fds = {name: tap.fileno() for name, tap in self.taps.items()}
        self.switch = Switch(NAMES, fds, ADDRESSES, self.orders, lambda: self.now, Random(1))

    def rules(self, *rules: Rule) -> None:
        with pytest.raises(NotTaken):  # as nobody answers while this thread waits
            self.giver.give(rules)

    def send(self, source: str, target: str, text: str = "hello", version: int = 4) -> None:
        head = bytes([version << 4]) + bytes(11) + ADDRESSES[source].packed
        where = ADDRESSES[target].packed if target in ADDRESSES else IPv4Address(target).packed
        self.inside[source].send(head + where + text.encode())

    def turn(self, now: float | None = None) -> None:
        self.now = now or self.now
        self.switch.turn(0.0)

    def got(self, name: str) -> list[str]:
        found = []
        while True:
            try:
                found.append(os.read(self.inside[name].fileno(), 65535)[20:].decode())
            except BlockingIOError:
                return found

    def close(self) -> None:
        for one in (*self.inside.values(), *self.taps.values(), self.giver, self.orders, self.switch):
            one.close()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr("fabric.net.orders.TAKEN_WAIT_S", 0.0)
    made = Bench()
    yield made
    made.close()


def test_a_packet_goes_where_it_is_addressed(bench: Bench) -> None:
    bench.send("a", "b")
    bench.turn()
    assert {name: bench.got(name) for name in NAMES.endpoints} == {"a": [], "b": ["hello"], "c": []}


@pytest.mark.parametrize(("target", "version"), [("10.91.9.9", 4), ("b", 6)])
def test_what_has_no_way_is_lost(bench: Bench, target: str, version: int) -> None:
    bench.send("a", target, version=version)
    bench.inside["a"].send(b"short")
    bench.turn()
    assert bench.got("b") == []
    bench.send("a", "b", "next")
    bench.turn()
    assert bench.got("b") == ["next"]


def test_rules_hold_from_the_turn_they_come_in_before_any_packet_of_it(bench: Bench) -> None:
    bench.rules(*cut(["a"], ["b"]))
    bench.send("a", "b", "lost")
    bench.send("a", "c", "heard")
    bench.turn()
    assert (bench.got("b"), bench.got("c")) == ([], ["heard"])
    bench.rules()
    bench.send("a", "b", "heard")
    bench.turn()
    assert bench.got("b") == ["heard"]


def test_what_is_late_waits_its_time_in_order(bench: Bench) -> None:
    bench.rules(Rule(("a",), ("b",), Verdict(delay_ms=500)))
    bench.send("a", "b", "first")
    bench.turn()
    bench.send("a", "b", "second")
    bench.turn(100.2)
    assert bench.got("b") == []
    bench.turn(100.6)
    assert bench.got("b") == ["first"]
    bench.turn(100.8)
    assert bench.got("b") == ["second"]


def test_after_new_rules_nothing_waits_for_what_waits(bench: Bench) -> None:
    bench.rules(Rule(("a",), ("b",), Verdict(delay_ms=5000)))
    bench.send("a", "b", "late")
    bench.turn()
    bench.rules(Rule(("a",), ("b",), Verdict(delay_ms=10)))
    bench.send("a", "b", "soon")
    bench.turn(100.1)
    bench.turn(100.2)
    assert bench.got("b") == ["soon"]
    bench.turn(105.0)
    assert bench.got("b") == ["late"]


def test_it_holds_so_much_and_no_more(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch, "MAX_HELD_BYTES", 60)
    bench.rules(Rule(("a",), ("b",), Verdict(delay_ms=1000)))
    for number in range(4):
        bench.send("a", "b", f"{number}")
    bench.turn()
    bench.turn(101.0)
    assert bench.got("b") == ["0", "1"]


def test_a_burst_leaves_the_others_their_turn(bench: Bench) -> None:
    for number in range(switch.BURST + 5):
        bench.send("a", "b", f"{number}")
    bench.send("c", "b", "c")
    bench.turn()
    first = bench.got("b")
    assert len(first) == switch.BURST + 1
    assert "c" in first
    bench.turn()
    assert len(bench.got("b")) == 5
