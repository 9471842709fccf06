"""Advice that is taken works, and is no larger than it has to be: of the arithmetic, and of a whole small fabric."""

from __future__ import annotations

import random
import re
import time
import zlib
from dataclasses import replace
from itertools import combinations

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fabric.commands import Holder
from fabric.records import MAX_SIZES, Deployment, Size, Spec
from fabric.resources import Resources
from fabric.roles.advice import Advice, Case, advise, case_of, smaller
from fabric.roles.placement import NodeOffer, Wish, place
from tests.unit.roles.test_flow import exactly
from tests.unit.roles.test_heal import die, holding
from tests.unit.roles.world import LARGE, World
from zk import paths
from zk import tree as zt

NEED = Resources(4, 8, 0)
FLAVORS = smaller(
    NEED,
    {"half": Resources(2, 4, 1), "thin": Resources(1, 8, 0), "tiny": Resources(1, 1, 0), "big": Resources(8, 16, 0)},
)
AMOUNTS = st.builds(Resources, st.integers(0, 14), st.integers(0, 40), st.integers(0, 3))
HOLDERS = st.lists(
    st.builds(Holder, st.sampled_from([f"d-hold0{n}" for n in range(4)]), AMOUNTS),
    max_size=3,
    unique_by=lambda holder: holder.deployment,
).map(tuple)
OFFERS = st.lists(
    st.builds(
        NodeOffer,
        node=st.integers(0, 30).map("n{}".format),
        rack=st.just(""),
        count=st.just(0),
        used=st.integers(0, 2),
        cordoned=st.booleans(),
        free=AMOUNTS,
        holders=HOLDERS,
    ),
    max_size=8,
    unique_by=lambda offer: offer.node,
).map(lambda offers: [replace(one, rack=f"r{zlib.crc32(one.node.encode()) % 3}") for one in offers])
WISHES = st.builds(
    Wish,
    count=st.integers(1, 12),
    policy=st.sampled_from(["spread", "pack"]),
    max_per_node=st.integers(0, 3),
    max_per_rack=st.integers(0, 6),
    salt=st.text(max_size=3),
)


def short(case: Case, taken: Advice | None = None) -> int:
    """What `place` makes of the case once the advice is taken: the offers are those that nodes would make then."""
    wish, need, offers = case.wish, case.need, list(case.offers)
    if taken:
        if taken.count:
            wish = replace(wish, count=taken.count - case.have)
        if taken.flavor:
            need = next(size.resources for size in case.flavors if size.flavor == taken.flavor)
        wish = replace(
            wish,
            max_per_node=taken.max_per_node or wish.max_per_node,
            max_per_rack=taken.max_per_rack or wish.max_per_rack,
        )
        offers = [replace(one, cordoned=one.cordoned and one.node not in taken.uncordon) for one in offers]
        for index, one in enumerate(offers):
            for holder in one.holders:
                if holder.deployment in taken.wait_for:
                    offers[index] = replace(offers[index], free=offers[index].free + holder.reserved)
    offers = [
        replace(one, count=0 if one.cordoned else min(wish.count, one.free.holds(need))) for one in offers
    ]
    return place(wish, offers).short


@settings(max_examples=400, deadline=None)
@given(WISHES, OFFERS, st.integers(0, 3), st.booleans())
def test_each_advice_works_and_nothing_less_does(wish: Wish, offers: list[NodeOffer], have: int, flavors: bool):
    case = Case(wish, NEED, offers, FLAVORS if flavors else (), have)
    found = advise(case)
    if not short(case):
        assert found == ()
    for advice in found:
        assert not short(case, advice), advice
        assert len(advice.kinds) == len(found[0].kinds)
        for less in lesser(case, advice):
            assert short(case, less), (advice, less)


