"""Step 7: who leads storage racks is read from ZooKeeper once, and again when it turns out wrong or old."""

from __future__ import annotations

import random

from fabric import effects as fx
from fabric.messages import FindHolders, HolderRef, Holders
from fabric.records import Leader, encode
from fabric.resources import ZERO
from fabric.roles.finder import Found, HolderFinder
from fabric.roles.outbox import Outbox
from fabric.roles.settings import Identity, Settings
from zk import paths
from zk.tree import Children, Get, Got, Listed, NoNode, Outcome, Stat

SETTINGS = Settings()
RACKS = ("r1", "r2", "r3")


def digest(number: int) -> str:
    return f"b3:{number:064x}"


class Asking:
    """A finder, and a ZooKeeper with a leader in each of some racks."""

    def __init__(self) -> None:
        self.out = Outbox()
        self.found: list[Found] = []
        here = Identity("c1", "r1", "compute", "0a" * 4, "tcp://c1:1/0a0a0a0a", ZERO, "none", "localhost", 1)
        self.finder = HolderFinder(here, SETTINGS, random.Random(1), self.out, lambda now, one: self.found.append(one))
        self.racks = RACKS
        self.generation = 1
        self.reads = 0
        self.asked: list[tuple[str, FindHolders]] = []

    def address(self, rack: str) -> str:
        return f"tcp://s-{rack}-{self.generation}:1/0b0b0b0b"

    def turn(self, now: float) -> None:
        """Answers what is read until nothing is; notes who is asked."""
        while effects := self.out.take():
            for effect in effects:
                if isinstance(effect, fx.CallTree):
                    self.reads += 1
                    self.finder.on_tree(now, effect.token, self.read(effect))
                elif isinstance(effect, fx.Send):
                    assert isinstance(effect.message, FindHolders)
                    self.asked.append((effect.to, effect.message))

    def read(self, effect: fx.CallTree) -> Outcome:
        if isinstance(effect.op, Children):
            return Listed(self.racks)
        assert isinstance(effect.op, Get)
        rack = next((one for one in self.racks if paths.leader("storage", one) == effect.op.path), None)
        if rack is None:
            return NoNode(effect.op.path)
        record = encode(Leader(f"s-{rack}", rack, "0b" * 4, self.address(rack), 0))
        return Got(record, Stat(1, 1, 0, 0, 1, 0, 0))

    def search(self, now: float, number: int) -> None:
        self.finder.search(now, digest(number), ())
        self.turn(now)

    def answer(self, now: float, leads: bool = True) -> None:
        """Of the one that was asked last."""
        _, ask = self.asked[-1]
        chosen = (HolderRef("s9", "r9", "tcp://s9:1"),) if leads else ()
        self.finder.on_holders(now, Holders(ask.call, ask.digest, leads, chosen, ("s9",) * leads, (), 1))
        self.turn(now)

    def tick(self, now: float) -> None:
        self.finder.tick(now)
        self.turn(now)


def known() -> Asking:
    """All leaders were read."""
    asking = Asking()
    for number in range(50):
        asking.search(1.0, number)
        asking.answer(1.0)
    assert asking.reads == 1 + len(RACKS)
    asking.reads = 0
    return asking


def test_a_search_reads_nothing_when_the_leaders_are_known() -> None:
    asking = known()
    asking.search(2.0, 100)
    asking.answer(2.0)
    assert asking.reads == 0
    assert asking.found[-1].holders
    assert (asking.found[-1].tree_reads, asking.found[-1].messages) == (0, 2)


def test_a_leader_that_leads_no_more_is_read_anew() -> None:
    asking = known()
    asking.generation = 2
    asking.search(2.0, 100)
    asking.answer(2.0, leads=False)
    assert asking.reads == 0
    asking.tick(3.0)
    assert asking.reads == 2
    assert asking.asked[-1][0] in {asking.address(rack) for rack in RACKS}
    asking.answer(3.0)
    assert asking.found[-1].holders


def test_a_leader_that_does_not_answer_is_read_anew_and_passed_over() -> None:
    asking = known()
    asking.racks = RACKS[:2]
    asking.search(2.0, 100)
    silent = asking.asked[-1][0]
    asking.tick(2.0 + SETTINGS.command_wait_s)
    assert asking.reads == 0, "a pause comes first"
    asking.tick(3.0 + SETTINGS.command_wait_s)
    assert asking.reads == 2
    assert asking.asked[-1][0] != silent


def test_an_old_answer_does_not_put_in_doubt_what_was_read_since() -> None:
    asking = known()
    asking.search(2.0, 100)
    asking.search(2.0, 101)
    asking.answer(2.0, leads=False)
    asking.tick(3.0)
    reads = asking.reads
    assert reads == 2
    late = asking.asked[-3] if len(asking.asked) > 2 else asking.asked[0]
    asking.finder.on_holders(3.0, Holders(late[1].call, late[1].digest, False, (), (), (), 1))
    asking.turn(3.0)
    asking.search(3.0, 102)
    assert asking.reads <= reads + 1, "the list of racks was kept"


def test_what_is_known_grows_old() -> None:
    asking = known()
    asking.search(1.0 + SETTINGS.storage_leaders_fresh_s, 100)
    assert asking.reads == 2
