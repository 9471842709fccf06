"""Bad days of the tree in memory, by seed: every session sees one history, in order, and misses nothing.

Held after every answer: what a session reads is what the tree was after some transaction, never one before what it has
seen or written already; a change that it reads was announced by its watch; nothing is done in a session that it was not
asked for in. After the last fault: every call has exactly one outcome, all sessions live, no watch was missed, and only
the living have ephemerals.
"""

from __future__ import annotations

from functools import partial
from random import Random

import pytest

from fabric.sim.clock import Clock
from zk.memory import Ensemble
from zk.memory_session import MemoryTree
from zk.tree import (
    Children,
    Create,
    Created,
    Delete,
    Existed,
    Exists,
    Get,
    Got,
    Listed,
    Multi,
    NoNode,
    Op,
    Outcome,
    SessionChanged,
    SessionExpired,
    SessionState,
    Set,
    Stat,
    TreeEvent,
    WatchFired,
    Written,
)
from zk.znodes import Change

TIMEOUT_S = 2.0
PATHS = tuple(f"/keys/{name}" for name in "abc")
NEXT_STATES = {
    SessionState.CONNECTED: {SessionState.SUSPENDED},
    SessionState.SUSPENDED: {SessionState.CONNECTED, SessionState.LOST},
    SessionState.LOST: {SessionState.CONNECTED},
}
Known = tuple[bytes | None, Stat]
"""Data (None: they were not read) and stat of a znode that is there."""
State = dict[str, Known]


class World:
    def __init__(self, seed: int, lag: bool) -> None:
        self.random = random = Random(seed)
        self.clock = Clock()
        self.ensemble = Ensemble(
            self.clock.after,
            lambda: int(self.clock.now * 1000),
            lag=(lambda: random.choice((0.0, 0.01, 0.1, 5.0)) * random.random()) if lag else None,
            servers=random.randint(2, 4),
        )
        self.ensemble.observe(self.committed)
        self.history: list[tuple[int, State]] = [(self.ensemble.zxid, {})]
        self.made: set[str] = set()
        self.names = 0
        self.clients = [Client(self) for _ in range(random.randint(2, 5))]

    def committed(self, zxid: int, session: int, changes: list[Change]) -> None:
        state = dict(self.history[-1][1])
        for kind, path in changes:
            if kind == "delete":
                state.pop(path, None)
            else:
                data, stat = self.ensemble.read(path), self.ensemble.stat(path)
                if data is not None and stat is not None:
                    state[path] = data, stat
                self.made.add(path)
        self.history.append((zxid, state))

    def step(self) -> None:
        client = self.random.choice(self.clients)
        if self.random.random() < 0.85:
            client.ask()
        else:
            self.hurt(client)
        self.clock.run(self.clock.now + self.random.choice((0.0, 0.001, 0.01, 0.2)) * self.random.random())

    def hurt(self, client: Client) -> None:
        tree, random = client.tree, self.random
        noticed_s, unheard_s = random.random() ** 4 * 3 * TIMEOUT_S, random.random() * TIMEOUT_S / 3
        match random.randrange(10):
            case 0:
                tree.drop(noticed_s, unheard_s)
            case 1:
                tree.disconnect(noticed_s, unheard_s)
            case 2 | 3:
                tree.reconnect()
            case 4:
                tree.lose_reply(noticed_s)
            case 5:
                tree.pause()
            case 6 | 7:
                tree.resume()
            case 8:
                self.ensemble.expire(random.choice((0, *self.ensemble.sessions)))
            case 9 if random.random() < 0.3:
                self.ensemble.outage(not self.ensemble.is_out)
            case _:
                client.die(closed=random.random() < 0.5)
                self.clients[self.clients.index(client)] = Client(self)

    def heal(self) -> None:
        self.ensemble.outage(False)
        for client in self.clients:
            client.tree.reconnect()
            client.tree.resume()
        self.clock.run(self.clock.now + 200.0)

    def check_settled(self) -> None:
        sessions = [client.tree.session_id for client in self.clients]
        assert [client.tree.state for client in self.clients] == [SessionState.CONNECTED] * len(sessions)
        assert sorted(self.ensemble.sessions) == sorted(sessions)
        last = self.history[-1][1]
        assert {stat.owner for _, stat in last.values()} <= {0, *sessions}
        for client in self.clients:
            assert client.unanswered == 0
            for path, seen in client.armed.items():
                assert same(seen, last.get(path)), f"{path} has changed and its watch has not fired"


