"""The flow of requests over real roles in a small world under virtual time: what must hold, whoever dies when."""

from __future__ import annotations

import random
from dataclasses import replace

import msgspec
import pytest

from fabric import effects as fx
from fabric.messages import AnyMessage, RecordNews, RecordSeen, Submit
from fabric.records import Image, encode
from fabric.resources import Resources
from fabric.roles.agent import Agent
from fabric.roles.trace import unpack
from tests.unit.roles.world import DIGEST, LARGE, Host, World
from zk import paths
from zk import tree as zt


def exactly(world: World, deployment: str, count: int) -> None:
    """Each ordinal 0 … count-1 runs once, where the plan says; nothing is reserved or open."""
    running = world.running(deployment)
    assert sorted(running) == list(range(count))
    plan = {o: share.node for share in world.record(deployment).plan for o in share.numbers()}
    assert {o: [plan[o]] for o in plan} == running
    assert world.reserved() == 0
    assert paths.open_marker(deployment) not in world.tree.nodes


def settled(**shape) -> World:
    world = World(**shape)
    world.settle()
    return world


def test_fifty_instances_are_spread_over_racks_and_nodes():
    world = settled(racks=3, compute=8, storage=2)
    writes = world.tree.writes
    deployment = world.create(50)
    world.until_final(deployment)
    exactly(world, deployment, 50)
    shares = {share.node: len(share.numbers()) for share in world.record(deployment).plan}
    assert set(shares.values()) <= {2, 3}
    by_rack = [sum(n for node, n in shares.items() if node.startswith(rack)) for rack in ("r1", "r2", "r3")]
    assert sorted(by_rack) == [16, 17, 17]
    assert world.tree.writes - writes <= 6  # the API's one, and the coordinator's three; hints and heartbeats are none
    run = unpack(world.tree.nodes[paths.trace(deployment)].data).runs[-1]
    assert {span.step for span in run.spans} == {1, 2, 3, 4, 5, 6, 7, 8, 9}
    assert run.zookeeper_writes == 4
    for node in run.nodes:
        assert node.fetch is not None
        assert len(node.fetch.chosen) == 2
        assert len({name[:2] for name in node.fetch.chosen}) == 2  # in different racks


def seen(world: World, deployment: str) -> RecordSeen:
    node = world.tree.nodes[paths.deployment(deployment)]
    stat = node.stat()
    return RecordSeen(node.data, stat.version, stat.czxid, stat.mzxid)


class Watched(World):
    """What the coordinators tell the API, and what they read of records."""

    def __init__(self, **shape: int) -> None:
        super().__init__(**shape)
        self.news: list[RecordNews] = []
        self.reads: list[str] = []

    def _send(self, sender: str, to: str, message: AnyMessage) -> None:
        if isinstance(message, RecordNews):
            self.news.append(message)
        else:
            super()._send(sender, to, message)

    def _perform(self, host: Host, effect: fx.Effect) -> None:
        if isinstance(effect, fx.CallTree) and isinstance(effect.op, zt.Get):
            self.reads.append(effect.op.path)
        super()._perform(host, effect)

    def submit_seen(self, deployment: str, what: RecordSeen) -> None:
        message = Submit("s", deployment, 0, 3, 0, what)
        self._send("tcp://api/0", self.leader().identity.address, message)


def test_a_coordinator_reads_no_record_that_it_was_given_and_tells_what_it_writes():
    world = Watched()
    world.settle()
    deployment = world.create(6, submit=False)
    world.reads.clear()
    world.submit_seen(deployment, seen(world, deployment))
    world.until_final(deployment)
    exactly(world, deployment, 6)
    assert paths.deployment(deployment) not in world.reads
    world.run(lambda: world.news[-1].closed, 1.0, "the last news")
    assert [news.closed for news in world.news] == [False, False, True], "claim, plan, end"
    assert world.news[-1].seen.data == seen(world, deployment).data
    assert world.news[-1].seen.mzxid == seen(world, deployment).mzxid
    assert world.news[-1].seen.version == seen(world, deployment).version


def test_a_coordinator_that_was_given_an_old_record_goes_by_the_new_one():
    world = Watched()
    world.settle()
    deployment = world.create(6, submit=False)
    old = seen(world, deployment)
    record = msgspec.structs.replace(world.record(deployment), count=9, min_count=9, generation=2)
    world.tree.apply(0, zt.Set(paths.deployment(deployment), encode(record)))
    world.submit_seen(deployment, old)
    world.until_final(deployment)
    exactly(world, deployment, 9)


