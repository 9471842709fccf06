"""Who is deployed where: names, order, slices, spares; the same for the planner and for every initiator."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.configuration import Children, InitiatorRole
from deploy.identity import MAX_DEPTH
from deploy.initiator.placement import MIN_CANDIDATES, BadEnumeration, candidates, children_of, natural
from deploy.records import MAX_CHILDREN, MAX_STUBS_IN_DOMAIN, StubRef


def stubs(*names: str, domain: str = "") -> tuple[StubRef, ...]:
    return tuple(StubRef(name, f"tcp://{name}:1/00000001", domain) for name in names)


def many(count: int) -> tuple[StubRef, ...]:
    return stubs(*(f"s{number:03d}" for number in range(count)))


def role(*children: Children, **more) -> InitiatorRole:
    return InitiatorRole(children, **more)


TEN = Children("count", count=10, prefix="zone")
SITE = (*stubs("b1", "a1", domain="/site/r10"), *stubs("c1", domain="/site/r2/u1"), *stubs("x", domain="/site"))


def test_children_by_count_have_numbers_and_divide_the_domain() -> None:
    places = children_of("/region1", role(TEN), many(52))
    assert [place.name for place in places] == [f"zone{number}" for number in range(1, 11)]
    assert [place.index for place in places] == list(range(10))
    assert [place.path for place in places][:2] == ["/region1/zone1", "/region1/zone2"]
    assert sorted(len(place.slice) for place in places) == [5] * 8 + [6] * 2
    assert [stub for place in places for stub in place.slice] == list(many(52))
    assert all(place.stub in place.slice for place in places)


def test_children_share_stubs_in_turn_where_there_are_fewer() -> None:
    places = children_of("/a", role(TEN), many(4))
    assert [place.stub.name for place in places] == [f"s{number % 4:03d}" for number in range(10)]
    assert all(place.slice == (place.stub,) for place in places)


def test_initiators_of_all_levels_do_not_end_up_on_the_same_machine() -> None:
    used = {place.stub.name for number in range(20) for place in children_of(f"/p{number}", role(TEN), many(30))}
    assert len(used) == 30


def test_one_child_on_each_stub_in_natural_order() -> None:
    places = children_of("/site/r1", role(Children("stub")), stubs("n10", "n2", "n1"))
    assert [(place.name, place.stub.name, len(place.slice)) for place in places] == [
        ("n1", "n1", 1),
        ("n2", "n2", 1),
        ("n10", "n10", 1),
    ]


def test_one_child_for_each_domain_below_on_a_stub_of_it() -> None:
    places = children_of("/site", role(Children("domain")), SITE)
    assert [(place.name, {stub.name for stub in place.slice}) for place in places] == [
        ("r2", {"c1"}),
        ("r10", {"a1", "b1"}),
    ]
    assert [place.name for place in children_of("", role(Children("domain")), SITE)] == ["site"]


def test_several_lists_follow_each_other_and_names_share_the_domain_evenly() -> None:
    listed = role(Children("names", names=("log", "cron")), Children("stub"), Children("count", count=1, prefix="z"))
    places = children_of("/s", listed, stubs("a", "b", "c"))
    assert [place.name for place in places] == ["log", "cron", "a", "b", "c", "z1"]
    assert [stub.name for place in places if place.by != "stub" for stub in place.slice] == ["a", "b", "c"]


def test_spares_follow_short_slices_where_children_may_be_placed_elsewhere() -> None:
    failover = role(Children("count", count=2), failover="domain")
    places = children_of("/a", failover, stubs("a", "b", "c", "d"))
    assert [[stub.name for stub in place.spare] for place in places] == [["c"], ["a"]]
    (lone,) = children_of("/a", role(Children("count", count=1), failover="domain"), stubs("a"), stubs("x", "y", "z"))
    assert [stub.name for stub in lone.spare] == ["x", "y"]
    assert [stub.name for stub in candidates(lone, stubs("a"), stubs("x", "y", "z"))] == ["a", "x", "y", "z"]
    assert all(not place.spare for place in children_of("/a", role(TEN), many(4)))


def test_who_stands_for_a_stub_is_placed_nowhere_else_and_a_domain_s_child_in_its_domain() -> None:
    here = role(Children("stub"), failover="domain")
    assert [candidates(place, many(2)) for place in children_of("/a", here, many(2))] == [[], []]
    racks = children_of("/site", role(Children("domain"), failover="domain"), SITE)
    assert [{stub.name for stub in candidates(place, SITE)} for place in racks] == [{"c1"}, {"a1", "b1"}]
    assert all(not place.spare for place in racks)


@pytest.mark.parametrize(
    ("path", "children", "domain", "says"),
    [
        ("/a", (Children("names", names=("x", "y", "x")),), many(1), "x twice"),
        ("/a", (Children("stub"), Children("names", names=("s000",))), many(1), "s000 twice"),
        ("/a", (Children("names", names=("x/y",)),), many(1), "'x/y'"),
        ("/a", (Children("names", names=("..",)),), many(1), "'..'"),
        ("/a", (Children("count", count=3, prefix=""),), (), "expected boot stubs in its domain"),
        ("", (Children("stub"),), (), "directory"),
        ("/site", (Children("domain"),), (), "found none"),
        ("/lab", (Children("domain"),), SITE, "directly below /lab"),
        ("/a", (Children("count", count=MAX_CHILDREN + 1),), many(1), f"found {MAX_CHILDREN + 1}"),
        ("/a", (Children("count", count=MAX_CHILDREN), Children("stub")), many(1), f"found {MAX_CHILDREN + 1}"),
        ("/p" * MAX_DEPTH, (TEN,), many(1), "in a circle"),
        ("/" + "p" * 64 + "/q" * 2, (Children("names", names=("n" * 65,)),), many(1), "64"),
        (("/" + "p" * 60) * 8, (Children("names", names=("n" * 60,)),), many(1), "512 characters"),
    ],
)
def test_what_cannot_be_is_said(path: str, children, domain, says: str) -> None:
    with pytest.raises(BadEnumeration, match=says):
        children_of(path, role(*children), domain)


def test_an_initiator_without_children_needs_no_stubs() -> None:
    assert children_of("/a", role(), ()) == ()


@given(st.integers(1, 60), st.integers(1, 60), st.booleans())
def test_all_slices_together_are_no_longer_than_the_domain_or_the_list(size: int, count: int, failover: bool) -> None:
    the_role = role(Children("count", count=count), failover="domain" if failover else "none")
    places = children_of("/a", the_role, many(size))
    assert sum(len(place.slice) for place in places) == max(size, count)
    assert {stub.name for place in places for stub in place.slice} >= {stub.name for stub in many(min(size, count))}
    for place in places:
        assert place.stub in place.slice
        assert not set(place.slice) & set(place.spare)
        if failover:
            assert len(place.slice) + len(place.spare) >= min(size, MIN_CANDIDATES)
    assert places == children_of("/a", the_role, many(size))


def test_numbers_sort_as_numbers() -> None:
    assert sorted(["r10", "r2", "r", "10", "2a"], key=natural) == ["2a", "10", "r", "r2", "r10"]


def test_no_child_gets_more_boot_stubs_than_a_message_takes() -> None:
    """Nobody would take the message, so nobody would answer it."""
    domain = stubs("one") * (2 * MAX_STUBS_IN_DOMAIN + 2)
    with pytest.raises(BadEnumeration, match=r"expected at most 20000 boot stubs for one child .* found 20001 for a"):
        children_of("", role(Children("names", names=("a", "b"))), domain)
    assert children_of("", role(Children("names", names=("a", "b", "c"))), domain)
