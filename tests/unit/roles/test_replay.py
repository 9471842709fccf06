"""A trace is enough to decide a run again: notes, bounds, and a small fabric with conflicts and several rounds."""

from __future__ import annotations

import random
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric import effects as fx
from fabric.records import Share
from fabric.resources import Resources
from fabric.roles.placement import NodeOffer, Wish, deal, place
from fabric.roles.placings import Placings
from fabric.roles.plans import plan_of
from fabric.roles.replay import outcomes, pick, replay
from fabric.roles.trace import (
    MAX_CHANGES,
    MAX_NODES,
    MAX_OFFERS,
    MAX_PACKED_BYTES,
    MAX_PLACINGS,
    MAX_SEARCHES,
    NodeSeen,
    Run,
    SearchSeen,
    Trace,
    pack,
    unpack,
)
from tests.unit.roles.test_flow import settled
from tests.unit.roles.test_heal import die, drain, holding
from tests.unit.roles.test_placement import OFFERS, WISHES
from tests.unit.roles.world import World
from zk import paths


def run_of(*searches: SearchSeen, nodes: tuple[NodeSeen, ...] = (), omitted: int = 0) -> Run:
    return Run(
        generation=1, coordinator="r1c01", rack="r1", epoch=1, at_ms=0, took_ms=1, considered=1, load=0,
        outcome="running", reasons=(), spans=(), racks=(), searches=searches, searches_omitted=omitted, rounds=(),
        nodes=nodes, nodes_omitted=0, messages=0, zookeeper_writes=0, zookeeper_reads=0,
    )  # fmt: skip


class Search:
    """A search as a coordinator makes it; the offers and what is granted of them come from the test."""

    def __init__(self, wish: Wish, kept: dict[int, tuple[str, str]] | None = None) -> None:
        self.notes = Placings()
        self.wish = wish
        self.kept = kept or {}
        self.missing = {ordinal for ordinal in range(wish.count + len(self.kept)) if ordinal not in self.kept}
        self.places: dict[int, tuple[str, str]] = {}
        self.notes.begin(wish)

    def place(self, offers: list[NodeOffer], ask: bool = True, refused: frozenset[int] = frozenset()) -> None:
        placement = place(replace(self.wish, count=len(self.missing)), offers)
        self.notes.placed(self.missing, offers, placement)
        if ask and placement.given:
            asked = deal(self.missing, placement)
            granted = {ordinal: where for where, mine in asked.items() for ordinal in mine if ordinal not in refused}
            self.notes.granted(asked, granted)
            self.places.update(granted)
            self.missing -= set(granted)

    def give_back(self) -> None:
        self.missing |= set(self.places)
        self.places.clear()

    def end(self) -> Run:
        if self.places:
            self.notes.planned(plan_of(self.kept), plan_of({**self.kept, **self.places}))
        searches, omitted = self.notes.seen()
        return run_of(*searches, omitted=omitted)


@settings(max_examples=150, deadline=None)
@given(WISHES, st.lists(st.tuples(OFFERS, st.booleans(), st.booleans(), st.sets(st.integers(0, 80))), max_size=6))
def test_any_search_that_was_noted_is_replayed_through_the_packed_trace(wish: Wish, rounds):
    search = Search(wish, {3: ("kept", "r9")})
    for offers, ask, give_back, refused in rounds:
        if give_back:
            search.give_back()
        if search.missing:
            search.place(offers, ask, frozenset(refused))
    run = search.end()
    [kept] = unpack(pack(Trace((run,)))).runs
    assert kept == run
    done = replay(kept)
    if run.searches:
        assert done.same, done
        assert (done.rounds, done.planned) == (len(run.searches[0].placings), bool(search.places))
    else:
        assert done.impossible


def offers_of(count: int, rng: random.Random) -> list[NodeOffer]:
    return [
        NodeOffer(
            f"r{n % 25:02d}c{n // 25:02d}", f"r{n % 25:02d}", rng.randint(0, 16), utilisation=rng.randint(0, 64) / 63,
            capacity=16, short="memory_mib",
        )
        for n in range(count)
    ]  # fmt: skip


