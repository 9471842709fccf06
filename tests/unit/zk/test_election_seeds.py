"""Thousands of bad days by seed: lost replies, dropped connections, expired sessions, late drivers; then one leader."""

from __future__ import annotations

from collections import deque
from functools import partial
from random import Random

import pytest

from fabric.sim.clock import Clock
from zk.election import Candidacy, Request
from zk.memory import Ensemble
from zk.memory_session import MemoryTree
from zk.tree import (
    Delete,
    Outcome,
    Overloaded,
    SessionChanged,
    SessionExpired,
    SessionState,
    TreeEvent,
    WatchFired,
)
from zk.znodes import Change

DIRECTORY, LEADER = "/candidates/compute/r1", "/leaders/compute/r1"
TIMEOUT_S = 2.0


class Agent:
    """A candidacy and its tree, joined by a driver that may be late: then it asks in the next session for what the role
    wanted in the last. Worse than an agent's host, which holds requests back but not over the end of a session. One
    request would be the end of another's leadership, so here too it is not: to delete the leader znode."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.role = Candidacy("compute", "r1", f"n{number}", b"0")
        self.requests: deque[tuple[int, Request]] = deque()
        self.lost = 0  # sessions
        random = world.random
        self.tree = MemoryTree(
            world.ensemble,
            delay=lambda: 0.01 * random.random(),
            retry=lambda: 0.5 * random.random(),
            session_timeout_s=TIMEOUT_S,
        )
        self.tree.listen(self.heard)
        self.tree.open()

    def heard(self, event: TreeEvent) -> None:
        self.lost += isinstance(event, SessionChanged) and event.state is SessionState.LOST
        self.perform(self.role.on_watch(event.path) if isinstance(event, WatchFired) else self.role.on_session(event))

    def answered(self, token: str, outcome: Outcome) -> None:
        self.perform(self.role.on_outcome(token, outcome))

    def perform(self, requests: list[Request]) -> None:
        world = self.world
        late_s = world.random.random() * 3 * TIMEOUT_S if world.faults and world.random.random() < 0.1 else 0.0
        for request in requests:
            self.requests.append((self.lost, request))
            world.clock.after(late_s, self.submit)
        if (deadline := self.role.next_deadline) is not None:
            world.clock.at(deadline, self.tick)
        world.check()

    def submit(self) -> None:
        lost, request = self.requests.popleft()
        answered = partial(self.answered, request.token)
        if lost != self.lost and request.op == Delete(LEADER):
            self.world.clock.after(0.0, partial(answered, SessionExpired("/")))
        elif self.world.faults and self.world.random.random() < 0.02:
            self.world.clock.after(0.0, partial(answered, Overloaded("/")))
        else:
            self.tree.submit(request.op, answered)

    def tick(self) -> None:
        deadline = self.role.next_deadline
        if deadline is not None and deadline <= self.world.clock.now:
            self.perform(self.role.on_tick(self.world.clock.now))


class World:
    """Agents, their candidacies, and everything that can go wrong between them and the tree."""

    def __init__(self, seed: int, lag: bool) -> None:
        self.random = random = Random(seed)
        self.clock = Clock()
        lag_s = random.choice((0.01, 0.1, 2.0))
        self.ensemble = Ensemble(self.clock.after, lambda: 0, lag=(lambda: lag_s * random.random()) if lag else None)
        self.ensemble.observe(self.committed)
        self.faults = True
        self.epochs: list[int] = []
        self.agents: list[Agent] = []
        self.agents += [Agent(self, number) for number in range(random.randint(1, 6))]

    def committed(self, zxid: int, session: int, changes: list[Change]) -> None:
        if ("create", LEADER) in changes:
            assert not self.epochs or zxid > self.epochs[-1], "epochs only grow"
            self.epochs.append(zxid)

    def check(self) -> None:
        stat = self.ensemble.stat(LEADER)
        for agent in self.agents:
            session = agent.tree.session_id
            if agent.role.leads and self.ensemble.lives(session) and agent.role._session == session:
                assert stat is not None
                assert (stat.owner, stat.czxid) == (session, agent.role.epoch), "to lead is to hold the znode"

    def hurt(self) -> None:
        random, agent = self.random, self.random.choice(self.agents)
        tree, noticed_s = agent.tree, random.random() ** 4 * 2 * TIMEOUT_S
        match random.randrange(9):
            case 0:
                tree.drop(noticed_s)
            case 1:
                tree.disconnect(noticed_s)
            case 2 | 3:
                tree.reconnect()
            case 4 | 5:
                tree.lose_reply(noticed_s)
            case 6:
                self.ensemble.expire(tree.session_id)
            case 7:
                agent.perform(agent.role.update(str(self.clock.now).encode()))
            case _ if random.random() < 0.05:
                agent.perform(agent.role.resign())

    def heal(self) -> None:
        self.faults = False
        for agent in self.agents:
            agent.tree.reconnect()
        self.clock.run(self.clock.now + 120.0)
        assert not self.clock.waiting, "the candidates do not come to rest"


@pytest.mark.parametrize("lag", [False, True], ids=["in step", "with lag"])
@pytest.mark.parametrize("block", range(5))
def test_bad_days_end_with_one_leader(lag: bool, block: int) -> None:
    for seed in range(200 * block, 200 * block + 200):
        world = World(seed, lag)
        for _ in range(60):
            world.hurt()
            world.clock.run(world.clock.now + world.random.choice((0.005, 0.05, 1.0)) * world.random.random())
        world.heal()
        standing_now = [agent for agent in world.agents if not agent.role._resigning]
        names = world.ensemble.children(DIRECTORY)
        assert len(names) == len(standing_now), f"seed {seed}: one candidate each, found {names}"
        leaders = [agent for agent in standing_now if agent.role.may_award]
        assert len(leaders) == bool(standing_now), f"seed {seed}"
        for agent in leaders:
            assert world.ensemble.read(LEADER) == agent.role._data, f"seed {seed}: the last update is there"
        for agent in world.agents:
            assert agent.role.resigned == (agent not in standing_now), f"seed {seed}"
        awaited = [agent.role._watched for agent in standing_now if agent.role._watched is not None]
        assert len(set(awaited)) == len(awaited) == len(standing_now) - len(leaders), f"seed {seed}: one waits for each"
