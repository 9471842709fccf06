"""The tree in memory under faults that a real one can not be made to suffer: see tests/contract for the rest."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from fabric.sim.clock import Clock
from zk.memory import Ensemble
from zk.memory_session import MemoryTree
from zk.tree import (
    Check,
    Children,
    ConnectionLost,
    Create,
    Created,
    Delete,
    Existed,
    Exists,
    Get,
    Got,
    Listed,
    Multi,
    MultiFailed,
    Op,
    Outcome,
    Overloaded,
    SessionChanged,
    SessionExpired,
    SessionState,
    Set,
    TreeEvent,
    WatchFired,
)
from zk.znodes import Change

CONNECTED, SUSPENDED, LOST = SessionState.CONNECTED, SessionState.SUSPENDED, SessionState.LOST
HOP_S = 0.001
TIMEOUT_S = 4.0


class Client:
    """A tree and all it said, in order."""

    def __init__(self, world: World, opened: bool = True, **options: Any) -> None:
        self.world = world
        self.said: list[TreeEvent | Outcome] = []
        options = {"delay": lambda: HOP_S, "session_timeout_s": TIMEOUT_S, **options}
        self.tree = MemoryTree(world.ensemble, **options)
        self.tree.listen(self.said.append)
        self.tree.open()
        if opened:
            world.run_until(lambda: self.tree.state is CONNECTED)

    def ask(self, *ops: Op) -> list[Outcome]:
        """Outcomes come later."""
        outcomes: list[Outcome] = []
        for op in ops:
            self.tree.submit(op, outcomes.append)
        return outcomes

    def do(self, op: Op) -> Outcome:
        outcomes = self.ask(op)
        self.world.run_until(lambda: outcomes)
        return outcomes[0]

    def states(self) -> list[SessionState]:
        return [each.state for each in self.said if isinstance(each, SessionChanged)]

    def fired(self) -> list[str]:
        return [each.path for each in self.said if isinstance(each, WatchFired)]


class World:
    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.ensemble = Ensemble(self.clock.after, lambda: int(self.clock.now * 1000), **options)

    def client(self, **options: Any) -> Client:
        return Client(self, **options)

    def pass_time(self, seconds: float) -> None:
        self.clock.run(self.clock.now + seconds)

    def run_until(self, probe: Callable[[], object], limit_s: float = 60.0) -> float:
        """How long it took, in seconds."""
        began = self.clock.now
        while not probe():
            assert self.clock.now < began + limit_s, "in vain"
            self.pass_time(HOP_S / 4)
        return self.clock.now - began


@pytest.fixture
def world() -> World:
    return World()


# --- a process that is stopped ------------------------------------------------------------------------------------


def test_a_process_stopped_for_less_than_its_timeout_sees_what_came_meanwhile_and_goes_on(world: World) -> None:
    one, other = world.client(), world.client()
    one.do(Exists("/a", watch=True))
    outcomes = one.ask(Create("/mine", ephemeral=True))
    one.tree.pause()
    other.do(Create("/a"))
    world.pass_time(0.9 * TIMEOUT_S)
    assert (outcomes, one.fired()) == ([], [])
    one.tree.resume()
    world.pass_time(0)
    assert [type(outcome) for outcome in outcomes] == [Created]
    assert one.fired() == ["/a"]
    world.pass_time(10 * TIMEOUT_S)
    assert one.states() == [CONNECTED]
    assert world.ensemble.owner("/mine") == one.tree.session_id


def test_a_process_stopped_past_its_timeout_first_sees_what_came_and_then_that_it_is_late(world: World) -> None:
    one, other = world.client(), world.client()
    one.do(Create("/mine", ephemeral=True))
    one.do(Exists("/a", watch=True))
    one.do(Exists("/never", watch=True))
    first = one.tree.session_id
    one.tree.pause()
    other.do(Create("/a"))
    assert world.run_until(lambda: not world.ensemble.owner("/mine")) == pytest.approx(TIMEOUT_S, abs=0.01)
    one.said.clear()
    late = one.ask(Exists("/"))
    one.tree.resume()
    world.pass_time(1.0)
    assert one.said == [
        WatchFired("/a"),
        SessionChanged(SUSPENDED, first),
        WatchFired("/never"),
        SessionChanged(LOST, first),
        SessionChanged(CONNECTED, one.tree.session_id, one.tree.session_timeout_s),
    ]
    assert one.tree.session_id != first
    assert [type(outcome) for outcome in late] == [ConnectionLost]


def test_a_process_stopped_while_it_connects_does_not_live_for_ever(world: World) -> None:
    one = world.client(opened=False)
    world.pass_time(1.5 * HOP_S)  # its request for a session is under way
    one.tree.pause()
    world.pass_time(1.0)
    assert len(world.ensemble.sessions) == 1
    world.pass_time(TIMEOUT_S)
    assert world.ensemble.sessions == ()


# --- a process that is dead ---------------------------------------------------------------------------------------


def test_a_dead_process_hears_nothing_and_its_session_ends_by_the_timeout(world: World) -> None:
    one = world.client()
    one.do(Create("/mine", ephemeral=True))
    outcomes = one.ask(Create("/on-its-way"))
    one.tree.crash()
    heard = len(one.said)
    assert world.run_until(lambda: not world.ensemble.owner("/mine")) == pytest.approx(TIMEOUT_S, abs=0.01)
    assert world.ensemble.read("/on-its-way") == b"", "what it had sent still arrived"
    world.pass_time(10.0)
    assert outcomes == []
    assert len(one.said) == heard
    assert world.ensemble.sessions == ()


# --- a network that is cut ----------------------------------------------------------------------------------------


def test_until_it_notices_a_client_believes_in_a_session_that_may_be_over(world: World) -> None:
    one = world.client()
    one.do(Create("/mine", ephemeral=True))
    one.tree.disconnect(noticed_after_s=TIMEOUT_S + 1)
    outcomes = one.ask(Create("/never"))
    world.run_until(lambda: not world.ensemble.owner("/mine"))
    assert one.tree.state is CONNECTED
    assert outcomes == []
    world.run_until(lambda: outcomes)
    assert isinstance(outcomes[0], ConnectionLost)
    assert world.ensemble.read("/never") is None
    one.tree.reconnect()
    world.pass_time(1.0)
    assert one.states() == [CONNECTED, SUSPENDED, LOST, CONNECTED]


def test_servers_count_from_when_they_heard_of_it_last(world: World) -> None:
    one = world.client()
    session = one.tree.session_id
    one.tree.disconnect(unheard_s=TIMEOUT_S / 3)
    took_s = world.run_until(lambda: not world.ensemble.lives(session))
    assert took_s == pytest.approx(TIMEOUT_S * 2 / 3, abs=0.01)


def test_a_connection_that_breaks_is_made_again_in_the_same_session(world: World) -> None:
    one = world.client()
    session = one.tree.session_id
    for _ in range(5):
        one.tree.drop()
        one.tree.drop()
        world.pass_time(1.0)
    assert one.states() == [CONNECTED, *[SUSPENDED, CONNECTED] * 5]
    world.pass_time(10 * TIMEOUT_S)
    assert one.tree.session_id == session
    assert world.ensemble.lives(session)


def test_a_lost_reply_may_be_noticed_late_and_what_follows_it_is_not_done(world: World) -> None:
    one = world.client()
    one.tree.lose_reply(noticed_after_s=1.0)
    outcomes = one.ask(Exists("/"), Create("/a"), Create("/b"))
    world.pass_time(0.9)
    assert outcomes == []
    assert world.ensemble.read("/a") == b""
    world.pass_time(1.0)
    assert [type(outcome) for outcome in outcomes] == [ConnectionLost] * 3
    assert world.ensemble.read("/b") is None
    assert one.states() == [CONNECTED, SUSPENDED, CONNECTED]
    assert isinstance(one.do(Create("/c")), Created)


def test_calls_that_wait_for_a_connection_are_bounded(world: World) -> None:
    one = world.client(max_waiting=3)
    one.tree.disconnect()
    world.pass_time(0.1)
    outcomes = one.ask(*[Exists("/")] * 5)
    world.pass_time(0.1)
    assert [type(outcome) for outcome in outcomes] == [Overloaded] * 2
    one.tree.reconnect()
    world.pass_time(0.1)
    assert [type(outcome) for outcome in outcomes[2:]] == [Existed] * 3


# --- an outage of the quorum --------------------------------------------------------------------------------------


def test_nobody_expires_in_an_outage_and_everybody_comes_back(world: World) -> None:
    spread = iter((0.1, 0.9, 0.1, 0.9))
    clients = [world.client(retry=lambda: next(spread)) for _ in range(2)]
    sessions = world.ensemble.sessions
    clients[0].do(Create("/mine", ephemeral=True))
    world.ensemble.outage(True)
    in_flight = clients[0].ask(Create("/never"))
    world.pass_time(0.1)
    assert [type(outcome) for outcome in in_flight] == [ConnectionLost]
    waiting = clients[0].ask(Create("/later"))
    world.pass_time(10 * TIMEOUT_S)
    assert not world.ensemble.expire(sessions[0]), "there is no quorum to do it"
    assert [client.tree.state for client in clients] == [SUSPENDED] * 2
    assert waiting == []
    world.ensemble.outage(False)
    world.pass_time(0.5)
    assert [client.tree.state for client in clients] == [CONNECTED, SUSPENDED], "each in its own time"
    world.pass_time(0.5)
    assert [client.states() for client in clients] == [[CONNECTED, SUSPENDED, CONNECTED]] * 2
    assert world.ensemble.sessions == sessions
    assert [type(outcome) for outcome in waiting] == [Created]
    assert world.ensemble.read("/never") is None
    world.pass_time(10 * TIMEOUT_S)
    assert world.ensemble.sessions == sessions


def test_after_an_outage_the_timeouts_begin_anew(world: World) -> None:
    one = world.client()
    session = one.tree.session_id
    one.tree.disconnect()
    world.pass_time(0.9 * TIMEOUT_S)
    world.ensemble.outage(True)
    world.pass_time(TIMEOUT_S)
    world.ensemble.outage(False)
    took_s = world.run_until(lambda: not world.ensemble.lives(session))
    assert took_s == pytest.approx(TIMEOUT_S, abs=0.01)


def test_whoever_comes_during_an_outage_gets_a_session_when_it_is_over(world: World) -> None:
    world.ensemble.outage(True)
    one = world.client(opened=False)
    world.pass_time(10.0)
    assert one.tree.state is LOST
    world.ensemble.outage(False)
    world.pass_time(1.0)
    assert one.states() == [CONNECTED]


def test_an_outage_that_begins_while_a_client_connects(world: World) -> None:
    one = world.client(opened=False)
    world.pass_time(1.5 * HOP_S)
    world.ensemble.outage(True)
    world.pass_time(1.0)
    world.ensemble.outage(False)
    world.pass_time(1.0)
    assert one.tree.state is CONNECTED
    assert set(one.states()) <= {CONNECTED, SUSPENDED}


# --- the end of a session -----------------------------------------------------------------------------------------


def test_closing_without_a_connection_leaves_the_session_to_its_timeout(world: World) -> None:
    one = world.client()
    one.do(Create("/mine", ephemeral=True))
    one.tree.disconnect()
    world.pass_time(0.1)
    ended: list[bool] = []
    waiting = one.ask(Exists("/"))
    one.tree.close(lambda: ended.append(True))
    world.pass_time(0.1)
    assert ended == [True]
    assert [type(outcome) for outcome in waiting] == [SessionExpired]
    assert world.ensemble.owner("/mine")
    world.pass_time(TIMEOUT_S)
    assert not world.ensemble.owner("/mine")


@pytest.mark.parametrize("trouble", ["drop", "expire", "outage"])
def test_closing_ends_though_the_connection_breaks_meanwhile(world: World, trouble: str) -> None:
    one = world.client()
    flying = one.ask(Create("/a"))
    ended: list[bool] = []
    one.tree.close(lambda: ended.append(True))
    if trouble == "drop":
        one.tree.drop()
    elif trouble == "expire":
        world.ensemble.expire(one.tree.session_id)
    else:
        world.ensemble.outage(True)
    world.pass_time(1.0)
    assert ended == [True]
    assert [type(outcome) for outcome in flying] == [ConnectionLost]
    assert one.states() == [CONNECTED], "no event comes after close"


# --- who looks from above -----------------------------------------------------------------------------------------


def test_observers_are_told_of_every_transaction_and_of_none_that_failed(world: World) -> None:
    told: list[tuple[int, int, list[Change]]] = []
    world.ensemble.observe(lambda zxid, session, changes: told.append((zxid, session, changes)))
    one = world.client()
    session = one.tree.session_id
    one.do(Create("/a"))
    one.do(Create("/a"))
    failed = one.do(Multi((Create("/b"), Set("/a", b"1"), Check("/a", 7))))
    assert isinstance(failed, MultiFailed)
    one.do(Multi((Set("/a", b"1"), Create("/keys/e-", ephemeral=True, sequence=True), Delete("/a"))))
    one.do(Get("/"))
    world.ensemble.carry_out(Set("/images", b"x"))
    world.ensemble.expire(session)
    assert [(session, changes) for _, session, changes in told] == [
        (session, [("create", "/a")]),
        (session, [("set", "/a"), ("create", "/keys/e-0000000000"), ("delete", "/a")]),
        (0, [("set", "/images")]),
        (session, [("delete", "/keys/e-0000000000")]),
    ]
    zxids = [zxid for zxid, _, _ in told]
    assert zxids == sorted(set(zxids))
    assert zxids[-1] == world.ensemble.zxid


def test_a_failed_multi_leaves_no_trace(world: World) -> None:
    one = world.client()
    one.do(Create("/p"))
    one.do(Create("/p/old", b"old"))
    before = one.do(Get("/p")), one.do(Get("/p/old")), one.do(Children("/p"))
    ops = (
        Set("/p/old", b"new"),
        Delete("/p/old"),
        Create("/p/e-", ephemeral=True, sequence=True),
        Create("/p/old", b"another"),
        Set("/p", b"p"),
        Check("/none", 0),
    )
    assert isinstance(one.do(Multi(ops)), MultiFailed)
    assert (one.do(Get("/p")), one.do(Get("/p/old")), one.do(Children("/p"))) == before
    made = one.do(Create("/p/e-", sequence=True))
    assert isinstance(made, Created)
    assert made.path == "/p/e-0000000001", "its numbers were not used up"
    assert world.ensemble.ephemerals(one.tree.session_id) == ()


# --- servers that lag ---------------------------------------------------------------------------------------------


def test_a_client_may_read_what_another_has_changed_already_but_never_goes_back() -> None:
    world = World(lag=lambda: 1.0, servers=2)
    one, other = world.client(), world.client()
    assert isinstance(one.do(Create("/a", b"0")), Created)
    world.pass_time(2.0)
    other.ask(Set("/a", b"1"))
    world.pass_time(0.1)
    assert world.ensemble.read("/a") == b"1"
    stale = one.do(Get("/a", watch=True))
    assert isinstance(stale, Got)
    assert (stale.data, stale.stat.version) == (b"0", 0)
    assert one.fired() == []
    world.pass_time(1.0)
    assert one.fired() == ["/a"]
    fresh = one.do(Get("/a"))
    assert isinstance(fresh, Got)
    assert (fresh.data, fresh.stat.version) == (b"1", 1)


def test_a_session_sees_its_own_writes_and_waits_for_them() -> None:
    world = World(lag=lambda: 1.0, servers=2)
    one = world.client()
    began = world.clock.now
    outcomes = one.ask(Create("/a"), Create("/a/b"), Children("/a"), Delete("/a/b"), Exists("/a"))
    world.run_until(lambda: len(outcomes) == 5)
    assert world.clock.now - began == pytest.approx(2.0, abs=0.1), "reads wait for writes, writes for nothing"
    assert outcomes[2] == Listed(("b",))
    assert isinstance(outcomes[4], Existed)
    assert outcomes[4].stat is not None
    assert outcomes[4].stat.children == 0


def test_a_client_that_comes_back_to_another_server_finds_what_it_does_not_know_to_have_done() -> None:
    lags = itertools.cycle((60.0, 0.1))  # the second server, which the first client gets, is the quick one
    world = World(lag=lambda: next(lags), servers=2)
    one = world.client()
    one.tree.lose_reply()
    outcomes = one.ask(Create("/a"))
    world.run_until(lambda: outcomes)
    assert isinstance(outcomes[0], ConnectionLost)
    assert isinstance(one.do(Get("/a")), Got)
