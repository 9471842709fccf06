"""What goes wrong after a rollout: programs end, boot stubs are lost and come back, initiators die, tables are claimed
by others.
"""

from __future__ import annotations

import pytest

from deploy.configuration import Children, InitiatorRole
from deploy.initiator import effects as fx
from deploy.messages import AdoptCall, Counts, StubPing
from tests.unit.deploy.initiator.test_rollouts import rolled, verbs
from tests.unit.deploy.initiator.world import Hosted, World, count

SILENT_S = 25.0
"""After so long without a word a boot stub is lost: three beats, and the patience after them."""


def flat(number: int = 4, stubs: int = 4, **more) -> World:
    world = World(count(number, "n", **more), [None], stubs=stubs)
    world.start_top()
    rolled(world)
    del world.commands[:]
    return world


def tree(**more) -> World:
    world = World(count(1, "z", **more), [count(2, "m", **more), count(2, "l", **more), None], stubs=4)
    world.start_top()
    rolled(world)
    del world.commands[:]
    return world


def counts(world: World) -> Counts:
    return world.top.initiator._house.counts


def stub_of(world: World, path: str) -> str:
    (name,) = [stub.name for stub in world.stubs.values() if path in stub.managents]
    return name


# --- programs ------------------------------------------------------------------------------------------------------


def test_a_program_that_ended_is_started_again_on_the_same_boot_stub() -> None:
    world = flat()
    name = stub_of(world, "/n1")
    world.stubs[name].end("/n1")
    world.run(lambda: verbs(world) == [("start", "/n1")], 15, "started again")
    world.run_for(1)
    assert stub_of(world, "/n1") == name
    assert counts(world) == Counts(4, 4)


def test_one_that_keeps_ending_is_given_up_and_counts_as_failed() -> None:
    world = flat()
    world.ends_at_once.add("/n1")
    world.stubs[stub_of(world, "/n1")].end("/n1")
    world.run(lambda: counts(world) == Counts(4, 3, failed=1), 400, "given up")
    starts = len(world.commands)
    assert starts == world.settings.max_restarts
    assert "ended by itself 6 times" in world.top.initiator._house.problems()[0].reason
    world.run_for(60)
    assert len(world.commands) == starts
    world.ends_at_once.clear()
    rolled(world, retry=True)
    world.check_complete()


def test_with_restart_never_it_is_reported_and_left() -> None:
    world = flat(restart="never")
    world.stubs[stub_of(world, "/n1")].end("/n1")
    world.run(lambda: counts(world) == Counts(4, 3, failed=1), 15, "reported")
    assert not world.commands


# --- boot stubs ----------------------------------------------------------------------------------------------------


def test_children_of_a_lost_boot_stub_are_unreachable_and_back_when_it_is() -> None:
    world = flat()
    stub = world.stubs[stub_of(world, "/n1")]
    stub.crash()
    world.run(lambda: counts(world).unreachable == 1, SILENT_S + 5, "lost")
    assert counts(world) == Counts(4, 3, unreachable=1)
    assert stub.name in world.top.initiator._house.problems()[0].reason
    stub.start()
    world.run(lambda: counts(world) == Counts(4, 4), 10, "back")
    assert not world.commands


def test_a_rollout_settles_although_a_boot_stub_is_lost_and_its_initiators_subtree_is_unreachable() -> None:
    world = tree()
    world.stubs[stub_of(world, "/z1/m1")].crash()
    rollout = world.roll()
    world.run(lambda: world.is_settled(rollout), 200, "settled")
    assert world.settled[-1].counts.targeted == 7
    assert world.settled[-1].counts.unreachable >= 3


def test_failover_places_children_elsewhere_and_the_boot_stub_that_returns_is_cleaned() -> None:
    world = flat(failover="domain")
    world.doubles_allowed = True
    stub = world.stubs[stub_of(world, "/n1")]
    world.cut.add(stub.name)
    world.run(lambda: len(world.running()["/n1"]) == 2, SILENT_S + 5, "placed elsewhere")
    world.run_for(1)
    assert counts(world) == Counts(4, 4)
    (row,) = [row for row in world.znodes[""].table.children if row.name == "n1"]
    assert row.stub.name != stub.name
    assert [ref.name for ref in row.left] == [stub.name]
    world.cut.clear()
    world.run(lambda: len(world.running()["/n1"]) == 1, 60, "cleaned")
    world.run_for(5)
    world.check_complete()
    assert all(not row.left for row in world.znodes[""].table.children)


