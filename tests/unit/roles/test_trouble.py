"""Outages, partitions, silent nodes and changing leaders: what each must not cost. Real roles, virtual time."""

from __future__ import annotations

import msgspec
import pytest

from fabric import effects as fx
from fabric.commands import AskOffer, Cancel, Reserve, Reserved
from fabric.messages import AnyMessage, LeaderHello, NodeAnswer, NodeCall
from fabric.records import encode
from fabric.resources import Resources
from tests.unit.roles.test_flow import exactly, settled
from tests.unit.roles.test_heal import strictly_once
from tests.unit.roles.world import DIGEST, Host, World
from zk import paths
from zk import tree as zt
from zk.paths import Layer


@pytest.mark.parametrize("after_ms", range(0, 12, 2))
def test_a_rack_leader_that_leaves_during_a_delete_leaves_no_orphan(after_ms: int):
    """Its successor does not know its agents yet, and must not call them absent."""
    world = settled(racks=2, compute=3)
    deployment = world.create(12)
    world.until_final(deployment)
    leader = world.leader("r2")
    world.at(after_ms / 1000, lambda: world.give(leader, fx.Leave(), 0))
    world.submit(deployment, "r1")
    world.change(deployment, gone=True)
    world.until_final(deployment, limit_s=90)
    world.pass_time(5)
    left = {o: nodes for o, nodes in world.running(deployment).items() if nodes != [leader.identity.node]}
    assert left == {}


@pytest.mark.parametrize("after_ms", range(8, 20, 2))
def test_a_rack_leader_that_leaves_during_a_create_doubles_nothing(after_ms: int):
    world = settled(racks=2, compute=3)
    leader = world.leader("r2")
    deployment = world.create(12, submit=False)
    world.submit(deployment, "r1")
    world.at(after_ms / 1000, lambda: world.give(leader, fx.Leave(), 0))
    world.until_final(deployment, limit_s=90)
    world.pass_time(5)
    for ordinal, nodes in world.running(deployment).items():
        alive = [node for node in nodes if world.hosts[node].alive]
        assert len(alive) <= 1, (ordinal, nodes)


def everybody(world: World) -> list[Host]:
    return list(world.hosts.values())


@pytest.mark.parametrize("outage_s", [1.0, 3.2, 6.0, 60.0])
@pytest.mark.parametrize("after_s", [0.003, 0.012, 0.03])
def test_an_outage_of_the_quorum_is_outlasted_without_hands(outage_s: float, after_s: float):
    """Servers without a quorum expire nobody: all sessions live on, and so do the owner znodes of who counted itself
    out meanwhile."""
    world = settled()
    deployment = world.create(20, submit=False)
    world.submit(deployment, "r1")
    world.pass_time(after_s)
    for host in everybody(world):
        world.suspend(host)
    running = world.running(deployment)
    world.pass_time(outage_s)
    assert all(nodes == world.running(deployment)[o] for o, nodes in running.items())  # nothing killed meanwhile
    for host in everybody(world):
        world.resume(host)
    world.until_final(deployment, limit_s=60)
    world.pass_time(5)
    assert world.record(deployment).state == "running"
    exactly(world, deployment, 20)


def test_a_coordinator_out_of_touch_goes_on_with_what_it_had():
    world = settled()
    deployment = world.create(20, submit=False)
    leader = world.leader("r1")
    world.submit(deployment, "r1")
    world.run(lambda: bool(world.running(deployment)), what="something runs")
    world.suspend(leader)
    world.pass_time(3.2)  # beyond two thirds of the session timeout: it counts itself out
    assert not leader.agent.leads
    world.resume(leader)
    world.until_final(deployment)
    exactly(world, deployment, 20)
    assert leader.agent.leads


def silence(world: World, node: str) -> None:
    """It keeps its session, but nothing reaches it."""
    world.cut.add(node)


def test_scaling_down_elsewhere_does_not_wait_for_a_silent_node_nor_kill_for_it():
    world = settled(racks=1, compute=3)
    deployment = world.create(6)
    world.until_final(deployment)
    last = next(share for share in world.record(deployment).plan if 5 in share.numbers())
    quiet = next(share.node for share in world.record(deployment).plan if share.node != last.node)
    if world.hosts[quiet].agent.leads:
        quiet = next(
            share.node for share in world.record(deployment).plan if share.node not in (last.node, quiet)
        )
    silence(world, quiet)
    world.change(deployment, count=5)
    assert world.until_final(deployment) < 10
    assert world.record(deployment).state == "running"
    assert sorted(world.running(deployment)) == [0, 1, 2, 3, 4]


