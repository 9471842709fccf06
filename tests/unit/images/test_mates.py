"""Whom to ask within a rack: nobody waits in a circle, one node a stripe asks the holders, the work is shared."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.images.mates import FAN_OUT, LEASE_S, MAX_LINKS, STRIPES, MateTable, bits, links, parents
from fabric.images.protocol import Holder

DIGEST = "b3:" + 64 * "a"
NAMES = [f"c{number}" for number in range(40)]


def mate(number: int, rack: str = "r1", port: int = 1) -> Holder:
    return Holder(f"c{number}", rack, f"tcp://c{number}:{port}")


def test_one_node_of_each_stripe_asks_the_holders() -> None:
    whole = {name: parents(DIGEST, name, NAMES) for name in NAMES}
    for stripe in range(STRIPES):
        assert sum(found[stripe] is None for found in whole.values()) == 1
        children = Counter(found[stripe] for found in whole.values() if found[stripe])
        assert max(children.values()) <= FAN_OUT
    given = Counter(parent for found in whole.values() for parent in found if parent)
    assert max(given.values()) < 4 * STRIPES, "nobody sends much more than it takes"
    assert parents(DIGEST, "c1", []) == (None,) * STRIPES


@settings(max_examples=200, deadline=None)
@given(views=st.lists(st.sets(st.sampled_from(NAMES[:12])), min_size=12, max_size=12))
def test_nobody_waits_in_a_circle_whoever_knows_whom(views: list[set[str]]) -> None:
    found = {name: parents(DIGEST, name, known) for name, known in zip(NAMES[:12], views, strict=True)}
    for stripe in range(STRIPES):
        for name in found:
            seen, at = {name}, found[name][stripe]
            while at is not None:
                assert at not in seen
                seen.add(at)
                at = found[at][stripe]


def test_links_are_bounded_and_have_all_parents() -> None:
    for name in NAMES:
        found = links(DIGEST, name, NAMES)
        assert len(found) == MAX_LINKS
        assert name not in found
        assert {parent for parent in parents(DIGEST, name, NAMES) if parent} <= set(found)
    assert set(links(DIGEST, "c1", NAMES[:4])) == {"c0", "c2", "c3"}


def test_a_holder_tells_the_others_of_a_rack() -> None:
    table = MateTable()
    version, mates = table.introduce(0.0, b"1", DIGEST, mate(1))
    assert mates == []
    assert table.version(b"1") == version
    assert table.introduce(1.0, b"2", DIGEST, mate(2))[1] == [mate(1)]
    assert table.version(b"1") > version, "who is served learns that there is somebody new"
    assert table.introduce(1.0, b"3", DIGEST, mate(3, "r2"))[1] == []
    assert table.introduce(1.0, b"4", "b3:" + 64 * "b", mate(4))[1] == []
    version = table.version(b"1")
    assert table.introduce(2.0, b"1", DIGEST, mate(1)) == (version, [mate(2)]), "again is no news"
    assert table.introduce(2.0, b"1", DIGEST, mate(1, port=9))[0] > version, "another endpoint is"
    assert table.version(b"stranger") == 0


def test_who_says_nothing_any_more_is_forgotten() -> None:
    table = MateTable()
    table.introduce(0.0, b"1", DIGEST, mate(1))
    table.introduce(LEASE_S / 2, b"2", DIGEST, mate(2))
    assert table.introduce(LEASE_S + 1, b"3", DIGEST, mate(3))[1] == [mate(2)]


def test_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabric.images.mates.MAX_GROUPS", 3)
    monkeypatch.setattr("fabric.images.mates.MAX_MATES", 4)
    monkeypatch.setattr("fabric.images.mates.MAX_PEERS", 5)
    table = MateTable()
    for number in range(10):
        table.introduce(0.0, number, DIGEST, mate(number))
    assert table.introduce(1.0, 0, DIGEST, mate(0))[1] == [mate(1), mate(2), mate(3)]
    assert sum(table.version(number) > 0 for number in range(10)) == 5
    for number in range(10):
        table.introduce(0.0, 0, f"b3:{number:064x}", mate(0))
    assert len(table._groups) == 3


def test_bits_are_the_lowest_of_the_first_byte_first() -> None:
    assert bits([True, False, False, True]) == b"\x09"
    assert bits([False] * 8 + [True]) == b"\x00\x01"
    assert bits([]) == b""
