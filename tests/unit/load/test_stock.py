"""What is asked for next: the weights, the bounds, and that a deployment has one open request at a time."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from fabric.load.stock import Mix, Standing, Stock


def filled(count: int) -> Stock:
    stock = Stock()
    for number in range(count):
        stock.begun(None)
        stock.ended(stock.accepted(None, f"d-{number}", 3), stands=True)
    return stock


def test_one_is_made_while_fewer_than_so_many_stand_or_are_made() -> None:
    stock, mix, rng = filled(2), Mix(0, 1, 1, 4), random.Random(1)
    for _ in range(2):
        assert stock.choose(mix, rng) == ("create", None)
        stock.begun(None)
    chosen = stock.choose(mix, rng)
    assert chosen is not None
    assert chosen[0] in ("scale", "delete")


def test_kinds_come_by_their_weights() -> None:
    stock, rng = filled(10), random.Random(2)
    drawn = Counter(choice[0] for _ in range(4000) if (choice := stock.choose(Mix(1, 2, 1, 10), rng)))
    assert drawn["scale"] == pytest.approx(2000, rel=0.1)
    assert drawn["create"] == pytest.approx(1000, rel=0.1)
    assert drawn["delete"] == pytest.approx(1000, rel=0.1)


def test_what_is_busy_is_not_chosen_and_no_more_than_twice_are_made() -> None:
    stock, mix, rng = filled(4), Mix(1, 1, 1, 4), random.Random(3)
    for one in stock.standing.values():
        stock.begun(one)
    assert stock.busy() == {"d-0", "d-1", "d-2", "d-3"}
    for _ in range(4):
        assert stock.choose(mix, rng) == ("create", None)
        stock.begun(None)
    assert stock.choose(mix, rng) is None
    stock.ended(stock.standing["d-2"], stands=True)
    chosen = stock.choose(mix, rng)
    assert chosen is not None
    assert chosen[1] is stock.standing["d-2"]


def test_after_a_create_in_vain_what_stands_is_changed_first() -> None:
    """However few stand: a fabric that is full would be asked for creates alone, for good."""
    stock, mix, rng = filled(2), Mix(0, 1, 1, 9), random.Random(4)
    stock.begun(None)
    stock.ended(stock.accepted(None, "d-9", 3), stands=False, in_vain=True)
    first = stock.choose(mix, rng)
    assert first is not None
    kind, one = first
    assert kind in ("scale", "delete")
    stock.begun(one)
    second = stock.choose(mix, rng)
    assert second is not None
    assert second[0] in ("scale", "delete"), "nothing has ended since"
    stock.begun(second[1])
    assert stock.choose(mix, rng) == ("create", None), "there is nothing else to ask for"
    assert one is not None
    stock.ended(one, stands=kind == "scale")
    assert stock.choose(mix, rng) == ("create", None), "there may be room now"


def test_what_was_refused_is_free_again_or_gone_and_what_ended_is_not_wanted() -> None:
    stock = filled(2)
    one, other = stock.standing.values()
    stock.begun(one)
    stock.refused(one, there=True)
    assert not stock.busy()
    stock.begun(other)
    stock.refused(other, there=False)
    assert list(stock.standing) == ["d-0"]
    assert stock.wanted("d-0", 2)
    assert not stock.wanted("d-0", 3)
    stock.ended(one, stands=False)
    assert stock.standing == {}
    assert not stock.wanted("d-0", 0)
    assert stock.wanted("somebody-else", 7)
    stock.begun(None)
    stock.refused(None, there=False)
    assert stock.making == 0
    assert isinstance(one, Standing)
