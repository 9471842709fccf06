"""Rollouts through a tree of initiators, in a calm world: who is deployed, in which order, at what cost, with what
outcome.
"""

from __future__ import annotations

import pytest

from deploy.configuration import Children, InitiatorRole
from deploy.initiator import effects as fx
from deploy.messages import Counts
from deploy.records import Prints
from tests.unit.deploy.initiator.world import Wanted, World, count

LEAF = Prints("1" * 16, "1" * 16, "1" * 16)


def tree(**more) -> World:
    """/z1 and /z2, below each three initiators, below each of these two leaves: 2 + 6 + 12."""
    world = World(count(2, "z", **more), [count(3, "m", **more), count(2, "l", **more), None])
    world.start_top()
    return world


def rolled(world: World, limit_s: float = 60.0, **flags) -> str:
    rollout = world.roll(**flags)
    world.run(lambda: world.is_settled(rollout), limit_s, "settled")
    world.run_for(0.1)  # tables are written meanwhile
    return rollout


def verbs(world: World) -> list[tuple[str, str]]:
    return [(call.verb, call.managent) for call in world.commands]


def test_a_whole_tree_is_deployed_once_each_and_settles() -> None:
    world = tree()
    rollout = rolled(world)
    world.run_for(5)
    world.check_complete()
    assert world.settled[-1].counts == Counts(20, 20)
    assert len(world.deployments) == 20
    assert [one.rollout for one in world.settled] == [rollout]
    initiators = 1 + 2 + 6
    assert world.operations["ClaimTable"] == initiators
    assert world.operations["SaveTable"] <= 2 * initiators
    row = world.znodes["/z1/m2"].table.children[1]
    assert (row.name, row.outcome, row.generation) == ("l2", "done", world.generation)
    assert row.steps[-1][0] == 7


def test_a_second_rollout_of_the_same_has_nothing_to_do() -> None:
    world = tree()
    rolled(world)
    world.run_for(5)
    saved, commands = world.operations["SaveTable"], len(world.commands)
    rolled(world)
    world.check_complete()
    assert len(world.commands) == commands
    assert world.operations["SaveTable"] == saved


def test_no_more_children_at_once_than_the_role_allows() -> None:
    world = World(count(9, "n", parallel=2), [None], stubs=3)
    world.start_top()
    rolled(world)
    assert world.peak == 2
    assert [path for verb, path in verbs(world)] == [f"/n{number}" for number in range(1, 10)]


def test_a_wave_reaches_exactly_what_comes_before_its_watermark() -> None:
    world = tree()
    target = world.target()
    rollout = rolled(world, until=target[0])
    for at in (1, 4, 10, 12, 19):
        seq = world.move_on(rollout, target[at])
        world.run(lambda seq=seq: world.is_settled(rollout, seq), 30, f"wave to {target[at]}")
        assert sorted(world.running()) == sorted(target[: at + 1])
        assert world.settled[-1].counts == Counts(at + 1, at + 1)
    seq = world.move_on(rollout)
    world.run(lambda: world.is_settled(rollout, seq), 30, "the rest")
    world.run_for(0.1)
    world.check_complete()


def test_a_wave_that_moves_on_elsewhere_costs_the_others_nothing() -> None:
    world = tree()
    rollout = rolled(world, until="/z2/m1/l1")
    told = world.calls("RolloutCall", "/z1")
    seq = world.move_on(rollout, "/z2/m2/l1")
    world.run(lambda: world.is_settled(rollout, seq), 30, "the second wave")
    assert world.calls("RolloutCall", "/z1") == told
    assert world.settled[-1].counts == Counts(16, 16)


def test_another_managent_configuration_is_a_restart_and_other_code_a_reinstallation() -> None:
    world = tree()
    rolled(world)
    del world.commands[:]
    world.special["/z1/m1/l1"] = Wanted(LEAF)
    world.special["/z1/m1/l2"] = Wanted(Prints("0" * 15 + "1", "0" * 15 + "1", "2" * 16))
    rolled(world)
    world.check_complete()
    assert [verb for verb, path in verbs(world) if path == "/z1/m1/l1"] == ["shutdown", "uninstall", "deploy"]
    assert [verb for verb, path in verbs(world) if path == "/z1/m1/l2"] == ["shutdown", "configure-managent", "start"]
    assert len(world.commands) == 6


def test_a_passive_managent_is_passive_after_a_reconfiguration() -> None:
    world = tree()
    rolled(world)
    world.order("deactivate", "/z2/m1/l1")
    world.version["code"] += 1
    rolled(world)
    world.check_complete()
    assert world.settled[-1].counts == Counts(20, 19, 1)
    world.order("activate", "/z2/m1/l1")
    world.run_for(2)
    assert world.top.initiator._house.counts == Counts(20, 20)


def test_what_an_order_shut_down_counts_as_stopped_and_is_started_by_the_next_rollout() -> None:
    world = tree()
    rolled(world)
    world.order("shutdown", "/z2/m1/l1")
    world.order("shutdown", "/z2/m2/l1")
    world.order("uninstall", "/z2/m2/l1")
    world.run_for(20)
    assert world.top.initiator._house.counts == Counts(20, 18, stopped=2)
    rolled(world)
    world.check_complete()