def test_pack_fills_a_node_before_the_next():
    world = settled()
    deployment = world.create(20, policy="pack")
    world.until_final(deployment)
    exactly(world, deployment, 20)
    assert sorted(len(share.numbers()) for share in world.record(deployment).plan) == [4, 16]


def test_limits_per_node_and_rack_hold_and_explain_themselves():
    world = settled()
    fits = world.create(12, max_per_node=1)
    world.until_final(fits)
    assert {len(share.numbers()) for share in world.record(fits).plan} == {1}
    short = world.create(10, max_per_rack=3)
    world.until_final(short)
    record = world.record(short)
    assert (record.state, record.plan) == ("failed", ())
    assert "max_per_rack 3" in " ".join(record.reasons)
    assert world.running(short) == {}


def test_scaling_keeps_what_runs_and_deleting_leaves_nothing():
    world = settled()
    deployment = world.create(10)
    world.until_final(deployment)
    before = world.running(deployment)
    world.change(deployment, count=25)
    world.until_final(deployment)
    exactly(world, deployment, 25)
    assert {o: nodes for o, nodes in world.running(deployment).items() if o < 10} == before
    world.change(deployment, count=4)
    world.until_final(deployment)
    exactly(world, deployment, 4)
    world.change(deployment, gone=True)
    world.until_final(deployment)
    assert world.record(deployment).state == "deleted"
    assert world.running(deployment) == {}
    for host in world.hosts.values():
        assert not any(key.startswith("w/") for key in host.journal)
    assert len(unpack(world.tree.nodes[paths.trace(deployment)].data).runs) == 4


def test_a_scale_that_finds_no_place_leaves_the_deployment_as_it_was():
    world = settled(racks=1, compute=1)
    deployment = world.create(10)
    world.until_final(deployment)
    world.change(deployment, count=17, min_count=17)
    world.until_final(deployment)
    record = world.record(deployment)
    assert (record.state, record.count, record.min_count) == ("running", 10, 10)
    assert "scaling to 17 was not possible" in record.reason
    exactly(world, deployment, 10)


def test_min_count_accepts_fewer_and_says_so():
    world = settled(racks=1, compute=2)
    deployment = world.create(40, min_count=30)
    world.until_final(deployment)
    record = world.record(deployment)
    assert (record.state, record.placed) == ("running", 32)
    assert record.reason == "placed 32 of 40"
    assert len(world.running(deployment)) == 32


def test_what_does_not_fit_fails_with_the_dimension_per_rack():
    world = settled(racks=2, compute=1, total=Resources(64, 16384, 4194304))
    deployment = world.create(5)
    world.until_final(deployment)
    record = world.record(deployment)
    assert record.state == "failed"
    assert any("rack r1: 2 more fit on 1 nodes" in reason for reason in record.reasons)
    assert world.reserved() == 0


def test_thirty_two_at_once_that_just_fit_all_succeed():
    world = settled(racks=4, compute=10)  # 40 nodes of 16 Large: 640 = 32 x 20
    names = [world.create(20) for _ in range(32)]
    world.until_final(*names)
    for name in names:
        assert world.record(name).state == "running", world.record(name).reasons
        exactly(world, name, 20)


def test_of_thirty_three_only_the_one_that_does_not_fit_fails():
    world = settled(racks=4, compute=10)
    names = [world.create(20, submit=False) for _ in range(33)]
    for index, name in enumerate(names):
        world.submit(name, f"r{index % 4 + 1}")
    world.until_final(*names)
    states = [world.record(name).state for name in names]
    assert states.count("running") == 32
    loser = world.record(names[states.index("failed")])
    assert "out of vcpus" in " ".join(loser.reasons)
    assert world.reserved() == 0


@pytest.mark.parametrize("after_s", [0.001 * n for n in range(0, 90, 3)])
def test_a_coordinator_that_dies_at_any_moment_loses_and_doubles_nothing(after_s: float):
    world = settled()
    deployment = world.create(20, submit=False)
    world.submit(deployment, "r2")
    world.pass_time(after_s)
    leader = world.leader("r2")
    world.crash(leader.identity.node)
    world.at(6.0, lambda: world.boot(leader.identity.node, "r2", "compute"))
    world.run(lambda: world.record(deployment).final and leader is not world.hosts[leader.identity.node], 90)
    world.pass_time(20)
    assert world.record(deployment).state == "running"
    exactly(world, deployment, 20)