def lesser(case: Case, advice: Advice):
    """Advices that change less, in one of the ways of this one."""
    if "fewer" in advice.kinds:
        if advice.count + 1 < case.have + case.wish.count:
            yield replace(advice, count=advice.count + 1)
    if "flavor" in advice.kinds and "fewer" not in advice.kinds and len(advice.kinds) == 1:
        names = [size.flavor for size in case.flavors]
        yield from (replace(advice, flavor=name) for name in names[: names.index(advice.flavor)])
    if "max_per_node" in advice.kinds:
        yield replace(advice, max_per_node=advice.max_per_node - 1)
    if "max_per_rack" in advice.kinds:
        yield replace(advice, max_per_rack=advice.max_per_rack - 1)
    if "uncordon" in advice.kinds:
        cordoned = [offer.node for offer in case.offers if offer.cordoned]
        for nodes in combinations(cordoned, len(advice.uncordon) - 1):
            yield replace(advice, uncordon=nodes)
    for one in advice.wait_for:
        yield replace(advice, wait_for=tuple(name for name in advice.wait_for if name != one))


@settings(max_examples=200, deadline=None)
@given(WISHES, OFFERS)
def test_whatever_could_be_placed_by_some_change_has_an_advice(wish: Wish, offers: list[NodeOffer]):
    """One instance of any flavor, with all uncordoned and nothing reserved: if not even that fits, there is none."""
    case = Case(wish, NEED, offers, FLAVORS)
    assume(short(case))
    holders = tuple({holder.deployment for offer in offers for holder in offer.holders})
    cordoned = tuple(offer.node for offer in offers if offer.cordoned)
    widest = [
        short(case, Advice((), "", 1, size, 99, 99, holders, cordoned)) for size in ("", *(s.flavor for s in FLAVORS))
    ]
    assert bool(advise(case)) == (0 in widest)


def test_single_changes_come_first_and_are_all_told():
    offers = [
        NodeOffer("a", "r1", 1, free=NEED, short="vcpus"),
        NodeOffer("b", "r1", 0, cordoned=True, free=NEED.times(5)),
        NodeOffer("c", "r2", 0, free=Resources(3, 6, 0), holders=(Holder("d-other1", NEED.times(2)),)),
    ]
    case = Case(Wish(3), NEED, offers, (Size("half", 1, 2, 0),))
    assert [advice.sentence for advice in advise(case)] == [
        "would do: asking for 1 instance",
        "would do: flavor half (1 vcpus, 2 MiB memory, 0 MiB disk)",
        "would do: waiting until d-other1 has given reservations back",
        "would do: uncordoning b",
    ]


def test_a_limit_is_raised_as_far_as_it_must_be():
    offers = [NodeOffer(f"n{n}", f"r{n % 2}", 8, used=1, free=NEED.times(8)) for n in range(4)]
    [fewer, limit] = advise(Case(Wish(10, max_per_node=3), NEED, offers))
    assert (fewer.count, limit.max_per_node, limit.sentence) == (8, 4, "would do: max_per_node 4")
    [fewer, limit] = advise(Case(Wish(10, max_per_rack=4), NEED, offers))
    assert (fewer.count, limit.max_per_rack) == (4, 7)


def test_what_no_single_change_does_two_together_do():
    offers = [NodeOffer("a", "r1", 0, cordoned=True, free=NEED), NodeOffer("b", "r1", 0, cordoned=True, free=NEED)]
    [advice] = advise(Case(Wish(3), NEED, offers))
    assert advice.kinds == ("fewer", "uncordon")
    assert (advice.count, advice.uncordon) == (2, ("a", "b"))
    assert advice.sentence == "would do: asking for 2 instances and uncordoning a, b"


def test_who_would_have_to_uncordon_hundreds_is_not_told_to():
    offers = [NodeOffer(f"n{n:03d}", "r1", 0, cordoned=True, free=NEED) for n in range(400)]
    assert [advice.kinds for advice in advise(Case(Wish(300), NEED, offers))] == []
    [advice] = advise(Case(Wish(90), NEED, offers))
    assert len(advice.uncordon) == 90
    assert len(advice.sentence) < 300


def test_smaller_flavors_are_few_and_the_nearest_come_first():
    sizes = {f"f{n:02d}": Resources(n, 8 * n, 10 * n) for n in range(1, 20)}
    names = [size.flavor for size in smaller(sizes["f15"], sizes)]
    assert names == ["f14", "f13", "f12", "f11", "f10", "f09", "f08", "f01"]
    assert len(names) == MAX_SIZES
    assert smaller(sizes["f01"], sizes) == ()


