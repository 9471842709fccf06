"""Boot stubs and tops that start anew: what runs is found again, what was ordered stays, who asks is told the truth."""

from __future__ import annotations

from deploy.configuration import Children, InitiatorRole
from deploy.messages import Charge, Counts
from deploy.settings import Settings
from tests.unit.deploy.initiator.test_rollouts import tree as wide
from tests.unit.deploy.initiator.world import REPOSITORY, World, count


def test_boot_stubs_that_were_all_started_anew_elsewhere_are_found_before_they_are_given_up() -> None:
    """A power failure: the tables name addresses at which nobody listens any more."""
    world = wide()
    first = world.roll()
    world.run(lambda: world.is_settled(first), 30)
    world.run_for(5)
    for stub in world.stubs.values():
        stub.crash()
    for stub in world.stubs.values():
        stub.start()
    world.start_top()
    second = world.roll()
    world.run(lambda: world.is_settled(second), Settings().suspect_s)
    world.check_complete()
    assert len(world.deployments) == 20


def test_a_passive_initiator_answers_for_its_children_after_its_boot_stub_was_started_anew() -> None:
    world = wide()
    first = world.roll()
    world.run(lambda: world.is_settled(first), 30)
    assert world.order("deactivate", "/z1/m2")["/z1/m2"].outcome == "done"
    world.run_for(5)
    for stub in world.stubs.values():
        stub.crash()
        stub.start()
    world.start_top()
    second = world.roll(recheck=True)
    world.run(lambda: world.is_settled(second), 30)
    assert world.settled[-1].counts == Counts(20, active=17, passive=1, refused=2)


def test_what_was_shut_down_by_an_order_stays_so_though_its_initiators_were_shut_down_with_it() -> None:
    """Who is shut down has nothing to write any more, and its successor knows what is in the table."""
    world = wide()
    rollout = world.roll()
    world.run(lambda: world.is_settled(rollout), 30)
    world.run_for(5)
    for stub in world.stubs.values():
        stub.crash()
        stub.start()
    world.start_top()  # now nobody has a rollout, at whose end everything is written
    world.run_for(5)
    told = world.order("shutdown")
    assert {one.outcome for one in told.values()} == {"done"}
    world.start_top()
    world.run_for(60)
    lives = {one.path: one.life for stub in world.stubs.values() for one in stub.managents.values()}
    assert set(lives.values()) == {"configured"}
    for pattern in ("/*", "/*/*"):  # from the top down: nobody below is told yet
        assert {one.outcome for one in world.order("start", pattern).values()} == {"done"}
    world.run_for(60)
    lives = {one.path: one.life for stub in world.stubs.values() for one in stub.managents.values()}
    assert {path for path, life in lives.items() if life == "configured"} == {
        path for path in world.target() if path.count("/") == 3
    }
    assert {one.outcome for one in world.order("start", "/*/*/*").values()} == {"done"}


def test_a_new_top_says_how_the_roots_are_when_it_has_heard_of_them_itself() -> None:
    world = wide()
    first = world.roll()
    world.run(lambda: world.is_settled(first), 30)
    world.run_for(5)
    world.start_top()
    world.run(lambda: bool(world.top.initiator._house.epoch), 5)
    assert {entry.outcome for entry in world.order("status", "/*").values()} == {"done"}


def test_an_initiator_that_was_about_to_go_has_children_again_when_it_is_described_again() -> None:
    """The directory is away just when it drops its table."""
    for away in (False, True):
        world = wide()
        first = world.roll()
        world.run(lambda world=world, first=first: world.is_settled(first), 30)
        described = world.top_role
        world.top_role = count(1, "z")
        world.roll()
        z2 = world.hosted_at("/z2").initiator
        world.run(lambda z2=z2: not z2._house.kids, 30)
        world.directory_away = away
        world.top_role = described
        again = world.roll()
        world.run_for(5)
        world.directory_away = False
        world.run(lambda world=world, again=again: world.is_settled(again), 120, "settled")
        world.run_for(0.1)  # tables are written meanwhile
        world.check_complete()


def test_an_initiator_that_was_made_anew_between_two_rollouts_hears_of_the_domain_of_the_second() -> None:
    top = InitiatorRole((Children("names", names=("a",)),))
    world = World(top, [count(2, "m"), InitiatorRole((Children("stub"),)), None], stubs=4)
    world.start_top()
    first = world.roll()
    world.run(lambda: world.is_settled(first), 30)
    world.run_for(5)
    stub = next(one for one in world.stubs.values() if "/a/m1" in one.managents)
    world.gone.add(next(name for name in ("s00", "s01") if name != stub.name))
    wave = world.roll(until="/a")  # which reaches nobody below it, with a domain of one boot stub less
    world.run(lambda: world.is_settled(wave), 30)
    stub.crash()
    del stub.managents["/a/m1"]
    for parent in [key for key in world.hosted if key[1] == "/a" and world.hosted[key].alive()]:
        world.restart(parent)  # now it has told nobody anything, nor heard of anybody
    stub.start()
    world.run(lambda: "/a/m1" in stub.managents and stub.managents["/a/m1"].life == "active", 60)
    world.run_for(30)
    world.gone.clear()
    last = world.roll()
    world.run(lambda: world.is_settled(last), 60)
    world.run_for(0.1)
    world.check_complete()


def test_a_top_that_only_asks_leaves_the_record_of_where_the_roots_come_from() -> None:
    world = wide()
    rollout = world.roll()
    world.run(lambda: world.is_settled(rollout), 30)
    assert world.znodes[""].table.repository == REPOSITORY
    assert world.znodes["/z1"].table.repository == REPOSITORY
    world.start_top(Charge("", directory="zk", domain=world.refs()))
    world.run_for(5)
    world.order("deactivate", "/z1")
    assert [row.want for row in world.znodes[""].table.children] == ["passive", "active"]
    assert world.znodes[""].table.repository == REPOSITORY