def one_round(nodes: int, wanted: int) -> Run:
    search = Search(Wish(wanted, salt="d-abcdef12"))
    search.place(offers_of(nodes, random.Random(7)))
    return search.end()


def test_what_is_changed_in_a_trace_is_found():
    run = one_round(10, 20)
    [search] = run.searches
    assert replay(run).same
    plan = search.plan
    moved = (replace_share(plan[0], plan[1].ordinals), replace_share(plan[1], plan[0].ordinals), *plan[2:])
    for wrong, where in (
        (msgspec.structs.replace(search, salt="d-other123"), "round 1: ordinal"),
        (msgspec.structs.replace(search, policy="pack"), "round 1: ordinal"),
        (msgspec.structs.replace(search, max_per_rack=1), "found no place by the trace"),
        (msgspec.structs.replace(search, plan=moved), "plan: ordinal 0 is on"),
        (msgspec.structs.replace(search, kept=(Share("x", "r1", "99"),)), "plan: ordinal 99 is on no node by the"),
    ):
        done = replay(run_of(search, wrong))
        assert not done.same
        assert done.difference.startswith("search 2, ")
        assert where in done.difference, done.difference


def test_what_decides_is_kept_to_the_last_bit():
    search = Search(Wish(1, salt="d-abcdef12"))
    search.place([NodeOffer("a", "r1", 1, utilisation=0.1 + 0.2), NodeOffer("b", "r1", 1, utilisation=0.3)])
    [run] = unpack(pack(Trace((search.end(),)))).runs
    assert (replay(run).same, run.searches[0].plan[0].node) == (True, "b")
    [placing] = run.searches[0].placings
    less = msgspec.structs.replace(placing.offers[0], utilisation=0.29999999999999993)
    other = msgspec.structs.replace(placing, offers=(less, placing.offers[1]))
    done = replay(run_of(msgspec.structs.replace(run.searches[0], placings=(other,))))
    assert done.difference == "round 1: ordinal 0 is on b of r1 by the trace, on a of r1 by the replay"


def replace_share(share: Share, ordinals: str) -> Share:
    return msgspec.structs.replace(share, ordinals=ordinals)


def test_a_thousand_nodes_and_what_they_did_fit_a_trace():
    run = one_round(MAX_OFFERS, 4000)
    nodes = tuple(NodeSeen(f"r1c{n:03d}", "r1", f"{n}-{n + 3}", 900 + n, 30, n % 13, None) for n in range(MAX_NODES))
    [kept] = unpack(pack(Trace((msgspec.structs.replace(run, nodes=nodes),)))).runs
    assert (kept.searches, len(kept.nodes)) == (run.searches, MAX_NODES)
    assert replay(kept).same


def test_more_nodes_than_that_are_left_out_losers_first_and_it_says_so():
    search = Search(Wish(20, salt="d-abcdef12"))
    offers = offers_of(MAX_OFFERS + 50, random.Random(1))
    search.place(offers)
    search.place(offers) if search.missing else None
    run = search.end()
    won = {share.node for share in run.searches[0].plan}
    assert won <= {offer.node for offer in run.searches[0].placings[0].offers}
    assert replay(run).impossible == "50 offers or rounds were left out of the trace, for its size"


def test_a_trace_is_never_too_large_for_its_znode():
    rng = random.Random(3)
    search = Search(Wish(9000, salt="d-abcdef12"))
    for _ in range(12):
        offers = [replace(offer, utilisation=rng.random()) for offer in offers_of(MAX_OFFERS, rng)]
        search.place(offers, ask=False)
        search.place(offers, refused=frozenset(rng.sample(range(9000), 4500)))
        search.give_back()
    run = search.end()
    packed = pack(Trace((run, run)))
    assert len(packed) <= MAX_PACKED_BYTES
    [kept] = unpack(packed).runs
    assert replay(kept).impossible


