"""The short discussion: rack leaders answer for their agents; what they know wrongly costs a round, never a place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from fabric.commands import AskOffer, Offer, Reserved
from fabric.messages import AnyMessage, Heartbeat, NodeAnswer, NodeCall, RackCall
from fabric.records import Policy
from fabric.resources import Resources
from fabric.roles.known import Known, best_of, how_many
from fabric.roles.placement import Wish, node_offer, place
from tests.unit.roles.world import LARGE, NODE, World


class Heard(World):
    """Keeps what was sent, once it is settled."""

    def __init__(self, discussion: str = "known", **fields) -> None:
        self.messages: list[tuple[str, AnyMessage]] = []
        self.change_message: Callable[[AnyMessage], AnyMessage | None] = lambda message: message
        super().__init__(**fields)
        self.settings = replace(self.settings, discussion=discussion)
        for node, host in list(self.hosts.items()):
            host.alive = False
            self._expire(host.session)
            self.boot(node, host.identity.rack, host.identity.layer)
        self.settle()
        self.messages.clear()

    def _send(self, sender: str, to: str, message: AnyMessage) -> None:
        changed = self.change_message(message)
        if changed is not None:
            self.messages.append((self.by_address.get(to, ""), changed))
            super()._send(sender, to, changed)

    def asked(self) -> list[str]:
        """Agents that were asked for an offer."""
        return [
            node for node, one in self.messages if isinstance(one, NodeCall) and isinstance(one.command, AskOffer)
        ]

    def racks_asked(self) -> int:
        return sum(
            isinstance(one, RackCall) and isinstance(one.everyone, AskOffer) for _, one in self.messages
        )


def spread_of(world: World, deployment: str) -> list[tuple[str, int]]:
    return sorted((share.node, len(share.numbers())) for share in world.record(deployment).plan)


@pytest.mark.parametrize("policy", ["spread", "pack"])
@pytest.mark.parametrize("count", [1, 7, 50])
def test_it_places_as_the_full_discussion_does_and_asks_no_agent(count: int, policy: Policy) -> None:
    places = []
    for discussion in ("known", "full"):
        world = Heard(discussion, racks=4, compute=5)
        for number, some in enumerate((9, 4)):  # so that the nodes are not alike
            world.until_final(world.create(some, name=f"d-before{number}"))
        world.pass_time(1)
        world.messages.clear()
        deployment = world.create(count, name="d-asked0", policy=policy)
        world.until_final(deployment)
        assert world.record(deployment).state == "running"
        assert bool(world.asked()) == (discussion == "full")
        places.append(spread_of(world, deployment))
    assert places[0] == places[1]


def test_no_more_racks_are_asked_than_it_can_be_spread_over() -> None:
    world = Heard(racks=14, compute=2)
    world.until_final(world.create(3))
    assert world.racks_asked() == world.settings.discussion_racks
    world.messages.clear()
    deployment = world.create(12)
    world.until_final(deployment)
    assert world.racks_asked() == 12
    assert len({share.rack for share in world.record(deployment).plan}) == 12


def test_everybody_is_asked_before_it_is_said_that_there_is_no_room() -> None:
    world = Heard(racks=12, compute=1, total=Resources(8, 32768, 163840))
    world.until_final(world.create(20, policy="pack"))
    world.pass_time(1)
    world.messages.clear()
    deployment = world.create(4)  # 12 nodes of two each: they fit in racks that are among the last to be asked, perhaps
    world.until_final(deployment)
    assert world.record(deployment).state == "running"
    world.messages.clear()
    deployment = world.create(1)
    world.until_final(deployment, limit_s=120)
    assert world.record(deployment).state == "failed"
    assert {node for node in world.hosts if "c" in node} <= set(world.asked())


def test_what_a_leader_knows_wrongly_costs_a_round() -> None:
    """No news from an agent gets through: its leader offers what was taken long ago."""
    world = Heard(racks=1, compute=2, total=Resources(8, 32768, 163840))
    stale = next(host for host in world.hosts.values() if host.identity.layer == "compute" and not host.agent.leads)
    ledger = stale.agent._compute.ledger
    ledger.adopt(("d-unseen00", 0), LARGE)
    ledger.adopt(("d-unseen00", 1), LARGE)
    deployment = world.create(2)
    world.until_final(deployment)
    assert world.record(deployment).state == "running"
    assert {share.node for share in world.record(deployment).plan}.isdisjoint({stale.identity.node})
    refused = [
        one.answer
        for _, one in world.messages
        if isinstance(one, NodeAnswer) and one.node == stale.identity.node and isinstance(one.answer, Reserved)
    ]
    assert [answer.granted for answer in refused] == [""]


def test_an_agent_that_has_said_nothing_yet_is_asked() -> None:
    world = Heard(racks=2, compute=3)
    mute = next(host for host in world.hosts.values() if not host.agent.leads and host.identity.layer == "compute")
    leader = world.leader(mute.identity.rack)
    leader.agent._rack._members[mute.identity.node].vitals = None
    world.until_final(world.create(2))
    assert world.asked() == [mute.identity.node]


def test_two_that_ask_one_after_the_other_are_not_offered_the_same() -> None:
    """What an agent is asked to reserve counts as taken before it has answered."""
    world = Heard(racks=1, compute=4, total=LARGE)
    world.slow = dict.fromkeys(world.hosts, 0.2)
    world.change_message = lambda message: None if isinstance(message, Heartbeat) else message
    first, second = (world.create(2, name=f"d-asked0{number}", submit=False) for number in (1, 3))
    world.submit(first)
    world.at(0.1, lambda: world.submit(second))
    world.until_final(first, second)
    assert world.record(first).state == world.record(second).state == "running"
    answers = [one.answer for _, one in world.messages if isinstance(one, NodeAnswer)]
    assert [bool(answer.granted) for answer in answers if isinstance(answer, Reserved)] == [True] * 4


def test_cordoned_and_full_agents_are_not_named() -> None:
    ask = AskOffer("d-abcdef01", LARGE, 50, 1, best=3)
    agents = [Known(f"n{number}", LARGE.times(number), NODE, 7) for number in range(6)]
    named = best_of(ask, agents)
    assert [node for node, _ in named] == ["n5", "n4", "n3"]
    assert named[0][1] == Offer(5, LARGE.times(5), NODE, False, 0, 0, 16, "vcpus", (), 7)
    packed = best_of(AskOffer("d-abcdef01", LARGE, 50, 1, best=2, policy="pack"), agents)
    assert [node for node, _ in packed] == ["n1", "n2"]


@pytest.mark.parametrize("policy", ["spread", "pack"])
def test_the_best_of_each_rack_are_enough_for_the_same_placement(policy: Policy) -> None:
    """Racks of unlike nodes, all with some room: pure, and for many sizes."""
    for wanted in (1, 2, 3, 8, 21, 50, 90):
        racks = {
            f"r{rack}": [(f"r{rack}n{node}", (rack * 7 + node * 5) % 11 + 1) for node in range(12)] for rack in range(6)
        }
        ask = AskOffer("d-abcdef01", LARGE, wanted, 1, how_many(policy, wanted, len(racks), 0), policy)
        told = {
            rack: [Known(node, LARGE.times(room), LARGE.times(16), 1) for node, room in nodes]
            for rack, nodes in racks.items()
        }
        everybody = msgspec.structs.replace(ask, best=100)
        wish = Wish(wanted, policy, salt="d-abcdef01")
        all_offers = [node_offer(n, rack, one) for rack, nodes in told.items() for n, one in best_of(everybody, nodes)]
        named = [node_offer(node, rack, one) for rack, nodes in told.items() for node, one in best_of(ask, nodes)]
        assert place(wish, named) == place(wish, all_offers)
        assert len(named) <= len(all_offers)
