"""Commands to subtrees: to whom they go, in which order, and that every answer comes back, once."""

from __future__ import annotations

import pytest

from deploy.initiator import effects as fx
from deploy.messages import Parent, TreeCall, TreePage
from deploy.settings import Settings
from tests.unit.deploy.initiator.test_rollouts import rolled, verbs
from tests.unit.deploy.initiator.world import Network, World, count


def tree(stubs: int = 4, **more) -> World:
    world = World(count(2, "z"), [count(2, "m"), count(2, "l"), None], stubs=stubs, **more)
    world.start_top()
    rolled(world)
    del world.commands[:]
    return world


def test_status_tells_of_everybody_by_name_and_changes_nothing() -> None:
    world = tree()
    entries = world.order("status")
    assert sorted(entries) == sorted(world.target())
    assert {one.outcome for one in entries.values()} == {"done"}
    assert entries["/z1/m2/l1"].through == "/z1/m2"
    assert entries["/z1"].through == ""
    assert entries["/z1/m2/l1"].generation == world.generation
    assert not world.commands


def test_only_those_are_asked_below_whom_somebody_may_match() -> None:
    world = tree()
    assert sorted(world.order("status", "/z1/m2/*")) == ["/z1/m2/l1", "/z1/m2/l2"]
    assert world.calls("TreeCall", "/z2") == 0
    assert world.calls("TreeCall", "/z1/m1") == 0
    assert sorted(world.order("status", "/z1")) == ["/z1"]
    assert world.calls("TreeCall", "/z1") == 1


@pytest.mark.parametrize(("what", "back"), [("deactivate", "activate"), ("shutdown", "start")])
def test_down_from_below_and_up_from_above(what, back) -> None:
    world = tree()
    entries = world.order(what, "/z1/**")
    assert {one.outcome for one in entries.values()} == {"done"}
    paths = [path for _, path in verbs(world)]
    assert sorted(paths) == sorted(path for path in world.target() if path.startswith("/z1"))
    assert all(paths.index(path) < paths.index(path.rpartition("/")[0]) for path in paths if path != "/z1")
    del world.commands[:]
    entries = world.order(back, "/z1/**")
    assert {one.outcome for one in entries.values()} == {"done"}
    paths = [path for _, path in verbs(world)]
    assert len(paths) == 7
    assert all(paths.index(path) > paths.index(path.rpartition("/")[0]) for path in paths if path != "/z1")


def test_a_command_that_the_state_does_not_allow_is_refused_with_the_reason() -> None:
    world = tree()
    entries = world.order("activate", "/z1/m1/l1")
    assert entries["/z1/m1/l1"].outcome == "refused"
    assert "passive, found" in entries["/z1/m1/l1"].reason


def test_an_initiator_with_children_is_not_uninstalled_alone() -> None:
    world = tree()
    world.order("shutdown", "/z1/m1")
    entries = world.order("uninstall", "/z1/m1")
    assert entries["/z1/m1"].outcome == "refused"
    assert "2 managents" in entries["/z1/m1"].reason


def test_what_is_below_an_initiator_that_is_shut_down_is_unreachable_through_who_says_so() -> None:
    world = tree()
    world.order("shutdown", "/z1/m1")
    entries = world.order("status", "/z1/m1/*")
    assert [(one.path, one.outcome, one.through) for one in entries.values()] == [("/z1/m1", "unreachable", "/z1")]
    entries = world.order("status", "/z1/**")
    assert entries["/z1/m1"].life == "configured"
    assert "/z1/m1/l1" not in entries


def test_a_child_initiator_that_does_not_answer_in_time_is_one_entry() -> None:
    world = tree()
    key = next(key for key in world.hosted if key[1] == "/z2/m1")
    world.hosted[key].initiator.fenced = True
    entries = world.order("status", wait_s=8.0)
    assert sorted(set(world.target()) - set(entries)) == ["/z2/m1/l1", "/z2/m1/l2"]
    assert entries["/z2/m1"].outcome == "unreachable"
    assert entries["/z2/m1"].through == "/z2"
    assert "in time" in entries["/z2/m1"].reason


def test_a_command_to_a_lost_boot_stub_says_so_at_once() -> None:
    world = tree()
    stub = next(stub for stub in world.stubs.values() if "/z1/m1/l1" in stub.managents)
    stub.crash()
    world.run_for(60)
    began = world.now
    entries = world.order("shutdown", "/**")
    assert world.now - began < 40
    assert any(one.outcome == "unreachable" and stub.name in one.reason for one in entries.values())