@pytest.mark.parametrize("after_s", [0.001 * n for n in range(0, 90, 3)])
def test_an_agent_that_dies_during_a_request_is_replaced(after_s: float):
    world = settled()
    deployment = world.create(24)
    world.pass_time(after_s)
    victim = next(h.identity.node for h in world.hosts.values() if not h.agent.leads and h.identity.layer == "compute")
    ran = set(world.hosts[victim].running)
    world.crash(victim)
    world.hosts[victim].running.clear()  # its machine is gone with it
    world.until_final(deployment)
    world.pass_time(1)
    plan = {share.node: {f"{deployment}.{o}" for o in share.numbers()} for share in world.record(deployment).plan}
    if victim in plan:  # it can only have been counted on if all of its share had run when it died: healing comes later
        assert plan[victim] == ran
        assert len(world.running(deployment)) == 24 - len(ran)
    else:
        exactly(world, deployment, 24)


def test_a_node_that_comes_back_stops_what_moved_elsewhere():
    world = settled()
    deployment = world.create(24, submit=False)
    world.submit(deployment, "r1")
    victim = "r3c04"
    world.run(lambda: bool(world.hosts[victim].running), what="the victim runs something")
    world.crash(victim)
    world.until_final(deployment)
    assert victim not in {share.node for share in world.record(deployment).plan}
    assert world.hosts[victim].running  # still there: nobody could tell it
    world.boot(victim, "r3", "compute")
    world.run(lambda: not world.hosts[victim].running, what="the orphans are stopped")
    exactly(world, deployment, 24)


def test_a_restarted_agent_adopts_its_instances():
    world = settled()
    deployment = world.create(24)
    world.until_final(deployment)
    before = dict(world.hosts["r2c03"].running)
    assert before
    world.crash("r2c03")
    world.pass_time(0.5)
    world.boot("r2c03", "r2", "compute")
    world.run(lambda: world.hosts["r2c03"].agent.present, what="registered again")
    assert world.hosts["r2c03"].agent.present
    world.pass_time(5)
    assert world.hosts["r2c03"].running == before
    exactly(world, deployment, 24)


def test_nothing_is_awarded_while_the_session_is_suspended():
    world = settled()
    deployment = world.create(20, submit=False)
    leader = world.leader("r1")
    world.submit(deployment, "r1")
    world.pass_time(0.006)
    world.give(leader, zt.SessionChanged(zt.SessionState.SUSPENDED, leader.session), 0)
    world.pass_time(2)
    assert world.running(deployment) == {}
    world.give(leader, zt.SessionChanged(zt.SessionState.CONNECTED, leader.session, 4.0), 0)
    world.until_final(deployment)
    exactly(world, deployment, 20)


def test_an_image_that_cannot_start_fails_the_request_with_its_reason():
    world = settled()
    world.start_hook = lambda host, effect: fx.InstanceFailed(
        effect.instance, effect.attempt, "image", "entrypoint: exec format error"
    )
    deployment = world.create(6)
    world.until_final(deployment)
    record = world.record(deployment)
    assert record.state == "failed"
    assert "exec format error" in record.reason
    assert world.running(deployment) == {}


def lose(world: World, digest: str = DIGEST) -> list[Host]:
    """Whoever holds it does not, any more; returns them."""
    holders = [host for host in world.hosts.values() if host.identity.layer == "storage" and digest in host.held]
    for host in holders:
        host.held.discard(digest)
        world.tell_store(host)
    return holders


def test_an_image_that_nobody_holds_fails_the_request_with_that_reason_and_blames_no_node():
    world = settled()
    assert len(lose(world)) == 3
    deployment = world.create(6)
    assert world.until_final(deployment) > 30, "somebody may come back that holds it"
    record = world.record(deployment)
    assert record.state == "failed"
    assert f"no storage agent has a whole copy of {DIGEST}" in record.reason
    assert world.running(deployment) == {}
    (run,) = unpack(world.tree.nodes[paths.trace(deployment)].data).runs
    steps = {span.step: span.detail for span in run.spans}
    assert "0 had the image already" in steps[7]
    assert steps[8].startswith("holders not known")


def test_holders_that_are_back_while_they_are_looked_for_serve_the_request():
    world = settled()
    holders = lose(world)
    deployment = world.create(24)
    world.pass_time(20)
    for host in holders:
        host.held.add(DIGEST)
        world.tell_store(host)
    world.until_final(deployment)
    exactly(world, deployment, 24)
    assert world.record(deployment).reason == ""