def test_a_scale_up_that_is_taken_back_leaves_nothing_beyond_the_count():
    """An old node dies while the new ordinals start, and there is no room to replace both."""
    world = settled(racks=2, compute=2, total=Resources(16, 32768, 163840))  # 4 Large a node, 16 in all
    deployment = world.create(12)
    world.until_final(deployment)
    victim = next(
        host.identity.node for host in everybody(world) if host.identity.layer == "compute" and not host.agent.leads
    )
    world.change(deployment, count=15)
    world.pass_time(0.02)
    world.crash(victim)
    world.hosts[victim].running.clear()
    world.until_final(deployment, limit_s=200)
    world.pass_time(10)
    record = world.record(deployment)
    assert max(world.running(deployment)) < record.count
    assert record.placed == len(world.running(deployment))
    assert record.placed == record.count or record.reason


def test_what_could_not_be_told_to_stop_finds_out_by_itself():
    world = settled(racks=1, compute=3)
    deployment = world.create(6)
    world.until_final(deployment)
    quiet = next(host.identity.node for host in everybody(world) if host.running and not host.agent.leads)
    silence(world, quiet)
    world.change(deployment, gone=True)
    world.until_final(deployment, limit_s=90)
    assert world.hosts[quiet].running  # it was not told
    world.cut.clear()
    world.run(lambda: not world.hosts[quiet].running, 3 * world.settings.verify_every_s, "it looks for itself")


def test_a_reboot_with_the_image_out_of_reach_is_outlasted():
    world = settled(racks=2, compute=2)
    deployment = world.create(8)
    world.until_final(deployment)
    node = next(host.identity.node for host in everybody(world) if host.running and not host.agent.leads)
    before = set(world.hosts[node].running)
    world.crash(node)
    world.hosts[node].running.clear()
    world.hosts[node].cached.clear()
    storage = [host.identity.node for host in everybody(world) if host.identity.layer == "storage"]
    world.cut.update(storage)
    world.boot(node, node[:2], "compute")
    world.pass_time(60)
    world.cut.clear()
    world.run(lambda: set(world.hosts[node].running) == before, 120, "its instances are back")


def test_a_delete_does_not_wait_for_a_slow_fetch():
    world = settled()
    world.fetch_s = dict.fromkeys(world.hosts, 300.0)
    deployment = world.create(6)
    world.pass_time(1)
    world.change(deployment, gone=True)
    assert world.until_final(deployment) < 5
    assert world.record(deployment).state == "deleted"


def test_a_server_that_does_not_show_a_new_deployment_yet_does_not_close_it():
    """The API wrote it at one server and told a leader, whose own server lags behind the message."""
    world = settled()
    apply, stale = world.tree.apply, []

    def lagging(session: int, op: zt.Op) -> zt.Outcome:
        if isinstance(op, zt.Get) and op.path.startswith(paths.DEPLOYMENTS) and not stale:
            stale.append(op)
            return zt.NoNode(op.path)
        return apply(session, op)

    world.tree.apply = lagging
    deployment = world.create(6)
    world.until_final(deployment, limit_s=5)
    assert stale == [zt.Get(paths.deployment(deployment))]
    assert world.record(deployment).state == "running"
    exactly(world, deployment, 6)


def test_a_marker_or_trace_that_somebody_removed_does_not_keep_a_deployment_open():
    world = settled()
    deployment = world.create(6)
    world.pass_time(0.01)
    world.tree.apply(0, zt.Delete(paths.trace(deployment)))
    writes = world.tree.writes
    world.until_final(deployment)
    assert world.tree.writes - writes < 20
    odd = "/open/foo:bar"
    world.tree.apply(0, zt.Create(odd))
    world.pass_time(15)
    assert all(host.agent._leading.load == 0 for host in everybody(world) if host.agent._leading)


class Deaf(World):
    """For as long as the first round of reservations waits, nobody hears what one node answers to it."""

    until: float | None = None

    def _send(self, sender: str, to: str, message: AnyMessage) -> None:
        if isinstance(message, NodeAnswer) and isinstance(message.answer, Reserved) and message.node == "r1c02":
            self.until = self.until or self.now + self.settings.command_wait_s
            if self.now < self.until:
                return
        super()._send(sender, to, message)


def test_a_node_that_was_not_heard_does_not_keep_what_it_reserved():
    """All of the fabric's room is needed, so what one node holds without the coordinator's knowledge is missed."""
    world = Deaf(racks=1, compute=2, total=Resources(16, 32768, 163840))
    world.settle()
    deployment = world.create(8)
    world.until_final(deployment)
    exactly(world, deployment, 8)


