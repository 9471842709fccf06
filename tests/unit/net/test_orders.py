"""What the keeper tells the network's process."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from fabric.net import orders
from fabric.net.orders import Giver, NotTaken, Order, Taker
from fabric.net.rules import Rule, cut

CUT = cut(["a"], ["b"])


@pytest.fixture
def giver() -> Iterator[Giver]:
    made = Giver()
    yield made
    made.close()


def taker(giver: Giver, now: Order | None = None) -> Taker:
    return Taker(giver._theirs.dup().detach(), now or giver.now)


def test_when_rules_are_given_they_hold(giver: Giver) -> None:
    end = taker(giver)
    held = threading.Event()

    def obey() -> None:
        while not end.take():
            pass
        if end.now.rules == CUT:
            held.set()

    thread = threading.Thread(target=obey)
    thread.start()
    giver.give(CUT)
    thread.join()
    assert held.is_set()
    end.close()


def test_without_an_answer_it_says_so_and_the_next_process_begins_with_them(
    giver: Giver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "TAKEN_WAIT_S", 0.05)
    with pytest.raises(NotTaken, match="did not answer within"):
        giver.give(CUT)
    end = taker(giver)
    assert end.now.rules == CUT
    end.close()


def test_the_last_order_counts_and_carries_everything(giver: Giver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "TAKEN_WAIT_S", 0.0)
    end = taker(giver, Order())
    assert not end.take()
    giver.know({"a": 1})
    with pytest.raises(NotTaken):
        giver.give(CUT)
    giver.know({"a": 1, "b": 2})
    assert end.take()
    assert (end.now.rules, end.now.pids) == (CUT, {"a": 1, "b": 2})
    end.close()


def test_an_answer_to_an_older_order_is_none_to_this_one(giver: Giver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "TAKEN_WAIT_S", 0.05)
    end = taker(giver)
    with pytest.raises(NotTaken):
        giver.give(CUT)
    end.take()
    with pytest.raises(NotTaken):
        giver.give(())
    end.close()


def test_rules_that_do_not_fit_are_refused(giver: Giver) -> None:
    many = tuple(f"node-with-a-long-name-{number:06d}" for number in range(6_000))
    with pytest.raises(NotTaken, match="name groups instead"):
        giver.give((Rule(many, ("a",), CUT[0].verdict),))
    assert giver.now.rules == ()


def test_who_does_not_listen_does_not_hold_the_keeper_up(giver: Giver) -> None:
    for _ in range(2_000):
        giver.know({f"r1c{number:02d}": number for number in range(200)})
    assert len(giver.now.pids) == 200