def test_with_a_lease_nobody_runs_twice_and_the_lost_one_hears_nothing_meanwhile() -> None:
    world = flat(failover="domain", lease_s=30.0)
    stub = world.stubs[stub_of(world, "/n1")]
    world.mute.add(stub.name)
    world.run(lambda: any("has not answered" in note for note in world.notes), 40, "lost")
    lost_at = world.now
    del world.to_stub[:]
    world.run(lambda: any("is placed on" in note for note in world.notes), 60, "placed elsewhere")
    assert world.now - lost_at >= 30.0 + world.settings.lease_margin_s - 0.01
    assert not [one for at, to, one in world.to_stub if to == stub.name and at < world.now]
    world.run(lambda: len(world.running()["/n1"]) == 2, 5, "deployed there")
    world.run_for(1)
    assert [one.managents["/n1"].life for one in world.stubs.values() if "/n1" in one.managents].count("active") == 1


def test_a_lease_is_kept_alive_while_all_is_well() -> None:
    world = flat(lease_s=6.0)
    world.run_for(120)
    assert not world.commands
    assert sum(isinstance(one, StubPing) for one in world.sent) > 100


def test_one_that_was_never_deployed_is_placed_elsewhere_at_once() -> None:
    world = World(count(2, "n", failover="domain", lease_s=60.0), [None], stubs=2)
    for stub in world.stubs.values():
        if stub.name == "s01":
            stub.crash()
    world.start_top()
    rollout = world.roll()
    world.run(lambda: world.is_settled(rollout), 140, "settled")
    assert world.settled[-1].counts == Counts(2, 2)


def test_a_child_that_stands_for_a_boot_stub_is_never_placed_elsewhere() -> None:
    world = World(InitiatorRole((Children("stub"),), failover="domain"), [None], stubs=3)
    world.start_top()
    rolled(world)
    world.stubs["s01"].crash()
    world.run_for(60)
    assert counts(world) == Counts(3, 2, unreachable=1)


def test_what_stands_on_a_boot_stub_that_was_taken_out_of_the_directory_is_given_up() -> None:
    world = World(InitiatorRole((Children("stub"),)), [None], stubs=3)
    world.start_top()
    rolled(world)
    world.stubs["s01"].crash()
    world.run_for(SILENT_S + 5)
    gone = world.stubs.pop("s01")
    world.gone.add(gone.name)
    rollout = world.roll()
    world.run(lambda: world.is_settled(rollout) and world.settled[-1].counts == Counts(2, 2), 60, "without it")
    world.run(lambda: len(world.znodes[""].table.children) == 2, 60, "given up")


def test_who_had_nowhere_to_go_is_placed_when_another_boot_stub_is_back() -> None:
    world = World(count(4, "l", failover="domain"), [None], stubs=2)
    world.doubles_allowed = True
    world.start_top()
    rolled(world)
    for stub in world.stubs.values():
        stub.crash()
    world.run(lambda: counts(world) == Counts(4, unreachable=4), 120, "all are lost")
    world.run_for(10)
    (last,) = {row.stub.name for row in world.znodes[""].table.children}  # the first that was lost had its own moved
    other = next(stub for stub in world.stubs.values() if stub.name != last)
    other.start()
    world.run(lambda: counts(world) == Counts(4, 4), 60, "all are there")
    assert all(other.name in at for at in world.running().values())


def test_an_initiator_on_a_machine_that_was_taken_out_is_not_given_up_with_what_is_below_it() -> None:
    world = World(count(4, "z"), [count(4, "l"), None], stubs=4)
    world.start_top()
    rolled(world)
    stub = next(stub for stub in world.stubs.values() if "/z4" in stub.managents)
    stub.crash()
    world.gone.add(stub.name)
    world.run_for(SILENT_S + 5)
    world.top_role = count(3, "z")
    rollout = world.roll()
    world.run(lambda: world.is_settled(rollout), 60, "settled")
    world.run_for(60)
    row = next(row for row in world.znodes[""].table.children if row.name == "z4")
    assert row.outcome == "unreachable"
    assert row.reason.endswith("apply, and then remove it")
    assert "/z4" in world.znodes


def test_a_machine_that_was_taken_out_and_comes_back_after_all_does_not_keep_what_was_placed_elsewhere() -> None:
    world = World(count(4, "l", failover="domain"), [None], stubs=4)
    world.start_top()
    rolled(world)
    world.doubles_allowed = True
    stub = next(stub for stub in world.stubs.values() if "/l1" in stub.managents)
    stub.crash()
    world.gone.add(stub.name)
    world.run(lambda: counts(world) == Counts(4, 4) and len(world.running()["/l1"]) == 2, 120, "placed elsewhere")
    world.run_for(60)
    world.start_top()  # who is at another address than that at which the boot stub knows its parent
    rolled(world)
    world.gone.clear()
    stub.start()
    world.run(lambda: len(world.running()["/l1"]) == 1, 60, "removed there")
    world.check_complete()