@pytest.mark.parametrize("who", ["user", "coordinator"])
def test_what_is_being_stopped_is_not_placed_elsewhere_before_it_has(who: str):
    """Found by the simulator: scaled down, then up again (or another coordinator) while instances were still ending."""
    world = settled(racks=2, compute=3)
    deployment = world.create(12)
    world.until_final(deployment)
    strictly_once(world)
    slow: set[str] = set()
    plain = world._perform

    def perform(host: Host, effect: fx.Effect) -> None:
        if isinstance(effect, fx.StopInstance):
            slow.add(host.identity.node)
            host.agent._compute.cordoned = True  # so that other nodes are given what ends here
            world.at(8.0, lambda: plain(host, effect))
        else:
            plain(host, effect)

    world._perform = perform
    world.change(deployment, count=4, min_count=4)
    world.run(lambda: bool(slow), 10, "something is being stopped")
    owner = next(leader for leader in world.leaders() if leader.agent._leading.load)
    if who == "coordinator":
        world.crash(owner.identity.node)
    world.change(deployment, count=12, min_count=12)
    world.submit(deployment, None if who == "coordinator" else owner.identity.rack)
    world.until_final(deployment, limit_s=120)
    world.pass_time(20)
    exactly(world, deployment, 12)


def test_a_limit_per_rack_counts_what_runs_on_nodes_that_are_silent():
    world = settled(racks=3, compute=3)
    deployment = world.create(9, max_per_rack=3)
    world.until_final(deployment)
    quiet = next(host for host in everybody(world) if host.running and not host.agent.leads)
    silence(world, quiet.identity.node)
    world.change(deployment, count=10, min_count=10)
    world.until_final(deployment, limit_s=120)
    record = world.record(deployment)
    racks = [share.rack for share in record.plan for _ in share.numbers()]
    assert max(racks.count(rack) for rack in set(racks)) == 3
    assert (record.count, record.placed) == (9, 9)


@pytest.mark.parametrize("told", ["its coordinator", "another leader"])
def test_a_change_in_the_middle_of_a_start_is_seen_whoever_is_told_of_it(told: str):
    world = settled()
    world.start_hook = lambda host, effect: fx.FetchProgress(DIGEST, 1, 2)  # it never starts
    deployment = world.create(6)
    world.pass_time(3)
    owner = next(leader for leader in world.leaders() if leader.agent._leading.load)
    record = world.record(deployment)
    gone = msgspec.structs.replace(record, generation=record.generation + 1, state="accepted", gone=True)
    world.tree.apply(0, zt.Set(paths.deployment(deployment), encode(gone)))
    mine = owner.identity.rack
    other = next(leader.identity.rack for leader in world.leaders() if leader.identity.rack != mine)
    world.submit(deployment, mine if told == "its coordinator" else other)
    assert world.until_final(deployment) < 3
    assert world.record(deployment).state == "deleted"


def test_an_orphan_behind_many_that_are_in_charge_is_found():
    world = settled(racks=1, compute=2)
    somebody = next(world.sessions)
    names = [world.create(1, submit=False, name=f"d-{number:08d}") for number in range(70)]
    for name in names[:-1]:
        world.tree.apply(somebody, zt.Create(paths.owner(name), b"{}", ephemeral=True))
    world.run(lambda: world.record(names[-1]).final, 30, "the orphan is taken")


def test_what_was_tried_in_vain_for_the_old_wish_is_tried_again_for_the_new_one():
    world = settled(racks=3, compute=4)
    deployment = world.create(12, lost_after_s=1)
    world.until_final(deployment)
    victim = next(host for host in everybody(world) if host.running and not host.agent.leads)
    broken = [True]
    world.start_hook = lambda host, effect: (
        fx.InstanceFailed(effect.instance, effect.attempt, "image", "rotten") if broken[0] else None
    )
    world.crash(victim.identity.node)
    victim.running.clear()

    def given_up() -> bool:
        charges = [leader.agent._leading._charges.get(deployment) for leader in world.leaders()]
        return any(charge is not None and charge._work._enough for charge in charges)

    world.run(given_up, 40, "healing is given up")
    broken[0] = False
    owner = next(leader for leader in world.leaders() if deployment in leader.agent._leading._charges)
    record = world.record(deployment)
    more = msgspec.structs.replace(record, generation=record.generation + 1, count=20, min_count=20)
    world.tree.apply(0, zt.Set(paths.deployment(deployment), encode(more)))
    world.submit(deployment, owner.identity.rack)
    world.until_final(deployment, limit_s=100)
    assert world.record(deployment).placed == 20


