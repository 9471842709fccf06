"""Who waits for which chunk: woken by that one, bounded, and forgotten when gone."""

from __future__ import annotations

import pytest

from fabric.images.errors import StoreBusy
from fabric.images.parking import Parked, Turn
from fabric.images.protocol import GetChunk

ONE, TWO = b"1" * 32, b"2" * 32


def turn(peer: bytes, chunk: bytes, number: int = 1) -> Turn:
    return peer, GetChunk(id=number, hash=chunk)


def test_a_chunk_wakes_those_who_wait_for_it_and_no_chunk_wakes_all() -> None:
    parked = Parked()
    turns = [turn(b"a", ONE), turn(b"b", ONE), turn(b"a", TWO)]
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
    parked.add(turn(b"a", ONE))
    parked.add(turn(b"b", TWO))
    with pytest.raises(StoreBusy, match="2 others wait"):
        parked.add(turn(b"c", ONE))
    parked.forget(turn(b"a", ONE))
    parked.add(turn(b"c", ONE))
    parked.take(ONE)
    parked.add(turn(b"c", TWO))
    assert len(parked.take(None)) == 2


def test_a_peer_that_is_gone_waits_for_nothing() -> None:
    parked = Parked()
    for each in (turn(b"a", ONE), turn(b"b", ONE), turn(b"a", TWO, 2), turn(b"a", TWO, 3)):
        parked.add(each)
    assert sorted(peer for peer, _ in parked.one_each()) == [b"a", b"b"]
    parked.gone(b"a")
    assert not parked.awaits(TWO)
    assert parked.take(None) == [turn(b"b", ONE)]