def test_a_request_that_fails_counts_what_it_gives_back_and_a_scale_up_what_it_keeps():
    spec = Spec("web", "b3:" + "0" * 64, "Large", NEED, {}, "always")
    record = Deployment(
        id="d-abcdef1", name="", spec=spec, count=6, min_count=5, policy="spread", created_ms=0, updated_ms=0
    )
    offers = [NodeOffer("a", "r1", 0, used=3, free=Resources(1, 1, 0))]  # one of them was started, and is stopped
    case = case_of(record, Wish(3), {"a": 2}, offers, 4)
    assert (case.wish.count, case.have, case.offers[0].free.holds(NEED), case.offers[0].used) == (5, 0, 3, 0)
    assert "flavor" in case.kinds
    assert [advice.count for advice in advise(case)] == [3]
    grown = msgspec.structs.replace(record, had=2)
    case = case_of(grown, Wish(3), {"a": 1}, offers, 4)
    assert (case.wish.count, case.have, case.offers[0].free.holds(NEED), case.offers[0].used) == (4, 2, 1, 2)
    assert "flavor" not in case.kinds
    assert [advice.count for advice in advise(case)] == [3]
    content = case_of(record, Wish(1), {"a": 5}, [NodeOffer("a", "r1", 0, cordoned=True, free=NEED)], 0)
    assert [advice.kinds for advice in advise(content)] == [("uncordon",)]


def test_five_thousand_full_nodes_take_well_under_a_second():
    holders = (Holder("d-other1", Resources(1, 1, 0)), Holder("d-other2", Resources(1, 2, 0)))
    offers = [
        NodeOffer(f"n{n}", f"r{n % 100}", 0, cordoned=n % 50 == 0, free=Resources(0, n % 7, 0), holders=holders)
        for n in range(5000)
    ]
    began = time.process_time()
    advise(Case(Wish(9000, max_per_node=2, max_per_rack=20), NEED, offers, FLAVORS))
    assert time.process_time() - began < 2.0


# --- in a small fabric ------------------------------------------------------------------------------------------------

TAKEN = re.compile(
    r"asking for (?P<count>\d+) instance|flavor (?P<flavor>\w+) \(|max_per_node (?P<max_per_node>\d+)|"
    r"max_per_rack (?P<max_per_rack>\d+)|uncordoning (?P<uncordon>[\w, ]+?)(?: and |$)"
)
SIZES = {"Medium": Resources(2, 4096, 20480), "Small": Resources(1, 2048, 10240)}
TOTAL = Resources(8, 16384, 163840)


@pytest.mark.parametrize(
    ("before", "cordoned", "count", "fields"),
    [
        (9, (), 5, {}),
        (11, (), 5, {}),
        (10, ("r1c01", "r2c02"), 5, {}),
        (8, ("r1c01", "r1c02", "r2c01"), 4, {}),
        (0, (), 9, {"max_per_node": 1}),
        (0, ("r1c03",), 6, {"max_per_rack": 2}),
        (2, ("r1c01",), 11, {"min_count": 10}),
        (0, ("r1c01", "r1c02", "r1c03", "r2c01", "r2c02", "r2c03"), 2, {}),
    ],
)
def test_a_failed_request_says_what_would_do_and_it_does(before: int, cordoned: tuple[str, ...], count: int, fields):
    follow(before, cordoned, count, fields)


@pytest.mark.parametrize("seed", range(10))
def test_so_does_any_other(seed: int):
    rng = random.Random(seed)
    nodes = [f"r{rack}c{index:02d}" for rack in (1, 2) for index in (1, 2, 3)]
    cordoned = tuple(rng.sample(nodes, rng.randint(0, 4)))
    fields = {"max_per_node": rng.randint(0, 2), "max_per_rack": rng.choice((0, 0, 2)), "min_count": rng.randint(9, 12)}
    follow(rng.randint(0, 11), cordoned, 12, {**fields, "policy": rng.choice(("spread", "pack"))})