class Client:
    def __init__(self, world: World) -> None:
        self.world = world
        random = world.random
        self.tree = MemoryTree(
            world.ensemble,
            delay=lambda: 0.01 * random.random(),
            retry=lambda: 0.5 * random.random(),
            session_timeout_s=TIMEOUT_S,
            window=random.choice((2, 128)),
        )
        self.tree.listen(self.heard)
        self.tree.open()
        self.dead = False
        self.unanswered = 0
        self.seen = 0
        """Into the history: the earliest that what it has seen allows."""
        self.armed: dict[str, Known | None] = {}
        self.last: SessionChanged | None = None

    def die(self, closed: bool) -> None:
        self.dead = True
        if closed:
            self.tree.close()
        else:
            self.tree.crash()

    def ask(self) -> None:
        random, tree = self.world.random, self.tree
        path = random.choice(PATHS)
        data = random.randbytes(2)
        session = tree.session_id if tree.state is not SessionState.LOST else None
        self.world.names += 1
        op: Op
        match random.randrange(11):
            case 0 | 1 | 2:
                op = Get(path, watch=True)
            case 3:
                op = Exists(path, watch=True)
            case 4:
                op = Children("/keys")
            case 5:
                op = Set(path, data)
            case 6:
                op = Create(path, data)
            case 7:
                op = Delete(path)
            case 8:
                op = Create(f"/keys/{self.world.names}", data, ephemeral=True)
            case 9:
                op = Multi((Set(path, data), Delete(random.choice(PATHS))))  # fails, or not, after a change
            case _:
                op = Multi((Set(path, data), Create(f"/keys/{self.world.names}", data, ephemeral=True)))
        self.unanswered += 1
        tree.submit(op, partial(self.answered, op, session, []))

    def answered(self, op: Op, session: int | None, answers: list[Outcome], outcome: Outcome) -> None:
        answers.append(outcome)
        assert len(answers) == 1, f"{op} has two outcomes: {answers}"
        self.unanswered -= 1
        path = op.ops[-1].path if isinstance(op, Multi) else op.path
        match outcome:
            case SessionExpired() if path not in PATHS:
                assert path not in self.world.made, "it was not to happen"
            case Created(stat=Stat() as stat):
                self.at_least(stat.czxid)
                assert not stat.owner or session in (None, stat.owner), "done in a session it was not asked for in"
            case Written(stat):
                self.at_least(stat.mzxid)
            case Got(data, stat):
                self.read(path, (data, stat), arms=True)
            case Existed(stat):
                self.read(path, stat and (None, stat), arms=True)
            case NoNode() if isinstance(op, Get):
                self.read(path, None, arms=False)
            case Listed(names):
                self.follow(lambda state: sorted(state) == [f"/keys/{name}" for name in names], f"listed {names}")

    def read(self, path: str, known: Known | None, arms: bool) -> None:
        self.follow(lambda state: same(known, state.get(path)), f"{path} read as {known}")
        if path in self.armed and not self.dead:  # a closed tree answers what was asked, and tells no events
            assert same(self.armed[path], known), f"{path} has changed before its watch has fired"
        if arms:
            self.armed[path] = known

    def follow(self, fits: object, what: str) -> None:
        assert callable(fits)
        history = self.world.history
        while not fits(history[self.seen][1]):
            self.seen += 1
            assert self.seen < len(history), f"no state of the tree since what was seen before has {what}"

    def at_least(self, zxid: int) -> None:
        while self.world.history[self.seen][0] < zxid:
            self.seen += 1

    def heard(self, event: TreeEvent) -> None:
        assert not self.dead
        if isinstance(event, WatchFired):
            self.armed.pop(event.path, None)
            return
        if self.last is None:
            assert event.state is SessionState.CONNECTED
        else:
            assert event.state in NEXT_STATES[self.last.state]
            renewed = self.last.state is SessionState.LOST
            assert (event.session_id != self.last.session_id) == renewed
        self.last = event


def same(one: Known | None, other: Known | None) -> bool:
    """One and the same version of a znode."""
    if one is None or other is None:
        return one is other
    ours, theirs = one[1], other[1]
    same_data = one[0] == other[0] or None in (one[0], other[0])
    return (ours.czxid, ours.mzxid, ours.version) == (theirs.czxid, theirs.mzxid, theirs.version) and same_data


@pytest.mark.parametrize("lag", [False, True], ids=["in step", "with lag"])
@pytest.mark.parametrize("block", range(4))
def test_bad_days_are_seen_in_order_and_end(lag: bool, block: int) -> None:
    for seed in range(40 * block, 40 * block + 40):
        world = World(seed, lag)
        try:
            for _ in range(300):
                world.step()
            world.heal()
            world.check_settled()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
