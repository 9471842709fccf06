"""What a rack leader can offer for its agents by itself, of what it knows of them (step 5 without the last hop).

Theory of operation. An agent's heartbeat says what is free on it, `SOON_S` after that changed at most (`beats`); and
every command to it passes through its leader, as do the answers, which say what is free after each reservation. So what
the leader knows is hardly ever old, and to ask an agent again costs two messages to learn the same. Knowing it, the
leader also needs to name those nodes alone that the placement can come to: the `best` for the policy, in the
placement's own order. Nothing depends on its being right: an agent that was offered in vain refuses the reservation and
says what it has; and a search that ends up short of places asks every agent before it says so (`reserving`).

Pure functions. O(agents of the rack).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import NamedTuple

from fabric.commands import AskOffer, Offer
from fabric.ordinals import MAX_COUNT
from fabric.records import Policy
from fabric.resources import Resources
from fabric.roles.placement import preference, salt_of, tie_of, utilisation


class Known(NamedTuple):
    """An agent that is not cordoned, as its rack leader knows it. `registered`: see `commands.Offer`."""

    node: str
    free: Resources
    total: Resources
    registered: int


def best_of(ask: AskOffer, agents: Iterable[Known]) -> list[tuple[str, Offer]]:
    """What the `ask.best` that a placement comes to first would answer, but for others' reservations; of those that
    have room."""
    salt, need, wanted = salt_of(ask.deployment), ask.resources, min(ask.wanted, MAX_COUNT)
    ranked = []
    for agent in agents:
        count = min(agent.free.holds(need), wanted)
        if count:
            busy = utilisation(agent.free, agent.total)
            order = preference(ask.policy, 0, busy, count, tie_of(salt, agent.node))
            ranked.append((order, agent.node, count, agent))
    return [(agent.node, _offer(ask, agent, count)) for _, _, count, agent in heapq.nsmallest(ask.best, ranked)]


def _offer(ask: AskOffer, agent: Known, count: int) -> Offer:
    return Offer(
        count=count,
        free=agent.free,
        total=agent.total,
        cordoned=False,
        held=0,
        oldest=0,
        capacity=min(agent.total.holds(ask.resources), MAX_COUNT),
        short=agent.free.shortest(ask.resources),
        holders=(),
        registered=agent.registered,
    )


def how_many(policy: Policy, wanted: int, racks: int, later: int) -> int:
    """How many nodes each of `racks` has to name, so that more of them could change a placement of `wanted` only where
    other racks are full: twice its even share of a spread, all of a pack. `later`: nodes that the search leaves out, or
    that have some of the deployment already, and so come later than their leader thinks."""
    share = wanted if policy == "pack" else 2 * -(-wanted // max(1, racks)) + 2
    return min(min(share, wanted) + later, MAX_COUNT)