def test_waiting_makes_room_for_what_decides():
    """And what changed in a placing that is left out is not: here every one changes the count of one other node."""
    search = Search(Wish(60, salt="d-abcdef12"))
    rng = random.Random(5)
    offers = offers_of(60, rng)
    for index in range(3 * MAX_PLACINGS):
        offers[index % 60] = replace(offers[index % 60], count=rng.randint(0, 3))
        search.place(offers if index % 7 else offers[1:], ask=False)
    search.place(offers, refused=frozenset({1}))
    search.place([replace(offer, count=3) for offer in offers])
    run = search.end()
    [seen] = run.searches
    assert (len(seen.placings), seen.waits_omitted, seen.omitted) == (MAX_PLACINGS, 2 * MAX_PLACINGS + 2, 0)
    assert replay(run).same
    assert replay(run).planned


def test_changes_are_bounded_too():
    search = Search(Wish(4, salt="d-abcdef12"))
    rng = random.Random(5)
    for _ in range(10):
        search.place([replace(one, utilisation=rng.random()) for one in offers_of(MAX_OFFERS, rng)], ask=False)
    search.place(offers_of(MAX_OFFERS, rng))
    run = search.end()
    assert sum(len(placing.offers) for placing in run.searches[0].placings) <= MAX_CHANGES
    assert run.searches[0].waits_omitted > 0
    assert replay(run).same


def test_old_searches_are_forgotten_and_the_last_are_replayed():
    notes = Placings()
    for number in range(MAX_SEARCHES + 2):
        wish = Wish(2, salt=f"d-abcdef{number:02d}")
        notes.begin(wish)
        offers = offers_of(5, random.Random(number))
        placement = place(wish, offers)
        notes.placed(range(2), offers, placement)
        notes.granted(deal(range(2), placement), range(2))
        notes.planned((), plan_of({o: where for where, mine in deal(range(2), placement).items() for o in mine}))
    searches, omitted = notes.seen()
    done = replay(run_of(*searches, omitted=omitted))
    assert (done.same, done.rounds, omitted) == (True, MAX_SEARCHES, 2)


def test_the_last_run_that_placed_anything_is_picked():
    placed = one_round(3, 2)
    trace = Trace((placed, msgspec.structs.replace(placed, generation=2), run_of()))
    assert pick(trace) == (2, trace.runs[1])
    assert pick(trace, 1) == (1, trace.runs[0])
    assert pick(trace, 4) is None
    assert pick(Trace((run_of(),))) is None
    assert replay(run_of()).impossible == "this run's trace has no placement"


def test_winners_and_losers_are_told_from_the_same_notes():
    search = Search(Wish(5, "pack", salt="d-abcdef12"))
    offers = [
        NodeOffer("a", "r1", 3, utilisation=0.9),
        NodeOffer("b", "r1", 4, utilisation=0.5),
        NodeOffer("c", "r1", 0, utilisation=1.0, short="vcpus"),
        NodeOffer("d", "r1", 0, cordoned=True),
        NodeOffer("e", "r1", 2),
    ]
    search.place(offers, refused=frozenset({4}))
    search.place([replace(offers[0], count=0), replace(offers[1], count=3), *offers[2:]])
    told = [(one.offer.node, one.given, one.why) for one in outcomes(search.end().searches[0])]
    assert told == [
        ("a", 3, "taken whole"),
        ("b", 2, "enough elsewhere, by the policy"),
        ("c", 0, "out of vcpus"),
        ("d", 0, "cordoned"),
        ("e", 0, "enough elsewhere, by the policy"),
    ]
    failed = Search(Wish(50, salt="d-abcdef12"))
    failed.place(offers, ask=False)
    assert outcomes(failed.end().searches[0])[0].why == "too little in all"


# --- in a small fabric ------------------------------------------------------------------------------------------------


def trace_of(world: World, deployment: str) -> Trace:
    return unpack(world.tree.nodes[paths.trace(deployment)].data)


