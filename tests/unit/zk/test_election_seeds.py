"""Thousands of bad days by seed: lost replies, dropped connections, expired sessions, late drivers; then one leader."""

from __future__ import annotations

from random import Random

import pytest

from tests.unit.zk.small_tree import Link, SmallTree
from zk.election import Candidacy, Request
from zk.tree import Overloaded, SessionChanged, WatchFired

DIRECTORY, LEADER = "/candidates/compute/r1", "/leaders/compute/r1"


class World:
    """Agents, their candidacies, and everything that can go wrong between them and the tree."""

    def __init__(self, seed: int, agents: int) -> None:
        self.random = Random(seed)
        self.tree = SmallTree("/candidates/compute", "/leaders/compute")
        self.links: list[Link] = [self.tree.connect() for _ in range(agents)]
        self.roles = [Candidacy("compute", "r1", f"n{number}", b"0") for number in range(agents)]
        self.now = 0.0
        self.epochs: list[int] = []

    def deliver(self, number: int) -> None:
        link, role = self.links[number], self.roles[number]
        item = link.inbox.popleft()
        if isinstance(item, SessionChanged):
            requests = role.on_session(item)
        elif isinstance(item, WatchFired):
            requests = role.on_watch(item.path)
        else:
            requests = role.on_outcome(*item)
        self.submit(number, requests)

    def submit(self, number: int, requests: list[Request]) -> None:
        for request in requests:
            self.tree.submit(self.links[number], request.token, request.op)

    def step(self, faults: bool) -> bool:
        """Let one thing happen; False when nothing is left to happen."""
        choices: list[tuple[str, int]] = []
        for number, link in enumerate(self.links):
            choices += [("deliver", number)] * (3 * bool(link.inbox))
            choices += [("serve", number)] * (3 * bool(link.requests and link.connected and link.alive))
            if self.roles[number].next_deadline is not None:
                choices.append(("tick", number))
            if not link.connected:
                choices.append(("reconnect", number))
            elif not link.alive:
                choices.append(("drop", number))
        if faults and self.random.random() < 0.12:
            number = self.random.randrange(len(self.links))
            link = self.links[number]
            choices = [("update", number)]
            choices += [("drop", number)] * link.connected + [("expire", number)] * link.alive
            choices += [("overload", number)] * bool(link.requests)
            choices += [("resign", number)] * (self.random.random() < 0.05)
        if not choices:
            return False
        self.do(*self.random.choice(choices))
        self.check()
        return True

    def do(self, what: str, number: int) -> None:
        link, role = self.links[number], self.roles[number]
        match what:
            case "deliver":
                self.deliver(number)
            case "serve":
                self.tree.serve(link)
            case "drop":
                self.tree.drop(link, self.random)
            case "expire":
                self.tree.expire(link)
            case "reconnect":
                self.tree.reconnect(link)
            case "tick":
                self.now += self.random.uniform(0, 1)
                self.submit(number, role.on_tick(self.now))
            case "overload":
                token, _ = link.requests.popleft()
                link.inbox.append((token, Overloaded("/")))
            case "update":
                self.submit(number, role.update(str(self.now + number).encode()))
            case "resign":
                self.submit(number, role.resign())

    def check(self) -> None:
        leader = self.tree.nodes.get(LEADER)
        for link, role in zip(self.links, self.roles, strict=True):
            if role.leads and link.alive and role._session == link.session:
                assert leader is not None
                assert (leader.owner, leader.czxid) == (link.session, role.epoch), "to lead is to hold the znode"
        if leader is not None and (not self.epochs or self.epochs[-1] != leader.czxid):
            assert not self.epochs or leader.czxid > self.epochs[-1], "epochs only grow"
            self.epochs.append(leader.czxid)

    def heal(self) -> None:
        for _ in range(20_000):
            if not self.step(faults=False):
                return
        raise AssertionError("the candidates do not come to rest")


@pytest.mark.parametrize("block", range(10))
def test_bad_days_end_with_one_leader(block: int) -> None:
    for seed in range(200 * block, 200 * block + 200):
        world = World(seed, agents=Random(seed).randint(1, 6))
        for _ in range(300):
            world.step(faults=True)
        world.heal()
        standing_now = [number for number, role in enumerate(world.roles) if not role._resigning]
        names = world.tree.names(DIRECTORY)
        assert len(names) == len(standing_now), f"seed {seed}: one candidate each, found {names}"
        leaders = [number for number in standing_now if world.roles[number].may_award]
        assert len(leaders) == bool(standing_now), f"seed {seed}"
        for number in leaders:
            assert world.tree.nodes[LEADER].data == world.roles[number]._data, f"seed {seed}: the last update is there"
        for number, role in enumerate(world.roles):
            assert role.resigned == (number not in standing_now), f"seed {seed}"
        awaited = [role._watched for role in world.roles if role._watched is not None and not role._resigning]
        assert len(set(awaited)) == len(awaited) == len(standing_now) - len(leaders), f"seed {seed}: one waits for each"
