"""The brake: when it is on, what it counts, and what releases it."""

from __future__ import annotations

from dataclasses import replace

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from fabric.records import Lost
from fabric.roles.brake import OPERATOR, Crowd, brake
from fabric.roles.settings import Settings

SETTINGS = Settings()
NOW_MS = 1_800_000_000_000
WINDOW_MS = int(SETTINGS.brake_window_s * 1000)


def gone(node: str, rack: str = "r1", accepted_ms: int = 0, by: str = "") -> Lost:
    return Lost(node, rack, NOW_MS - 5_000, accepted_ms, by)


def some(count: int, rack: str = "r1") -> list[Lost]:
    return [gone(f"{rack}n{number}", rack) for number in range(count)]


LOST = st.lists(
    st.builds(
        Lost,
        node=st.integers(0, 60).map("n{}".format),
        rack=st.integers(0, 4).map("r{}".format),
        since_ms=st.integers(NOW_MS - 300_000, NOW_MS),
        accepted_ms=st.just(0) | st.integers(NOW_MS - 2 * WINDOW_MS, NOW_MS + 1000),
        by=st.sampled_from(["", "n1", OPERATOR]),
    ),
    max_size=40,
    unique_by=lambda one: one.node,
)
MEMBERS = st.dictionaries(st.integers(0, 4).map("r{}".format), st.integers(0, 40), max_size=5)


def test_half_of_a_rack_is_not_yet_more_than_half():
    assert brake(some(5), {"r1": 5, "r2": 40}, NOW_MS, SETTINGS) is None
    found = brake(some(6), {"r1": 5, "r2": 40}, NOW_MS, SETTINGS)
    assert found is not None
    assert found.racks == (Crowd("r1", 6, 11),)
    assert not found.fabric_wide
    assert found.sentence == (
        "the brake is on: 6 of the 11 of rack r1 vanished (over 50%); nothing is replaced until they are back or an "
        "operator releases it (fabric brake release)"
    )


def test_a_fifth_of_the_fabric_over_several_racks():
    spread = [gone(f"n{number}", f"r{number}") for number in range(5)]
    present = {f"r{number}": 4 for number in range(5)}
    assert brake(spread, present, NOW_MS, SETTINGS) is None
    found = brake([*spread, gone("n5", "r0")], present, NOW_MS, SETTINGS)
    assert found is not None
    assert found.fabric_wide
    assert found.racks == ()
    assert found.fabric == Crowd("", 6, 26)
    assert "6 of the fabric's 26 compute nodes vanished (over 20%)" in found.sentence


def test_few_nodes_never_stop_replacement_even_of_a_small_rack():
    assert brake(some(2), {}, NOW_MS, SETTINGS) is None
    assert brake(some(3), {}, NOW_MS, SETTINGS) is not None
    two_and_one = [*some(2), gone("other", "r2")]
    assert brake(two_and_one, {"r2": 40}, NOW_MS, SETTINGS) is None, "two of a rack are too few to tell about the rack"


def test_those_that_vanish_one_after_the_other_are_counted_together_for_a_while():
    accepted = [msgspec.structs.replace(one, accepted_ms=NOW_MS - 1000, by="r1n9") for one in some(5)]
    assert brake([*accepted, gone("late")], {"r1": 5}, NOW_MS, SETTINGS) is not None
    assert brake([*accepted, gone("late")], {"r1": 5}, NOW_MS + WINDOW_MS, SETTINGS) is None


def test_many_racks_are_named_briefly():
    lost = [one for number in range(6) for one in some(3, f"r{number}")]
    found = brake(lost, {}, NOW_MS, SETTINGS)
    assert found is not None
    assert len(found.racks) == 6
    assert "rack r2" in found.sentence
    assert "rack r3" not in found.sentence
    assert "and 3 more racks" in found.sentence


@given(LOST, MEMBERS)
def test_what_an_operator_accepted_is_never_counted(lost: list[Lost], members: dict[str, int]):
    released = [
        one if one.accepted_ms else msgspec.structs.replace(one, accepted_ms=NOW_MS, by=OPERATOR) for one in lost
    ]
    others = [one for one in released if one.by != OPERATOR]
    assert brake(released, members, NOW_MS, SETTINGS) == brake(others, members, NOW_MS, SETTINGS)
    if not any(one.accepted_ms and one.by != OPERATOR for one in lost):
        assert brake(released, members, NOW_MS, SETTINGS) is None


@given(LOST, MEMBERS)
def test_one_more_that_vanishes_never_releases_it(lost: list[Lost], members: dict[str, int]):
    before = brake(lost, members, NOW_MS, SETTINGS)
    after = brake([*lost, gone("one-more", "r0")], members, NOW_MS, SETTINGS)
    if before is not None:
        assert after is not None
        assert set(before.nodes) < set(after.nodes)


@given(LOST, MEMBERS, st.integers(0, 4))
def test_one_more_that_is_here_never_puts_it_on(lost: list[Lost], members: dict[str, int], rack: int):
    more = {**members, f"r{rack}": members.get(f"r{rack}", 0) + 1}
    if brake(lost, members, NOW_MS, SETTINGS) is None:
        assert brake(lost, more, NOW_MS, SETTINGS) is None


@given(LOST, MEMBERS)
def test_it_is_on_exactly_when_a_share_and_the_least_number_are_passed(lost: list[Lost], members: dict[str, int]):
    found = brake(lost, members, NOW_MS, SETTINGS)
    counted = [
        one
        for one in lost
        if not one.accepted_ms or (one.by != OPERATOR and NOW_MS - one.accepted_ms < WINDOW_MS)
    ]
    everywhere = len(counted) + sum(members.values())
    wide = len(counted) >= SETTINGS.brake_least and 5 * len(counted) > everywhere
    racks = set()
    for rack in {one.rack for one in counted}:
        here = sum(one.rack == rack for one in counted)
        if here >= SETTINGS.brake_least and 2 * here > here + members.get(rack, 0):
            racks.add(rack)
    assert (found is not None) == (wide or bool(racks))
    if found is not None:
        assert {one.rack for one in found.racks} == racks
        assert found.fabric_wide == wide
        assert list(found.nodes) == sorted(one.node for one in counted)


def test_the_shares_and_the_least_number_are_settings():
    careful = replace(SETTINGS, brake_least=1, brake_rack_share=0.05, brake_fabric_share=0.05)
    assert brake(some(1), {"r1": 10}, NOW_MS, careful) is not None
    assert brake(some(1), {"r1": 19}, NOW_MS, careful) is None, "exactly the share is not more than it"
