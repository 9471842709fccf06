"""One node id, one agent: in one rack or in two, in one layer or in both; and a restart is back at once."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from fabric.effects import Adopted, CallTree, Quit
from fabric.roles.agent import Agent
from fabric.roles.member import Membership
from fabric.roles.outbox import Outbox
from fabric.roles.settings import Identity, Settings
from tests.unit.roles.world import NODE, Host, Tree, World
from zk import paths
from zk import tree as zt

FIRST = Identity("n1", "r1", "compute", "aaaa00000001", "tcp://n1/aaaa00000001", NODE, "test", "host1", 11)
SETTINGS = Settings(session_timeout_s=4.0)


class Bench:
    """One agent's membership on a tree."""

    def __init__(
        self, tree: Tree, identity: Identity, session: int, session_s: float = SETTINGS.session_timeout_s
    ) -> None:
        self.tree, self.session, self.now = tree, session, 0.0
        self.out = Outbox()
        self.role = Membership(identity, SETTINGS, self.out)
        self.asked: list[CallTree] = []
        self.quit = ""
        self.role.on_session(zt.SessionChanged(zt.SessionState.CONNECTED, session, session_s))
        self.take()

    def take(self) -> None:
        self.role.go_on()
        for effect in self.out.take():
            if isinstance(effect, CallTree):
                self.asked.append(effect)
            elif isinstance(effect, Quit):
                self.quit = effect.reason

    def step(self, *, lose: bool = False) -> zt.Op:
        asked = self.asked.pop(0)
        outcome = self.tree.apply(self.session, asked.op)
        assert self.role.on_tree(self.now, asked.token, zt.ConnectionLost("/") if lose else outcome)
        self.take()
        return asked.op

    def settle(self) -> Bench:
        for _ in range(50):
            if not self.asked:
                break
            self.step()
        assert not self.asked
        return self

    def wake(self) -> None:
        due = self.role.next_deadline
        assert due is not None
        self.now = max(self.now, due)
        self.role.tick(self.now)
        self.take()


def owners(tree: Tree, identity: Identity) -> tuple[int, int]:
    both = (paths.member(identity.layer, identity.rack, identity.node), paths.node(identity.node))
    first, second = (tree.nodes[path].owner if path in tree.nodes else 0 for path in both)
    return first, second


@pytest.mark.parametrize("rack", ["r1", "r2"])
@pytest.mark.parametrize("layer", ["compute", "storage"])
def test_the_second_agent_of_a_node_id_is_refused_wherever_it_is(rack, layer):
    tree = Tree()
    first = Bench(tree, FIRST, 1).settle()
    assert first.role.present
    twin = Bench(tree, replace(FIRST, rack=rack, layer=layer, guid="bbbb00000001", pid=22), 2).settle()
    assert not twin.role.present
    assert not twin.quit, "the other may be a session about to end"
    twin.wake()
    assert "'n1' in rack" in twin.quit
    assert "is taken: registered in rack 'r1' (compute) by host1 pid 11" in twin.quit
    assert twin.now >= SETTINGS.session_timeout_s
    assert owners(tree, FIRST) == (1, 1)


def test_who_has_the_name_is_waited_for_as_long_as_sessions_live_that_zookeeper_grants():
    """Which may be longer than what was asked for (minSessionTimeout): whoever died lately is seen for so long."""
    tree = Tree()
    Bench(tree, FIRST, 1).settle()
    granted_s = 5 * SETTINGS.session_timeout_s
    twin = Bench(tree, replace(FIRST, guid="bbbb00000001", pid=22), 2, granted_s).settle()
    twin.wake()
    assert twin.quit
    assert twin.now >= granted_s


def test_the_second_agent_takes_over_when_the_session_of_the_first_ends():
    tree = Tree()
    Bench(tree, FIRST, 1).settle()
    moved = replace(FIRST, rack="r2", guid="bbbb00000001")
    twin = Bench(tree, moved, 2).settle()
    tree.expire(1)
    assert (2, paths.node("n1")) in tree.fired
    twin.role.on_watch(paths.node("n1"))
    twin.take()
    twin.settle()
    assert twin.role.present
    assert owners(tree, moved) == (2, 2)
    assert twin.role.next_deadline is None


@pytest.mark.parametrize("rack", ["r1", "r2"])
def test_an_agent_that_was_restarted_removes_both_of_its_earlier_znodes_at_once_even_in_another_rack(rack):
    tree = Tree()
    Bench(tree, FIRST, 1).settle()
    again = replace(FIRST, rack=rack, guid="aaaa00000002", previous=(FIRST.guid,))
    second = Bench(tree, again, 2).settle()
    assert second.role.present
    assert second.now == 0.0
    assert owners(tree, again) == (2, 2)
    assert [path for path, node in tree.nodes.items() if node.owner == 1] == []


@pytest.mark.parametrize("gone", [paths.member("compute", "r1", "n1"), paths.node("n1")])
def test_an_earlier_start_with_one_znode_only_is_no_obstacle(gone):
    tree = Tree()
    Bench(tree, FIRST, 1).settle()
    tree.apply(0, zt.Delete(gone))
    second = Bench(tree, replace(FIRST, guid="aaaa00000002", previous=(FIRST.guid,)), 2).settle()
    assert second.role.present
    assert owners(tree, FIRST) == (2, 2)


def test_every_lost_reply_is_found_out():
    for lost in range(8):
        tree = Tree()
        Bench(tree, FIRST, 1).settle()
        again = replace(FIRST, rack="r2", guid="aaaa00000002", previous=(FIRST.guid,))
        second = Bench(tree, again, 2)
        for index in range(100):
            if second.role.present:
                break
            if second.asked:
                second.step(lose=index == lost)
            else:
                second.wake()
        assert owners(tree, again) == (2, 2), f"reply {lost} was lost"


def test_who_leaves_takes_both_along():
    tree = Tree()
    first = Bench(tree, FIRST, 1).settle()
    first.role.leave()
    first.take()
    first.settle()
    assert first.role.left
    assert owners(tree, FIRST) == (0, 0)


def test_in_a_fabric_the_twin_in_another_rack_gets_no_work_and_leaves():
    world = World(racks=2, compute=2)
    world.settle()
    identity = world.hosts["r1c02"].identity
    twin = replace(identity, rack="r2", guid="feedbeef0001", address="tcp://twin/feedbeef0001")
    host = Host(twin, Agent(twin, world.settings, random.Random(1), {}), session=999)
    world.hosts["twin"] = host
    world.give(host, Adopted((), ()))
    world.give(host, zt.SessionChanged(zt.SessionState.CONNECTED, 999, SETTINGS.session_timeout_s))
    world.run(lambda: host.quit is not None, 30, "the twin leaves")
    assert "in rack 'r1' (compute)" in (host.quit or "")
    assert paths.member("compute", "r2", "r1c02") not in world.tree.nodes
