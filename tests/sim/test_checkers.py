"""Each checker turns red when its promise is broken, by name, and only then: a small world is broken by hand.

A broken world is one in which something happens that no role would do: the record is rewritten by nobody, an instance
is started that nobody ordered, a role is said to have decided what it did not.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from fabric.commands import Confirm
from fabric.effects import CallTree, Send, StartInstance, StopInstance
from fabric.messages import RackCall
from fabric.ordinals import format_ordinals
from fabric.records import Deployment, Drain, Lost, Share, encode
from fabric.sim.checkers.base import Violation
from fabric.sim.checkers.settled import Settled
from fabric.sim.conditions import SMALL
from fabric.sim.host import Process
from fabric.sim.machine import Machine
from fabric.sim.scenarios import Stage
from fabric.sim.strangers import Strangers
from fabric.sim.world import BEGIN_S, PROMISES, Options
from zk import paths
from zk.tree import Create, Delete, Get, SessionState, Set

OTHER = "d-000009"
"""A deployment that is not there."""


class Broken(Stage):
    """A fabric on whose nodes the six ordinals of `one` run, one on each of six; three nodes have none."""

    def __init__(self) -> None:
        super().__init__(Options())
        self.boot()
        self.clock.run(BEGIN_S * 2)
        self.one = self.deploy(6)
        self.until("it runs", lambda: self.runs(self.one) and len(self.view.running) == 6)
        self.wait(1.0)
        self.sweep()
        self.settle()

    def settle(self) -> None:
        next(checker for checker in self.checkers if isinstance(checker, Settled)).settled()

    @property
    def now(self) -> Deployment:
        return self.view.deployments[self.one].record

    def rewrite(self, **fields: Any) -> None:
        self.ensemble.carry_out(Set(paths.deployment(self.one), encode(msgspec.structs.replace(self.now, **fields))))

    def move(self, ordinal: int, to: str | None) -> None:
        """By the record alone."""
        plan = {**self.view.deployments[self.one].plan, ordinal: to}
        nodes = sorted({node for node in plan.values() if node is not None})
        of = {node: [number for number, at in sorted(plan.items()) if at == node] for node in nodes}
        self.rewrite(plan=tuple(Share(node, self.machines[node].rack, format_ordinals(of[node])) for node in nodes))

    def start(self, node: str, ordinal: int) -> None:
        effect = StartInstance(f"{self.one}.{ordinal}", 1, self.now.spec.digest, (), SMALL)
        self.machines[node].supervisor.start(effect, lambda why: None)

    def crash_instance(self, node: Machine, ordinal: int) -> None:
        """It dies, and its agent starts it again."""
        node.supervisor.crash(f"{self.one}.{ordinal}")
        self.wait(5.0)

    def at(self, ordinal: int) -> str:
        return self.view.deployments[self.one].plan[ordinal]

    @property
    def follower(self) -> tuple[int, Machine]:
        """An ordinal, and where it runs; that one does not lead."""
        node = self.worker(self.one)
        return next(ordinal for ordinal, at in self.view.deployments[self.one].plan.items() if at == node.name), node

    @property
    def idle(self) -> str:
        """A node that runs nothing, and has the image."""
        at = self.view.deployments[self.one].plan.values()
        node = next(one for one in self.machines.values() if one.layer == "compute" and one.name not in at)
        node.cache.admit(self.now.spec.digest, self.contents[self.now.spec.digest].whole)
        return node.name

    def leader(self) -> Process:
        """Of a compute rack."""
        running = [one.process for one in self.machines.values() if one.layer == "compute" and one.process is not None]
        return next(one for one in running if one.leads)


Breaks = Callable[[Broken], None]
BREAKS: list[tuple[str, Breaks]] = []


def breaks(promise: str) -> Callable[[Breaks], Breaks]:
    def add(how: Breaks) -> Breaks:
        BREAKS.append((promise, how))
        return how

    return add


@breaks("capacity")
def more_is_given_away_than_there_is(world: Broken) -> None:
    process = world.leader()
    process.ledger.adopt((OTHER, 0), process.machine.total)
    world.sweep()


@breaks("capacity")
def the_sum_is_not_that_of_the_parts(world: Broken) -> None:
    process = world.leader()
    process.ledger._placed[OTHER, 0] = SMALL
    world.sweep()


@breaks("capacity")
def more_runs_than_there_is_room_for(world: Broken) -> None:
    _, node = world.follower
    node.total = SMALL
    world.rewrite(count=7, had=7, plan=(*world.now.plan, Share(world.idle, "r1", "6")))
    world.move(6, node.name)
    world.start(node.name, 6)


@breaks("room")
def one_is_started_whose_room_was_given_back(world: Broken) -> None:
    ordinal, node = world.follower
    assert node.process is not None
    node.process.ledger.release((world.one, ordinal))
    world.crash_instance(node, ordinal)


@breaks("once")
def one_is_started_again_on_another_node(world: Broken) -> None:
    other = world.idle
    world.move(0, other)
    world.start(other, 0)


@breaks("returning")
def a_node_is_present_again_before_it_has_stopped_what_moved(world: Broken) -> None:
    ordinal, node = world.follower
    world.pause(node, 50.0)
    world.until("it runs elsewhere", lambda: world.now.had and len(world.view.running[world.one, ordinal]) == 2)
    world.ensemble.carry_out(Create(paths.member("compute", node.rack, node.name), b"{}"))


@breaks("planned")
def one_is_started_where_nobody_planned_it(world: Broken) -> None:
    world.start(world.idle, 6)


@breaks("limits")
def two_are_planned_on_a_node_that_may_have_one(world: Broken) -> None:
    world.rewrite(max_per_node=1)
    world.move(0, world.at(1))


@breaks("limits")
def three_are_planned_in_a_rack_that_may_have_two(world: Broken) -> None:
    world.rewrite(max_per_rack=2)
    rack = world.machines[world.at(0)].rack
    there = [one.name for one in world.machines.values() if one.layer == "compute" and one.rack == rack]
    stranger = next(number for number in range(6) if world.at(number) not in there)
    world.move(stranger, next(name for name in there if name not in (world.at(0), world.at(1))))


@breaks("patience")
def one_is_replaced_before_anybody_accepted_that_its_node_is_lost(world: Broken) -> None:
    ordinal, node = world.follower
    world.power(False, node)
    world.until("it is absent", lambda: not world.present(node))
    world.move(ordinal, world.idle)


@breaks("patience")
def one_is_replaced_before_its_time(world: Broken) -> None:
    ordinal, node = world.follower
    world.power(False, node)
    world.until("it is absent", lambda: not world.present(node))
    world.ensemble.carry_out(Create(paths.lost(node.name), encode(Lost(node.name, node.rack, 1, 1, "r1c01"))))
    world.move(ordinal, world.idle)


@breaks("brake")
def a_leader_accepts_a_loss_while_the_brake_is_on(world: Broken) -> None:
    world.power(False, *(one for one in world.machines.values() if one.rack == "r1" and one.layer == "compute"))
    for node in ("r1c01", "r1c02", "r1c03"):
        world.ensemble.carry_out(Create(paths.lost(node), encode(Lost(node, "r1", world.wall_ms()))))
    world.until("they are absent", lambda: len(world.view.present) == 6)
    world.wait(1.5)
    world.decided(world.leader(), None, [CallTree("loss:accept:r1c01", Get(paths.lost("r1c01")))])


@breaks("alone")
def one_runs_twice_though_its_node_had_to_stop_it(world: Broken) -> None:
    world.rewrite(spec=msgspec.structs.replace(world.now.spec, stop_after_s=3))
    ordinal, node = world.follower
    other = world.idle
    world.move(ordinal, other)
    world.ensemble.carry_out(Delete(paths.member("compute", node.rack, node.name)))
    world.start(other, ordinal)


@breaks("epochs")
def a_record_is_written_under_an_older_epoch(world: Broken) -> None:
    world.rewrite(epoch=world.now.epoch - 1)


@breaks("epochs")
def a_record_is_written_under_an_older_step(world: Broken) -> None:
    world.rewrite(step=world.now.step - 1)


@breaks("epochs")
def a_change_of_a_user_is_taken_back(world: Broken) -> None:
    world.rewrite(generation=world.now.generation - 1, settled=world.now.generation - 1)


@breaks("epochs")
def a_record_is_written_by_who_does_not_own_it(world: Broken) -> None:
    after = encode(msgspec.structs.replace(world.now, step=world.now.step + 1))
    world.leader().tree.submit(Set(paths.deployment(world.one), after), lambda outcome: None)
    world.wait(0.1)


@breaks("marker")
def what_is_not_at_rest_is_not_marked(world: Broken) -> None:
    world.rewrite(generation=world.now.generation + 1, state="accepted")


@breaks("outage")
def something_is_ordered_during_an_outage(world: Broken) -> None:
    process = world.leader()
    world.quorum(False)
    world.until("it is told", lambda: process.told is SessionState.SUSPENDED)
    order = Confirm(world.one, 1, 1, world.now.spec, "0", "always")
    world.decided(process, None, [Send("tcp://r2c01:7000/0", RackCall("c-1", 1000, order))])


@breaks("outage")
def something_is_stopped_during_an_outage(world: Broken) -> None:
    process = world.leader()
    world.quorum(False)
    world.until("it is told", lambda: process.told is SessionState.SUSPENDED)
    world.decided(process, None, [StopInstance(f"{world.one}.0", 1.0)])


@breaks("leading")
def a_leader_leads_on_without_a_session(world: Broken) -> None:
    process = world.leader()
    process.told = SessionState.LOST
    world.decided(process, None, [])


@breaks("leading")
def a_leader_leads_on_when_it_must_count_itself_out(world: Broken) -> None:
    process = world.leader()
    process.told, process.told_at = SessionState.SUSPENDED, world.clock.now - world.settings.session_timeout_s - 0.1
    world.decided(process, None, [])


@breaks("rotten")
def a_rotten_image_is_cached(world: Broken) -> None:
    _, node = world.follower
    node.cache.entries[world.now.spec.digest].data = b"rotten"
    world.cached(node, world.now.spec.digest)


@breaks("rotten")
def one_is_started_from_a_rotten_image(world: Broken) -> None:
    ordinal, node = world.follower
    node.cache.entries[world.now.spec.digest].data = b"rotten"
    node.supervisor.crash(f"{world.one}.{ordinal}")
    world.wait(3.0)


@breaks("strangers")
def a_frame_changes_a_role(world: Broken) -> None:
    """It is genuine; the checker is told that it is not."""
    frames = [(world.codec.decode(frame), frame) for _, frame in world.network.recent]
    (to, _), frame = next(one for one in reversed(frames) if isinstance(one[0][1], RackCall))
    process = next(one.process for one in world.machines.values() if one.process.guid == to)
    Strangers(world, random.Random(0))._strike(process, frame, "a genuine frame")


@breaks("strangers")
def a_frame_is_not_counted(world: Broken) -> None:
    process = world.leader()
    process.bus.hear = lambda sender, frame: None
    Strangers(world, random.Random(0))._strike(process, b"", "nothing")


@breaks("ends")
def what_is_at_rest_is_still_marked(world: Broken) -> None:
    world.ensemble.carry_out(Create(paths.open_marker(world.one)))
    world.settle()


@breaks("ends")
def a_deployment_stays_on_its_way(world: Broken) -> None:
    world.ensemble.carry_out(Create(paths.open_marker(world.one)))
    world.rewrite(state="starting")
    world.settle()


@breaks("ends")
def an_accepted_request_is_forgotten(world: Broken) -> None:
    world.users.wanted[world.one].gone = True
    world.settle()


@breaks("ends")
def a_rack_has_no_leader(world: Broken) -> None:
    world.kill(world.leader().machine)
    world.settle()


@breaks("orphans")
def a_reservation_is_left(world: Broken) -> None:
    world.leader().ledger.reserve((OTHER, 0), SMALL, 1, 1e9)
    world.settle()


@breaks("orphans")
def room_is_kept_for_what_is_not_there(world: Broken) -> None:
    world.leader().ledger.adopt((OTHER, 0), SMALL)
    world.settle()


@breaks("orphans")
def something_runs_that_is_not_planned_any_more(world: Broken) -> None:
    world.rewrite(count=5, min_count=5, had=5)
    world.move(5, None)
    world.settle()


@breaks("heal")
def what_died_is_not_started_again(world: Broken) -> None:
    world.machines[world.at(0)].supervisor.crash(f"{world.one}.0")
    world.settle()


@breaks("repair")
def a_holder_has_lost_an_image(world: Broken) -> None:
    holder = next(one for one in world.machines.values() if one.store.truly_holds(world.pushed[0]))
    holder.store.rot(world.pushed[0].manifest.chunks[0])
    world.settle()


@breaks("drain")
def a_drained_node_keeps_what_it_has(world: Broken) -> None:
    drain = Drain(world.at(0), world.wall_ms(), world.wall_ms() - 1)
    world.ensemble.carry_out(Create(paths.drain(world.at(0)), encode(drain)))
    world.settle()


@breaks("rest")
def a_record_at_rest_says_that_something_moved(world: Broken) -> None:
    world.rewrite(moved="0")
    world.settle()


@breaks("rest")
def a_node_that_is_there_is_noted_as_lost(world: Broken) -> None:
    world.ensemble.carry_out(Create(paths.lost("r1c01"), encode(Lost("r1c01", "r1", 1))))
    world.settle()


@pytest.mark.parametrize(("promise", "how"), BREAKS, ids=lambda one: one if isinstance(one, str) else one.__name__)
def test_a_broken_promise_is_found(promise: str, how: Breaks) -> None:
    world = Broken()
    with pytest.raises(Violation) as found:
        how(world)
    assert found.value.promise == promise, found.value


def test_every_promise_is_broken_here() -> None:
    assert {promise for promise, _ in BREAKS} == set(PROMISES)


def test_what_is_not_looked_at_is_not_found() -> None:
    world = Broken()
    world.promises = world.promises - {"planned", "room"}
    one_is_started_where_nobody_planned_it(world)