def follow(before: int, cordoned: tuple[str, ...], count: int, fields) -> None:
    """Each advice of such a request in a fabric of its own, taken: the request made again runs."""
    told = failed(before, cordoned, count, fields)[1]
    assert told, "no advice"
    for sentence in told:
        world, _ = failed(before, cordoned, count, fields)
        taken = {name: text for match in TAKEN.finditer(sentence) for name, text in match.groupdict().items() if text}
        assert taken, sentence
        again = {**fields, **{name: int(text) for name, text in taken.items() if name.startswith("max_")}}
        wanted = int(taken.get("count", count))
        if "min_count" in again:
            again["min_count"] = min(again["min_count"], wanted)
        if "flavor" in taken:
            again["resources"] = SIZES[taken["flavor"]]
        for node in taken.get("uncordon", "").split(", ") if "uncordon" in taken else ():
            world.tree.apply(0, zt.Delete(paths.cordon(node)))
            world._watches()
        world.pass_time(0.5)
        deployment = world.create(wanted, **again)
        world.until_final(deployment)
        record = world.record(deployment)
        assert record.state == "running", (sentence, record.reason, record.reasons)
        if record.placed == wanted:
            exactly(world, deployment, wanted)
        assert record.placed >= again.get("min_count", wanted)


def failed(before: int, cordoned: tuple[str, ...], count: int, fields) -> tuple[World, list[str]]:
    """A fabric in which such a request found no place, and what it says would do."""
    world = World(racks=2, compute=3, total=TOTAL)
    world.settle()
    if before:
        world.until_final(world.create(before))
    for node in cordoned:
        world.tree.apply(0, zt.Create(paths.cordon(node)))
        world._watches()
    world.pass_time(0.5)
    deployment = world.create(count, **{"smaller": smaller(LARGE, SIZES), **fields})
    world.until_final(deployment)
    record = world.record(deployment)
    assert (record.state, record.smaller) == ("failed", ())
    return world, [reason for reason in record.reasons if reason.startswith("would do: ")]


def test_a_request_that_nothing_helps_gets_no_advice():
    assert failed(12, (), 5, {"smaller": ()})[1] == []


def test_waiting_for_who_holds_the_rest_does():
    world = World(racks=1, compute=2, total=TOTAL)
    world.settle()
    ledger = world.hosts["r1c01"].agent._compute.ledger
    for ordinal in range(2):
        assert ledger.reserve(("d-other1", ordinal), LARGE, 1, 1000.0)
    deployment = world.create(4)
    world.until_final(deployment, limit_s=90)
    assert "would do: waiting until d-other1 has given reservations back" in world.record(deployment).reasons
    ledger.cancel_deployment("d-other1")
    again = world.create(4)
    world.until_final(again)
    exactly(world, again, 4)


def test_a_scale_up_that_fails_says_how_far_it_can_go():
    world = World(racks=1, compute=2, total=TOTAL)  # 4 Large in all
    world.settle()
    deployment = world.create(2)
    world.until_final(deployment)
    world.change(deployment, count=7, min_count=7)
    world.until_final(deployment)
    assert "would do: asking for 4 instances" in world.record(deployment).reasons
    world.change(deployment, count=4, min_count=4)
    world.until_final(deployment)
    exactly(world, deployment, 4)


def test_a_deployment_that_is_short_says_what_would_fill_it():
    world = World(racks=1, compute=2, total=TOTAL)
    world.settle()
    world.tree.apply(0, zt.Create(paths.cordon("r1c02")))
    world._watches()
    world.pass_time(0.5)
    deployment = world.create(4, min_count=1)
    world.until_final(deployment)
    record = world.record(deployment)
    assert (record.state, record.placed) == ("running", 2)
    assert "would do: uncordoning r1c02" in record.reasons


def test_who_lacks_a_lost_instance_is_told_what_to_uncordon():
    world = World(racks=1, compute=3, total=TOTAL)
    world.settle()
    world.tree.apply(0, zt.Create(paths.cordon("r1c03")))
    world._watches()
    world.pass_time(0.5)
    deployment = world.create(4, lost_after_s=1)
    world.until_final(deployment)
    victim = next(host for host in holding(world, deployment) if not host.agent.leads)
    die(world, victim)
    world.run(lambda: world.record(deployment).lacking == 2 and world.record(deployment).final, 60, "it is noticed")
    assert "would do: uncordoning r1c03" in world.record(deployment).reasons
    world.tree.apply(0, zt.Delete(paths.cordon("r1c03")))
    world._watches()
    world.run(lambda: len(world.running(deployment)) == 4, 150, "the patrol tries again")
    world.until_final(deployment)
    assert world.record(deployment).lacking == 0
