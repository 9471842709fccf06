"""The arithmetic of redundancy: what lacks holders, where a copy goes, and from whom."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fabric.commands import HeldList, Unable
from fabric.roles.calls import Gathered, RackReply
from fabric.roles.redundancy import Found, Store, lacks, pick_sources, pick_target, survey, with_holder

WEB, OTHER = "b3:" + "11" * 32, "b3:" + "22" * 32
SIZE = 100


def store(name: str, **changes: int) -> Store:
    """ "r1a" is in rack r1."""
    return replace(Store(name, name[:2], f"tcp://{name}", 1000, 0, 0), **changes)


def world(*stores: Store) -> dict[str, Store]:
    return {one.node: one for one in stores}


A1, B1, A2, B2, A3 = (store(name) for name in ("r1a", "r1b", "r2a", "r2b", "r3a"))
ALL = world(A1, B1, A2, B2, A3)


def target(found: Found, stores: dict[str, Store] = ALL, **options: object) -> str:
    picked = pick_target(WEB, found, stores, SIZE, 2, **options)
    return picked.node if picked else ""


def test_two_holders_in_two_racks_are_enough_and_one_rack_is_if_no_other_has_room():
    assert not lacks(Found((A1, A2)), ALL, SIZE, 2)
    assert lacks(Found((A1, B1)), ALL, SIZE, 2)
    assert not lacks(Found((A1, B1)), world(A1, B1, replace(A2, free_bytes=SIZE - 1)), SIZE, 2)
    assert lacks(Found((A1,)), world(A1), SIZE, 2)
    assert not lacks(Found((A1,)), ALL, SIZE, 1)
    assert lacks(Found((A1, A2), damaged=frozenset({"r3a"})), ALL, SIZE, 2)


def test_a_copy_goes_where_no_holder_is_and_beside_one_only_if_there_is_no_other_place():
    assert target(Found((A1, A2))) == "", "it has enough"
    assert target(Found((A1,)), world(A1, B1, A2)) == "r2a"
    assert target(Found((A1,)), world(A1, B1)) == "r1b"
    assert target(Found((A1, B1)), world(A1, B1, A2)) == "r2a"
    assert target(Found((A1, B1)), world(A1, B1, store("r1c"))) == "", "a third one in that rack helps nobody"


def test_who_is_at_it_is_preferred_then_who_lost_chunks_then_the_least_loaded():
    found = Found((A1,), copying=frozenset({"r2b"}), damaged=frozenset({"r3a"}))
    assert target(found) == "r2b"
    assert target(found, avoid={"r2b"}) == "r3a"
    loaded = world(A1, replace(A2, copies=3), replace(B2, copies=1), replace(A3, copies=2))
    assert target(Found((A1,)), loaded) == "r2b"


def test_a_damaged_copy_is_healed_wherever_it_is_when_there_are_holders_enough():
    assert target(Found((A1, A2), damaged=frozenset({"r1b"}))) == "r1b"
    assert target(Found((A1, A2), damaged=frozenset({"r1b"})), world(A1, A2, A3, replace(B1, free_bytes=0))) == "r1b"
    assert target(Found((A1, A2), damaged=frozenset({"r1b"})), avoid={"r1b"}) == ""


def test_a_copy_comes_from_holders_or_else_from_others_who_lost_chunks_but_never_from_its_target():
    assert pick_sources(WEB, Found((A1, replace(A2, busy=5)), damaged=frozenset({"r3a"})), ALL, A3, 4) == (
        "tcp://r1a",
        "tcp://r2a",
    )
    assert len(pick_sources(WEB, Found((A1, A2, A3)), ALL, B1, 2)) == 2
    halves = Found(damaged=frozenset({"r1a", "r2a"}))
    assert pick_sources(WEB, halves, ALL, A1, 4) == ("tcp://r2a",)
    assert pick_sources(WEB, Found(damaged=frozenset({"r1a"})), ALL, A1, 4) == ()
    assert pick_sources(WEB, Found(), ALL, None, 4) == ()


def test_answers_become_holders_by_content_and_nonsense_becomes_nothing():
    held = HeldList((0, 200), (1,), (), 1, "tcp://r1a", 1000, 0)
    mute = HeldList((0, 1), (), (), 0, "", 1000, 0)
    reply = RackReply("r1", "l", 1, (("r1a", held), ("r1b", mute), ("r1c", Unable("?"))), ("r1d",), (), 3)
    stores, found = survey((WEB, OTHER), Gathered("", (reply,), ("r2",), 1))
    assert set(stores) == {"r1a"}
    assert found == {WEB: Found((replace(A1, copies=1),)), OTHER: Found(copying=frozenset({"r1a"}))}


names = st.sampled_from([f"r{rack}{letter}" for rack in range(1, 5) for letter in "abc"])


@given(
    present=st.dictionaries(names, st.sampled_from([0, SIZE, 10 * SIZE]), max_size=12),
    held=st.sets(names),
    damaged=st.sets(names),
    redundancy=st.integers(1, 3),
)
def test_following_the_advice_ends_with_nothing_that_could_be_better(
    present: dict[str, int], held: set[str], damaged: set[str], redundancy: int
):
    """Each copy is useful, and when there is none to make, racks and holders are as many as can be."""
    stores = {name: store(name, free_bytes=free) for name, free in present.items()}
    found = Found(
        tuple(stores[name] for name in sorted(held & set(stores))),
        damaged=frozenset((damaged - held) & set(stores)),
    )
    for _ in range(len(stores) + 1):
        picked = pick_target(WEB, found, stores, SIZE, redundancy)
        if picked is None:
            break
        assert lacks(found, stores, SIZE, redundancy)
        assert picked.node not in {holder.node for holder in found.holders}
        found = with_holder(found, picked)
    else:
        raise AssertionError("it goes on for ever")
    able = {name for name, one in stores.items() if one.free_bytes >= SIZE} | {one.node for one in found.holders}
    assert len(found.holders) >= min(redundancy, len(able))
    assert len({one.rack for one in found.holders}) >= min(2, redundancy, len({name[:2] for name in able}))
    assert not found.damaged
