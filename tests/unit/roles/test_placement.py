"""The placement arithmetic: what any placement must keep, and what each policy promises."""

from __future__ import annotations

import time
import zlib
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.roles.placement import NodeOffer, Wish, explain, place

OFFERS = st.lists(
    st.builds(
        NodeOffer,
        node=st.integers(0, 40).map("n{}".format),
        rack=st.just(""),
        count=st.integers(0, 12),
        used=st.integers(0, 3),
        utilisation=st.floats(0, 1),
    ),
    max_size=30,
    unique_by=lambda offer: offer.node,
).map(lambda offers: [replace(one, rack=f"r{zlib.crc32(one.node.encode()) % 4}") for one in offers])
WISHES = st.builds(
    Wish,
    count=st.integers(1, 80),
    policy=st.sampled_from(["spread", "pack"]),
    max_per_node=st.integers(0, 5),
    max_per_rack=st.integers(0, 12),
    salt=st.text(max_size=5),
)


@settings(max_examples=300)
@given(WISHES, OFFERS)
def test_no_offer_and_no_limit_is_exceeded_and_nothing_possible_is_left_out(wish: Wish, offers: list[NodeOffer]):
    placement = place(wish, offers)
    by_node = {offer.node: offer for offer in offers}
    per_rack: dict[str, int] = {}
    for offer in offers:
        per_rack[offer.rack] = per_rack.get(offer.rack, 0) + offer.used
    for given_ in placement.given:
        offer = by_node[given_.node]
        assert 0 < given_.count <= offer.count
        assert not wish.max_per_node or offer.used + given_.count <= wish.max_per_node
        per_rack[offer.rack] += given_.count
    got = {given_.rack for given_ in placement.given}
    assert not wish.max_per_rack or all(per_rack[rack] <= wish.max_per_rack for rack in got)
    assert sum(one.count for one in placement.given) + placement.short == wish.count
    if placement.short:  # then no node has room that the limits leave
        taken = {one.node: one.count for one in placement.given}
        for offer in offers:
            node_room = offer.count - taken.get(offer.node, 0)
            if wish.max_per_node:
                node_room = min(node_room, wish.max_per_node - offer.used - taken.get(offer.node, 0))
            rack_room = wish.max_per_rack - per_rack[offer.rack] if wish.max_per_rack else 1
            assert node_room <= 0 or rack_room <= 0


@given(WISHES, OFFERS, st.randoms(use_true_random=False))
def test_the_order_of_offers_does_not_matter(wish: Wish, offers: list[NodeOffer], rng):
    shuffled = list(offers)
    rng.shuffle(shuffled)
    assert place(wish, offers) == place(wish, shuffled)


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 6))
def test_spread_is_even_over_racks_and_over_the_nodes_of_each(count: int, racks: int, nodes: int):
    offers = [NodeOffer(f"r{r}n{n}", f"r{r}", 100) for r in range(racks) for n in range(nodes)]
    given_ = place(Wish(count, salt="d"), offers).given
    per_rack = [sum(one.count for one in given_ if one.rack == f"r{r}") for r in range(racks)]
    assert max(per_rack) - min(per_rack) <= 1
    for r in range(racks):
        per_node = [sum(one.count for one in given_ if one.node == f"r{r}n{n}") for n in range(nodes)]
        assert max(per_node) - min(per_node) <= 1


def test_spread_prefers_the_emptier_node_among_equals():
    offers = [NodeOffer("full", "r1", 5, utilisation=0.9), NodeOffer("empty", "r1", 5, utilisation=0.1)]
    assert [one.node for one in place(Wish(1), offers).given] == ["empty"]


def test_pack_fills_the_fullest_first():
    offers = [NodeOffer("empty", "r1", 9, utilisation=0.0), NodeOffer("half", "r1", 4, utilisation=0.5)]
    assert [(one.node, one.count) for one in place(Wish(6, "pack"), offers).given] == [("empty", 2), ("half", 4)]


def test_explain_names_dimension_cordon_and_limits_per_rack():
    offers = [
        NodeOffer("a", "r1", 0, short="memory_mib", utilisation=1.0),
        NodeOffer("b", "r1", 0, cordoned=True),
        NodeOffer("c", "r2", 8, used=2),
        NodeOffer("d", "r2", 0, short="vcpus", held=3),
        NodeOffer("e", "r3", 2, short="disk_mib"),
    ]
    lines = explain(Wish(9, max_per_node=3), offers, ["node x"])
    assert lines == (
        "rack r1: 0 more fit on 2 nodes (1 cordoned, 1 out of memory_mib)",
        "rack r2: 1 more fit on 2 nodes (1 at max_per_node 3, 1 out of vcpus (reserved by other requests))",
        "rack r3: 2 more fit on 1 nodes (1 then out of disk_mib)",
        "node x did not answer",
    )


def test_ten_thousand_instances_on_a_thousand_nodes_take_well_under_a_second():
    offers = [NodeOffer(f"r{n % 25}n{n}", f"r{n % 25}", 16) for n in range(1000)]
    began = time.process_time()
    assert place(Wish(10_000, salt="d"), offers).short == 0
    assert time.process_time() - began < 1.0