def test_a_pattern_that_is_none_is_said() -> None:
    world = tree()
    entries = world.order("status", "/z1/**/x")
    assert [(one.path, one.outcome) for one in entries.values()] == [("", "failed")]
    assert "'**'" in entries[""].reason


@pytest.mark.parametrize("seed", range(6))
def test_no_page_is_lost_in_silence(seed: int) -> None:
    """Small pages, few of them under way, and a network that loses a fifth."""
    settings = Settings(page_entries=2, window_pages=2, call_repeat_max_s=2.0)
    world = World(count(3, "z"), [count(4, "m"), count(7, "l"), None], stubs=6, seed=seed, settings=settings)
    world.start_top()
    rolled(world)
    world.network = Network(loss=0.2, repeat=0.2, max_s=0.2)
    entries = world.order("status", wait_s=200.0)
    assert sorted(entries) == sorted(world.target())
    assert {one.outcome for one in entries.values()} == {"done"}


def test_an_asker_elsewhere_gets_numbered_pages_and_what_it_lacks_again() -> None:
    world = tree()
    z1 = world.hosted_at("/z1").initiator
    asker = Parent("", "tcp://cli:1/00000009")
    call = TreeCall("c1", "/z1", asker, "/z1/*", "status", 5000)
    z1.handle(world.now, fx.Received("route:00", call))
    sent = [one for one in z1.tick(world.now + 0.1) if isinstance(one, fx.Send)] or []
    pages = [one.message for one in sent if isinstance(one.message, TreePage)]
    world.run_for(3)
    again = z1.handle(world.now, fx.Received("route:00", call))
    found = [one.message for one in again if isinstance(one, fx.Send) and isinstance(one.message, TreePage)]
    pages = found or pages
    assert [(page.origin, page.number, page.last) for page in pages] == [("/z1", 0, True)]
    assert [one.path for one in pages[0].entries] == ["/z1/m1", "/z1/m2"]
    later = TreeCall("c1", "/z1", asker, "/z1/*", "status", 5000, have=1)
    effects = z1.handle(world.now + 9, fx.Received("route:00", later))
    assert not [one for one in effects if isinstance(one, fx.Send) and isinstance(one.message, TreePage)]


def test_a_call_that_an_earlier_incarnation_had_begun_to_answer_is_not_begun_again() -> None:
    world = tree()
    z1 = world.hosted_at("/z1").initiator
    call = TreeCall("c2", "/z1", Parent("", "tcp://cli:1/00000009"), "/**", "restart", 5000, have=3)
    z1.handle(world.now, fx.Received("route:00", call))
    world.run_for(2)
    assert not world.commands


def test_more_commands_at_a_time_than_allowed_are_refused() -> None:
    world = tree()
    settings = world.settings
    z1 = world.hosted_at("/z1").initiator
    for key in [key for key in world.hosted if key[1].startswith("/z1/")]:
        world.hosted[key].initiator.fenced = True
    asker = Parent("", "tcp://cli:1/00000009")
    for number in range(settings.max_gathers):
        z1.handle(world.now, fx.Received("r", TreeCall(f"c{number}", "/z1", asker, "/**", "status", 60_000)))
    effects = z1.handle(world.now, fx.Received("r", TreeCall("one more", "/z1", asker, "/**", "status", 60_000)))
    (page,) = [one.message for one in effects if isinstance(one, fx.Send) and isinstance(one.message, TreePage)]
    assert page.last
    assert page.entries[0].outcome == "refused"


def test_commands_that_have_ended_are_forgotten_once() -> None:
    """More of them in a minute than are remembered: what is forgotten sooner has no time to be forgotten at."""
    world = tree()
    for number in range(4 * world.settings.max_gathers + 5):
        world.tell(world.top, fx.Order(f"c{number}", "/z1", "status", 5.0))
        world.run(lambda call=f"c{number}": call in world.ended, 6)
    world.run_for(world.settings.linger_s + 5)
    assert sorted(world.order("status")) == sorted(world.target())


def test_who_gives_up_takes_back_its_own_order_and_no_other_s() -> None:
    world = World(count(4, "l"), [None], stubs=4)
    world.start_top()
    rolled(world)
    stub = next(stub for stub in world.stubs.values() if "/l1" in stub.managents)
    world.mute.add(stub.name)  # it hears, and is not heard: the first order is under way for long
    for call, wait_s in (("a", 40.0), ("b", 6.0), ("c", 40.0)):
        world.tell(world.top, fx.Order(call, "/l1", "restart", wait_s))
    world.run(lambda: "b" in world.ended, 10)
    world.mute.clear()
    world.run(lambda: {"a", "c"} <= world.ended, 35)
    assert [world.gathered[call][0].outcome for call in "abc"] == ["done", "pending", "done"]