def test_a_search_that_waits_for_a_silent_node_asks_less_and_less_often():
    world = settled(racks=2, compute=4, total=Resources(16, 32768, 163840))
    deployment = world.create(31, lost_after_s=1)
    world.until_final(deployment)
    victim, quiet = [host for host in everybody(world) if host.running and not host.agent.leads][:2]
    world.crash(victim.identity.node)
    victim.running.clear()
    silence(world, quiet.identity.node)
    world.pass_time(40)
    asked: list[str] = []
    plain = world._send

    def send(sender: str, to: str, message: AnyMessage) -> None:
        if isinstance(message, NodeCall) and isinstance(message.command, AskOffer):
            asked.append(to)
        plain(sender, to, message)

    world._send = send
    world.pass_time(120)
    assert world.record(deployment).lacking >= 3
    assert len(asked) <= 100


def test_a_limit_per_rack_counts_what_was_granted_on_nodes_that_fall_silent_then():
    """One rack grants its share, the other hears of nothing; when it does, two of the first are out of reach."""
    world = settled(racks=2, compute=3)
    quiet = {host.identity.node for host in everybody(world) if host.identity.rack == "r1" and not host.agent.leads}
    deaf, plain = True, world._send

    def send(sender: str, to: str, message: AnyMessage) -> None:
        nonlocal deaf
        node = world.by_address.get(to, "")
        order = message.command if isinstance(message, NodeCall) else None
        if isinstance(order, Reserve) and node.startswith("r2"):
            if deaf:
                return
            world.cut.clear()
        elif isinstance(order, Cancel) and node.startswith("r2"):
            deaf = False
            world.cut.update(quiet)
        plain(sender, to, message)

    world._send = send
    deployment = world.create(6, max_per_rack=3, min_count=6)
    world.until_final(deployment, limit_s=120)
    assert not deaf
    racks = [share.rack for share in world.record(deployment).plan for _ in share.numbers()]
    assert sorted(racks) == ["r1"] * 3 + ["r2"] * 3


def test_the_time_of_an_outage_is_no_stall():
    """Nodes that wait for their image through an outage longer than a stall are not given up when it is over."""
    world = settled()
    world.fetch_s = {host.identity.node: world.settings.start_stall_s + 15 for host in everybody(world)}
    deployment = world.create(6, submit=False)
    world.submit(deployment, "r1")
    world.pass_time(1)
    for host in everybody(world):
        world.suspend(host)
    world.pass_time(world.settings.start_stall_s + 5)
    for host in everybody(world):
        world.resume(host)
    plan = world.record(deployment).plan
    world.until_final(deployment, limit_s=60)
    exactly(world, deployment, 6)
    assert world.record(deployment).plan == plan, "nothing was placed elsewhere"


def test_what_a_node_may_have_reserved_that_is_gone_is_not_waited_for():
    """It dies between its offer and its reservation, of a request that takes what it gets."""
    world = settled(racks=2, compute=3)
    victim = next(host for host in everybody(world) if host.identity.layer == "compute" and not host.agent.leads)
    deployment = world.create(12, submit=False, max_per_node=1, min_count=3)
    world.submit(deployment)
    world.run(lambda: bool(world.reserved()), what="somebody has reserved")
    world.crash(victim.identity.node)
    assert world.until_final(deployment) < 8
    record = world.record(deployment)
    assert (record.state, record.placed) == ("running", 5)


@pytest.mark.parametrize("layer", ["compute", "storage"])
def test_a_leader_that_sees_the_same_names_learns_that_an_agent_was_started_anew(layer: Layer):
    """The old registration went and the new one came between two looks of the leader, who was told nothing."""
    world = settled(racks=1, compute=3, storage=2)
    victim = next(host for host in everybody(world) if host.identity.layer == layer and not host.agent.leads)
    world.pass_time(3)
    world.crash(victim.identity.node, expire_after_s=60)
    world.tree.child_watches.pop(paths.rack_members(layer, "r1"))
    again = world.boot(victim.identity.node, "r1", layer)
    handle, greeted = again.agent.handle, []

    def heard(now: float, wall_ms: int, event: fx.Input) -> list[fx.Effect]:
        greeted.append(isinstance(event, fx.Received) and isinstance(event.message, LeaderHello))
        return handle(now, wall_ms, event)

    again.agent.handle = heard
    world.run(lambda: again.agent.present, what="it is registered again")
    world.pass_time(0.1)
    assert any(greeted), f"its leader still takes it for {victim.identity.guid}"