def test_who_is_not_described_any_more_is_removed_with_all_below_it_from_below() -> None:
    world = tree()
    rolled(world)
    del world.commands[:]
    world.levels[0] = count(2, "m")
    world.version["managent"] += 1
    rolled(world)
    world.check_complete()
    removed = [path for verb, path in verbs(world) if verb == "uninstall"]
    assert sorted(removed) == sorted(f"/z{z}/m3{rest}" for z in (1, 2) for rest in ("", "/l1", "/l2"))
    for z in (1, 2):
        assert removed.index(f"/z{z}/m3") > max(removed.index(f"/z{z}/m3/l1"), removed.index(f"/z{z}/m3/l2"))
    assert "/z1/m3" not in world.znodes


def test_without_prune_it_is_kept_and_not_counted() -> None:
    world = tree()
    rolled(world)
    world.top_role = count(1, "z")
    rolled(world, prune=False)
    assert world.settled[-1].counts == Counts(10, 10)
    assert len(world.running()) == 20
    rolled(world)
    world.check_complete()


def test_an_initiator_that_becomes_a_leaf_removes_its_subtree_first() -> None:
    world = tree()
    rolled(world)
    world.special["/z1/m1"] = Wanted(LEAF)
    rolled(world)
    world.run_for(5)
    world.check_complete()
    assert world.settled[-1].counts == Counts(18, 18)


def test_a_leaf_that_becomes_an_initiator_deploys() -> None:
    world = tree()
    world.special["/z1/m1"] = Wanted(LEAF)
    rolled(world)
    world.special.clear()
    rolled(world)
    world.check_complete()


def test_failures_are_retried_and_then_said_with_the_last_lines() -> None:
    world = tree()
    world.troubles["/z1/m1/l1"] = [("exit 1", False)] * 3
    world.troubles["/z1/m1/l2"] = [("exit 2", False)] * 4
    world.troubles["/z1/m2/l1"] = [("404", True)]
    rolled(world)
    assert world.settled[-1].counts == Counts(20, 18, failed=2)
    assert [(one.path, one.outcome, one.reason) for one in world.settled[-1].problems] == [
        ("/z1/m1/l2", "failed", "exit 2 | the last line"),
        ("/z1/m2/l1", "failed", "404 | the last line"),
    ]
    commands = len(world.commands)
    rolled(world)
    assert len(world.commands) == commands
    assert world.settled[-1].counts == Counts(20, 18, failed=2)
    rolled(world, retry=True)
    world.check_complete()


def test_a_subtree_of_a_failed_initiator_is_not_in_the_counts_but_itself_is() -> None:
    world = tree()
    world.troubles["/z1/m2"] = [("exit 1", True)]
    rolled(world)
    assert world.settled[-1].counts == Counts(18, 17, failed=1)


def test_an_inspection_that_fails_leaves_what_runs_and_is_said() -> None:
    world = tree()
    rolled(world)
    world.version["code"] += 1
    world.troubles["/z1/m1/l1"] = [("no answer from the repository", False)] * 4
    rolled(world)
    assert world.settled[-1].counts == Counts(20, 19, failed=1)
    assert world.running()["/z1/m1/l1"]
    rolled(world, retry=True)
    world.check_complete()


def test_recheck_inspects_what_has_this_generation_already() -> None:
    world = tree()
    rolled(world)
    generation = world.generation
    world.version["managent"] += 1
    world.generation_is = generation
    rolled(world)
    assert len(world.deployments) == 20
    rolled(world, recheck=True)
    world.check_complete()


def test_children_that_cannot_be_are_the_initiators_failure() -> None:
    world = tree()
    world.special["/z1/m1"] = Wanted(LEAF, InitiatorRole((Children("names", names=("x", "x")),)))
    rolled(world)
    (problem,) = world.settled[-1].problems
    assert (problem.path, problem.outcome) == ("/z1/m1", "failed")
    assert "x twice" in problem.reason
    assert world.settled[-1].counts == Counts(18, 17, failed=1)


def test_a_circle_of_initiators_ends_with_a_clear_error() -> None:
    role = count(1, "n")
    world = World(role, [role] * 20, stubs=2)
    world.start_top()
    rolled(world, 120)
    (problem,) = world.settled[-1].problems
    assert problem.path == "/n1" * 16
    assert "in a circle" in problem.reason
    assert world.settled[-1].counts == Counts(16, 15, failed=1)


def test_a_deactivated_initiator_begins_nothing_new_and_says_so() -> None:
    world = tree()
    rolled(world)
    world.order("deactivate", "/z1/m1")
    world.version["code"] += 1
    world.special["/z1/m1"] = Wanted(Prints("0" * 15 + "1", "0" * 15 + "1", "0" * 15 + "1"), world.levels[1])
    rolled(world)
    counts = world.settled[-1].counts
    assert counts == Counts(20, 17, 1, refused=2)
    assert "deactivated" in world.settled[-1].problems[0].reason
    world.order("activate", "/z1/m1")
    world.run(lambda: world.top.initiator._house.counts == Counts(20, 20), 30, "it goes on")


def test_an_old_seq_is_refused_at_the_top() -> None:
    world = tree()
    rolled(world)
    world.seq = 0
    with pytest.raises(ValueError, match="expected a seq above 1, found 1"):
        world.roll()


def test_a_rollout_that_was_overtaken_by_a_newer_one_changes_nothing() -> None:
    world = tree()
    rolled(world)
    late = next(one for one in world.sent if type(one).__name__ == "RolloutCall" and one.to == "/z1")
    rolled(world)
    rollout = world.hosted_at("/z1").initiator._house.rollout
    world.tell(world.hosted_at("/z1"), fx.Received("tcp://top:1/0", late))
    assert world.hosted_at("/z1").initiator._house.rollout == rollout
