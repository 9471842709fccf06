"""Who waits for which chunk: woken by that one, bounded, and forgotten when gone."""

from __future__ import annotations

import pytest

from fabric.images.errors import StoreBusy
from fabric.images.parking import Parked, Turn
from fabric.images.protocol import GetChunk

ONE, TWO = b"1" * 32, b"2" * 32


def turn(peer: int, chunk: bytes, number: int = 1) -> Turn:
    return peer, GetChunk(id=number, hash=chunk)


def test_a_chunk_wakes_those_who_wait_for_it_and_no_chunk_wakes_all() -> None:
    parked = Parked()
    turns = [turn(1, ONE), turn(2, ONE), turn(1, TWO)]
    for each in turns:
        parked.add(each)
    assert (parked.awaits(ONE), parked.awaits(TWO), parked.awaits(b"3" * 32), parked.awaits(None)) == (
        True,
        True,
        False,
        True,
    )
    assert parked.take(b"3" * 32) == []
    assert parked.take(ONE) == turns[:2]
    assert parked.take(ONE) == []
    parked.add(turns[0])
    assert parked.take(None) == [turns[2], turns[0]]
    assert not parked.awaits(None)


def test_only_so_many_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabric.images.parking.MAX_PARKED", 2)
    parked = Parked()
    parked.add(turn(1, ONE))
    parked.add(turn(2, TWO))
    with pytest.raises(StoreBusy, match="2 others wait"):
        parked.add(turn(3, ONE))
    parked.forget(turn(1, ONE))
    parked.add(turn(3, ONE))
    parked.take(ONE)
    parked.add(turn(3, TWO))
    assert len(parked.take(None)) == 2


def test_a_peer_that_is_gone_waits_for_nothing() -> None:
    parked = Parked()
    for each in (turn(1, ONE), turn(2, ONE), turn(1, TWO, 2), turn(1, TWO, 3)):
        parked.add(each)
    assert sorted(peer for peer, _ in parked.one_each()) == [1, 2]
    parked.gone(1)
    assert not parked.awaits(TWO)
    assert parked.take(None) == [turn(2, ONE)]