@pytest.mark.parametrize("seed", range(6))
def test_requests_that_compete_are_replayed_to_the_plans_they_wrote(seed: int):
    rng = random.Random(seed)
    world = settled(racks=3, compute=4, total=Resources(16, 32768, 163840))  # 4 Large a node, 48 in all
    made = []
    for _ in range(8):
        deployment = world.create(
            rng.randint(2, 12), submit=False, min_count=1, policy=rng.choice(("spread", "pack")),
            max_per_node=rng.choice((0, 0, 2)),
        )  # fmt: skip
        world.submit(deployment, f"r{rng.randint(1, 3)}")
        made.append(deployment)
    world.until_final(*made, limit_s=120)
    rounds = []
    for deployment in made:
        record = world.record(deployment)
        number, run = pick(trace_of(world, deployment))
        done = replay(run)
        assert done.same, (deployment, done)
        assert (number, done.planned) == (1, record.state == "running")
        if record.state == "running":
            assert run.searches[-1].plan == record.plan
        rounds.append(done.rounds)
    assert max(rounds) > 1  # there were conflicts


def test_each_run_of_a_deployment_has_the_plan_that_it_wrote():
    world = settled()
    deployment = world.create(6)
    world.until_final(deployment)
    first = world.record(deployment).plan
    world.change(deployment, count=14, min_count=14)
    world.until_final(deployment)
    second = world.record(deployment).plan
    world.change(deployment, gone=True)
    world.until_final(deployment)
    trace = trace_of(world, deployment)
    assert len(trace.runs) == 3
    number, run = pick(trace)
    assert (number, run.searches[0].kept, run.searches[0].plan) == (2, first, second)
    assert [replay(one).same for one in trace.runs] == [True, True, False]
    assert replay(trace.runs[2]).impossible


def test_a_run_that_had_to_place_some_elsewhere_has_both_searches():
    world = settled()
    world.start_hook = lambda host, effect: (
        fx.InstanceFailed(effect.instance, effect.attempt, "node", "out of memory")
        if host.identity.node == "r1c02"
        else None
    )
    deployment = world.create(24)
    world.until_final(deployment)
    [run] = trace_of(world, deployment).runs
    assert len(run.searches) == 2
    assert "r1c02" in {share.node for share in run.searches[0].plan}
    assert run.searches[1].plan == world.record(deployment).plan
    assert (replay(run).same, replay(run).planned) == (True, True)


@pytest.mark.parametrize("after_s", [0.004, 0.008, 0.012, 0.02])
def test_a_wish_that_is_changed_in_the_middle_is_replayed_to_the_last_plan(after_s: float):
    world = settled()
    deployment = world.create(10, submit=False)
    world.submit(deployment, "r1")
    world.pass_time(after_s)
    world.change(deployment, count=17, min_count=17)
    world.until_final(deployment)
    runs = trace_of(world, deployment).runs
    assert all(replay(run).same for run in runs)
    assert runs[-1].searches[-1].plan == world.record(deployment).plan


@pytest.mark.parametrize("exclusive", [False, True])
def test_what_left_a_node_that_is_emptied_is_replayed(exclusive: bool):
    world = settled()
    deployment = world.create(20, exclusive=exclusive)
    world.until_final(deployment)
    host = holding(world, deployment)[0]
    drain(world, host.identity.node)
    world.run(lambda: host.identity.node not in {n for nodes in world.running(deployment).values() for n in nodes}, 60)
    world.until_final(deployment)
    run = trace_of(world, deployment).runs[-1]
    assert (replay(run).same, replay(run).planned) == (True, True)
    assert run.searches[-1].plan == world.record(deployment).plan


def test_what_a_dead_node_ran_is_replayed_to_where_it_runs_now():
    world = settled()
    deployment = world.create(20, lost_after_s=3)
    world.until_final(deployment)
    die(world, holding(world, deployment)[0])
    world.run(lambda: len(world.running(deployment)) == 20, 30, "all run again")
    world.until_final(deployment)
    run = trace_of(world, deployment).runs[-1]
    assert (replay(run).same, replay(run).planned) == (True, True)
    assert run.searches[-1].plan == world.record(deployment).plan