def test_a_node_that_cannot_start_instances_is_left_for_others():
    world = settled()
    world.start_hook = lambda host, effect: (
        fx.InstanceFailed(effect.instance, effect.attempt, "node", "out of memory")
        if host.identity.node == "r1c02"
        else None
    )
    deployment = world.create(24)
    world.until_final(deployment)
    exactly(world, deployment, 24)
    assert "r1c02" not in {share.node for share in world.record(deployment).plan}


def test_cordoned_nodes_get_nothing_new():
    world = settled()
    world.tree.apply(0, zt.Create(paths.cordon("r1c01")))
    world._watches()
    world.run(lambda: world.hosts["r1c01"].agent.cordoned, what="the agent knows")
    deployment = world.create(24)
    world.until_final(deployment)
    exactly(world, deployment, 24)
    assert "r1c01" not in {share.node for share in world.record(deployment).plan}


def test_two_agents_with_one_node_id_the_second_is_refused():
    world = settled(racks=1, compute=1)
    first = world.hosts["r1c01"]
    stranger = replace(first.identity, guid="feedbeef0001", address="tcp://elsewhere/feedbeef0001")
    second = Host(stranger, Agent(stranger, world.settings, random.Random(1), {}), session=99)
    world.hosts["stranger"] = second
    world.give(second, fx.Adopted((), ()))
    world.give(second, zt.SessionChanged(zt.SessionState.CONNECTED, 99, 4.0))
    world.run(lambda: second.quit is not None, 30, "the second one leaves")
    assert "'r1c01'" in second.quit
    assert "is taken" in second.quit
    assert world.tree.nodes[paths.member("compute", "r1", "r1c01")].owner == first.session


def test_an_open_deployment_without_an_owner_is_found_by_a_sweep():
    world = settled()
    deployment = world.create(9, submit=False)
    took = world.until_final(deployment)
    assert took < 3 * world.settings.sweep_interval_s
    exactly(world, deployment, 9)


def test_a_change_in_the_middle_is_taken_up_under_the_same_epoch():
    world = settled()
    deployment = world.create(20)
    world.pass_time(0.008)
    world.change(deployment, count=6)
    world.until_final(deployment)
    exactly(world, deployment, 6)


def test_a_delete_in_the_middle_leaves_nothing():
    for after_ms in range(0, 90, 6):
        world = settled()
        deployment = world.create(20)
        world.pass_time(after_ms / 1000)
        world.change(deployment, gone=True)
        world.until_final(deployment)
        assert world.record(deployment).state == "deleted"
        assert world.running(deployment) == {}
        world.pass_time(25)
        assert world.reserved() == 0


def test_resources_of_every_flavor_are_given_back():
    world = settled(racks=1, compute=2)
    for need in (LARGE, Resources(1, 512, 1024)):
        deployment = world.create(8, resources=need)
        world.until_final(deployment)
        world.change(deployment, gone=True)
        world.until_final(deployment)
    assert all(h.agent._compute.ledger.used == Resources(0, 0, 0) for h in world.hosts.values() if h.agent._compute)


def test_an_agent_told_to_leave_is_gone_at_once_and_its_instances_run_on():
    world = settled()
    deployment = world.create(24)
    world.until_final(deployment)
    leader = world.leader("r1")
    before = dict(leader.running)
    world.give(leader, fx.Leave())
    took = world.run(lambda: leader.quit is not None, 5, "it leaves")
    assert leader.quit == ""
    assert took < 0.1
    assert paths.member("compute", "r1", leader.identity.node) not in world.tree.nodes
    assert leader.running == before
    others = lambda: [one for one in world.leaders("r1") if one is not leader]  # noqa: E731
    world.run(lambda: bool(others()), 1, "another leads the rack, without waiting for a time-out")


def test_a_report_is_not_undone_by_an_older_answer_that_comes_late():
    """Reports travel straight, answers wait for the slowest agent of the rack: news must not go backwards."""
    world = settled(racks=1, compute=3)
    deployment = world.create(6)
    world.fetch_s["r1c03"] = 0.4  # the last to run
    world.slow["r1c02"] = 0.2  # its answer keeps the whole rack's back until the others have reported
    took = world.until_final(deployment)
    exactly(world, deployment, 6)
    assert took < 1.0, "it waited for the next poll to hear again what it had heard already"