# --- initiators ----------------------------------------------------------------------------------------------------


def initiator(world: World, path: str) -> tuple[str, str]:
    (key,) = [key for key in world.hosted if key[1] == path]
    return key


def test_a_successor_finds_the_children_and_deploys_nothing_twice() -> None:
    world = tree()
    epoch = world.znodes["/z1"].epoch
    world.restart(initiator(world, "/z1"))
    world.run_for(10)
    assert world.znodes["/z1"].epoch > epoch
    assert counts(world) == Counts(7, 7)
    assert not world.commands
    rolled(world)
    world.check_complete()
    assert not world.commands


def test_a_successor_in_the_middle_of_a_rollout_completes_it() -> None:
    world = World(count(1, "z"), [count(2, "m", parallel=1), count(2, "l"), None], stubs=4)
    world.start_top()
    rollout = world.roll()
    world.run(lambda: any(path.startswith("/z1/m1/") for _, path in verbs(world)), 10, "half way")
    world.restart(initiator(world, "/z1"))
    world.run(lambda: world.is_settled(rollout), 30, "settled")
    world.run_for(1)
    world.check_complete()
    assert len(world.deployments) == 7


@pytest.mark.parametrize("after_s", [0.02, 0.06, 0.1, 0.2, 0.3])
def test_the_top_may_die_at_any_time_and_the_next_one_goes_on(after_s: float) -> None:
    world = World(count(2, "z"), [count(2, "m"), count(2, "l"), None], stubs=4)
    world.start_top()
    world.roll()
    world.run_for(after_s)
    world.start_top()
    rolled(world, retry=True)
    world.check_complete()
    assert len(world.deployments) == 14


def test_an_initiator_that_is_silent_on_a_living_boot_stub_is_started_anew() -> None:
    world = tree()
    key = initiator(world, "/z1/m1")
    world.hosted[key].initiator.fenced = True  # it does nothing any more, and nobody knows
    world.run(lambda: ("restart", "/z1/m1") in verbs(world), 60, "started anew")
    world.run_for(5)
    assert counts(world) == Counts(7, 7)
    assert not [path for verb, path in verbs(world) if verb == "deploy"]


def test_a_fenced_initiator_stops_at_once() -> None:
    world = tree()
    old = world.hosted[initiator(world, "/z1")]
    effects = old.initiator.handle(world.now, fx.TreeFailed("fenced"))
    assert [type(one) for one in effects] == [fx.Note]
    assert old.initiator.next_deadline() is None
    assert old.initiator.handle(world.now, fx.Activate()) == []
    assert old.initiator.tick(world.now + 1000) == []


def test_an_initiator_moves_with_its_boot_stub_and_its_children_run_on() -> None:
    world = tree(failover="domain")
    world.doubles_allowed = True
    stub = world.stubs[stub_of(world, "/z1/m1")]
    others = [path for path in world.target() if path.startswith("/z1/m1/") and path not in stub.managents]
    world.cut.add(stub.name)
    world.run(lambda: counts(world) == Counts(7, 7) and len(world.running()["/z1/m1"]) == 2, 120, "all are back")
    assert not [path for verb, path in verbs(world) if path in others and verb == "deploy"]
    world.cut.clear()
    rollout = world.roll()
    world.run(lambda: world.is_settled(rollout) and all(len(at) == 1 for at in world.running().values()), 100, "clean")
    world.run_for(6)
    world.check_complete()


def test_an_outage_of_the_directory_stops_nothing_that_runs() -> None:
    world = tree()
    world.directory_away = True
    world.restart(initiator(world, "/z1"))
    world.run_for(60)
    assert not world.commands
    world.directory_away = False
    world.run_for(5)
    assert counts(world) == Counts(7, 7)
    rolled(world)
    world.check_complete()


def test_a_child_that_the_directory_lost_gets_its_row_again() -> None:
    world = flat()
    znode = world.znodes[""]
    del world.znodes[""]
    world.start_top()
    world.run_for(0.1)
    for stub in world.stubs.values():
        for managent in stub.managents.values():
            managent.parent = AdoptCall("c", fx_parent(world.top), 0, ()).parent
    world.run(lambda: len(world.znodes[""].table.children) == 4, 30, "found again")
    assert {row.name for row in world.znodes[""].table.children} == {row.name for row in znode.table.children}
    rolled(world)
    world.check_complete()
    assert not [path for verb, path in verbs(world) if verb == "deploy"]


def fx_parent(top: Hosted):
    return top.initiator._house.me
