"""A storage agent's answers: what it has, and how its copies are."""

from __future__ import annotations

import random

import pytest

from fabric import effects as fx
from fabric.commands import Answer, Command, HeldList, ListHeld, Replicate, Replicating, Unable
from fabric.messages import NodeAnswer
from fabric.resources import ZERO
from fabric.roles.beats import Beats
from fabric.roles.outbox import Outbox
from fabric.roles.settings import Identity, Settings
from fabric.roles.storage import MAX_WAITING, Storage

HELD, DAMAGED, COPIED, UNKNOWN = ("b3:" + pair * 32 for pair in ("aa", "bb", "cc", "dd"))
SOURCES = ("tcp://h1-data", "tcp://h2-data")


class Bench:
    def __init__(self) -> None:
        identity = Identity(
            "s1", "r1", "storage", "0a" * 4, "tcp://s1/0a0a0a0a", ZERO, "none", "localhost", 1, "tcp://s1-data"
        )
        self.out = Outbox()
        beats = Beats(identity, random.Random(1), self.out)
        self.role = beats.worker = Storage(identity, Settings(), self.out, beats)
        self.role.on_store(fx.StoreChanged((HELD,), 500, 3, (DAMAGED,)))

    def ask(self, command: Command) -> tuple[Answer, list[fx.Effect]]:
        """The answer, and what else is to be done."""
        self.role.command(0.0, "tcp://leader/1", "c1", command)
        *others, send = self.out.take()
        assert isinstance(send, fx.Send)
        assert isinstance(send.message, NodeAnswer)
        return send.message.answer, others


def test_one_question_tells_of_many_images_what_is_here():
    one = Bench()
    one.ask(Replicate(COPIED, SOURCES))
    answer, others = one.ask(ListHeld((UNKNOWN, COPIED, DAMAGED, HELD)))
    assert others == []
    assert answer == HeldList((3,), (1,), (2,), 1, "tcp://s1-data", 500, 3)


def test_a_copy_is_begun_once_and_tells_its_end():
    one = Bench()
    answer, others = one.ask(Replicate(COPIED, SOURCES))
    assert answer == Replicating(False, "")
    assert [type(effect) for effect in others] == [fx.FetchImage]
    assert one.ask(Replicate(COPIED, SOURCES)) == (Replicating(False, ""), [])
    one.role.on_failed(fx.ImageFailed(COPIED, "node", "no holder is left"))
    assert one.ask(ListHeld((COPIED,)))[0].copying == ()
    assert one.ask(Replicate(COPIED, SOURCES)) == (Replicating(False, "no holder is left"), [])
    assert len(one.ask(Replicate(COPIED, SOURCES))[1]) == 1, "told once, a failure is over: the next one begins anew"
    one.role.on_ready(fx.ImageReady(COPIED, (), (), 1, 1, 0, False))
    one.role.on_store(fx.StoreChanged((COPIED, HELD), 400, 0))
    assert one.ask(Replicate(COPIED, SOURCES)) == (Replicating(True, ""), [])


def test_a_copy_without_sources_left_ends_instead_of_waiting_for_an_hour():
    one = Bench()
    one.ask(Replicate(COPIED, SOURCES))
    one.role.on_holders_wanted(fx.HoldersWanted(COPIED, ("source-0",)))
    assert one.out.take() == [fx.MoreHolders(COPIED, ())]


@pytest.mark.parametrize("failed", [True, False])
def test_copies_are_bounded_and_failures_that_nobody_asks_about_take_no_place(failed: bool):
    one = Bench()
    for number in range(MAX_WAITING):
        one.ask(Replicate(f"b3:{number:064x}", SOURCES))
        if failed:
            one.role.on_failed(fx.ImageFailed(f"b3:{number:064x}", "node", "no holder is left"))
    answer, _ = one.ask(Replicate(COPIED, SOURCES))
    assert answer == (Replicating(False, "") if failed else Unable("too many images are being copied"))