def test_a_holder_frees_what_no_image_refers_to_any_more_and_nothing_else():
    other, damaged = "b3:" + "ee" * 32, "b3:" + "ff" * 32
    world = World(racks=2, compute=1)
    image = Image(name="web", digest=DIGEST, size=1, kind="tar", holders=(), pushed_ms=0)
    world.tree.apply(0, zt.Create(paths.image("web"), encode(image)))
    holder = world.hosts["r1s01"]
    holder.held.add(other)
    holder.damaged.add(damaged)
    world.tell_store(holder)
    world.settle()
    assert world.dropped == []
    world.pass_time(1.25 * world.settings.leftovers_after_s + 1)
    assert world.dropped == [("r1s01", other), ("r1s01", damaged)]


def test_a_holder_keeps_what_a_deployment_runs_from_though_the_name_means_something_else_now():
    world = settled(racks=2, compute=1)
    deployment = world.create(2)  # of DIGEST, which no image record names
    world.until_final(deployment)
    world.pass_time(1.25 * world.settings.leftovers_after_s + 2)
    assert world.dropped == []
    world.change(deployment, gone=True)
    world.until_final(deployment)
    world.pass_time(1.25 * (world.settings.leftovers_every_s + world.settings.leftovers_after_s) + 1)
    assert sorted(world.dropped) == [("r1s01", DIGEST), ("r2s01", DIGEST)]


def test_when_no_node_could_start_anything_the_reasons_of_the_nodes_are_told():
    world = settled()
    world.start_hook = lambda host, effect: fx.InstanceFailed(effect.instance, effect.attempt, "node", "disk full")
    deployment = world.create(24)
    world.until_final(deployment)
    record = world.record(deployment)
    assert record.state == "failed"
    assert any("node r1c01: disk full" in reason for reason in record.reasons), record.reasons


@pytest.mark.parametrize("after_s", [0.012, 0.02, 0.04])
def test_a_rack_that_dies_whole_is_replaced_though_nobody_is_left_to_say_so(after_s: float):
    world = settled(racks=3, compute=2)
    deployment = world.create(12, submit=False)
    world.submit(deployment, "r1")
    world.pass_time(after_s)
    for node in ("r3c01", "r3c02"):
        world.crash(node)
        world.hosts[node].running.clear()
    took = world.until_final(deployment)
    if "r3" in {share.rack for share in world.record(deployment).plan}:
        assert after_s > 0.03  # it was settled before they died
        return
    exactly(world, deployment, 12)
    assert took < 20


def test_a_deployment_is_deleted_though_a_rack_of_it_died_whole():
    world = settled(racks=2, compute=1)
    deployment = world.create(4)
    world.until_final(deployment)
    world.crash("r2c01")
    world.change(deployment, gone=True)
    took = world.until_final(deployment)
    assert world.record(deployment).state == "deleted"
    assert took < 20


def test_a_marker_is_not_removed_from_under_a_change():
    """A leader finds the record settled; before it clears the stray marker, a user changes the deployment."""
    world = settled(racks=1, compute=2)
    deployment = world.create(4)
    world.until_final(deployment)
    world.pass_time(0.1)
    world.tree.apply(0, zt.Create(paths.open_marker(deployment)))
    world.submit(deployment)
    changed: list[bool] = []

    def change() -> None:
        record = world.record(deployment)
        new = msgspec.structs.replace(record, count=6, min_count=6, generation=record.generation + 1, state="accepted")
        world.tree.apply(0, zt.Set(paths.deployment(deployment), encode(new)))
        changed.append(True)

    world.at(0.0021, change)  # between the leader's read and what it does about it
    world.run(lambda: bool(changed) and world.record(deployment).final, 30)
    exactly(world, deployment, 6)


def test_a_change_right_after_the_end_is_taken_up_at_once():
    """The record is final, but its coordinator has not heard so yet: it must not swallow the next submit."""
    world = settled()
    deployment = world.create(8)
    world.until_final(deployment)
    world.change(deployment, count=12)
    assert world.until_final(deployment) < 0.5
    exactly(world, deployment, 12)


def test_a_later_run_tells_of_its_own_starts_and_fetches_only():
    world = settled(racks=1, compute=2)
    deployment = world.create(4)
    world.until_final(deployment)
    world.pass_time(50)
    world.change(deployment, count=6, min_count=6)
    world.until_final(deployment)
    first, second = unpack(world.tree.nodes[paths.trace(deployment)].data).runs
    assert {node.fetch is not None for node in first.nodes} == {True}
    assert {node.fetch for node in second.nodes} == {None}
    assert all(node.start_ms < 1000 for node in second.nodes)
