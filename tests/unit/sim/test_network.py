"""The simulated network in bad weather, and its processes that stop. What every bus does is in tests/contract."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fabric.messages import AnyMessage, RackStatusCall, Submitted
from fabric.sim.clock import Clock
from fabric.sim.network import Network, SimBus, Weather
from fabric.traffic import BindFailed
from fabric.wire import Codec

ONE, TWO, THREE = "aaaaaaaa", "bbbbbbbb", "cccccccc"
MANY = 400


class World:
    def __init__(self, seed: int = 1, **rates: Any) -> None:
        self.clock = Clock()
        self.weather = Weather(random.Random(seed), **rates)
        self.network = Network(self.clock, self.weather)
        self.inboxes: dict[str, list[tuple[str, str]]] = {}
        """host -> (sender, call) of what it received."""

    def bus(self, host: str, guid: str, answers: bool = False, **options: Any) -> SimBus:
        inbox = self.inboxes.setdefault(host, [])

        def take(sender: str, message: AnyMessage) -> None:
            assert isinstance(message, RackStatusCall | Submitted)
            inbox.append((sender, message.call))
            if answers and isinstance(message, RackStatusCall):
                bus.send(sender, Submitted(message.call, True, ""))

        bus = SimBus(self.network, Codec(), guid, f"tcp://{host}:7000", on_message=take, **options)
        return bus

    def pass_time(self, seconds: float = 10.0) -> None:
        self.clock.run(self.clock.now + seconds)

    def got(self, host: str) -> list[str]:
        return [call for _, call in self.inboxes[host]]


def send_many(world: World, count: int = MANY) -> None:
    one, two = world.bus("h1", ONE), world.bus("h2", TWO)
    for number in range(count):
        one.send(two.address, RackStatusCall(f"{number}"))
    world.pass_time()


def test_in_fair_weather_nothing_is_lost_and_all_keeps_its_order() -> None:
    world = World()
    send_many(world)
    assert world.got("h2") == [f"{number}" for number in range(MANY)]
    assert (world.network.sent, world.network.delivered) == (MANY, MANY)


def test_a_part_of_all_messages_is_lost() -> None:
    world = World(loss=0.2)
    send_many(world)
    assert 0.7 * MANY < len(world.got("h2")) < 0.9 * MANY
    assert world.got("h2") == sorted(world.got("h2"), key=int), "the others keep their order"


def test_a_part_comes_twice_the_second_copy_late() -> None:
    world = World(repeat=0.2, late_s=1.0)
    send_many(world)
    got = world.got("h2")
    assert 1.1 * MANY < len(got) < 1.3 * MANY
    assert sorted(set(got), key=int) == [f"{number}" for number in range(MANY)]
    firsts = list(dict.fromkeys(got))
    assert firsts == sorted(firsts, key=int), "copies hold up nothing"


def test_a_part_is_overtaken() -> None:
    world = World(overtaken=0.2, late_s=1.0)
    send_many(world)
    got = world.got("h2")
    assert sorted(got, key=int) == [f"{number}" for number in range(MANY)]
    assert got != sorted(got, key=int)


def test_one_seed_is_one_history() -> None:
    histories = []
    for seed in (7, 7, 8):
        world = World(seed, loss=0.1, repeat=0.1, overtaken=0.1)
        send_many(world)
        histories.append((world.got("h2"), world.clock.events))
    assert histories[0] == histories[1] != histories[2]


def test_a_cut_has_a_direction() -> None:
    world = World()
    one, two = world.bus("h1", ONE), world.bus("h2", TWO, answers=True)
    world.weather.cuts.add(("h2", "h1"))
    one.send(two.address, RackStatusCall("there"))
    world.pass_time()
    assert (world.got("h2"), world.got("h1")) == (["there"], [])
    world.weather.cuts = {("h1", "h2")}
    one.send(two.address, RackStatusCall("lost"))
    two.send(world.inboxes["h2"][0][0], Submitted("back", True, ""))
    world.pass_time()
    assert (world.got("h2"), world.got("h1")) == (["there"], ["back"])
    world.weather.cuts.clear()
    one.send(two.address, RackStatusCall("again"))
    world.pass_time()
    assert world.got("h1") == ["back", "again"]


def test_weather_does_not_reach_a_message_to_oneself() -> None:
    world = World(loss=1.0)
    one = world.bus("h1", ONE)
    one.send(one.address, RackStatusCall("self"))
    world.pass_time()
    assert world.got("h1") == ["self"]


def test_what_comes_to_a_stopped_process_waits_within_the_bound() -> None:
    world = World()
    one, two = world.bus("h1", ONE, queue_messages=10), world.bus("h2", TWO, answers=True)
    two.pause()
    for number in range(15):
        one.send(two.address, RackStatusCall(f"{number}"))
        world.pass_time(0.1)
    assert world.got("h2") == []
    assert one.counters.dropped == {"full": 5}
    two.resume()
    world.pass_time()
    assert world.got("h2") == world.got("h1") == [f"{number}" for number in range(10)]
    one.send(two.address, RackStatusCall("on"))
    world.pass_time()
    assert world.got("h1")[-1] == "on"


def test_a_process_killed_while_it_was_stopped_never_sees_what_waited() -> None:
    world = World()
    one, two = world.bus("h1", ONE), world.bus("h2", TWO)
    two.pause()
    one.send(two.address, RackStatusCall("q"))
    world.pass_time()
    two.close()
    two.resume()
    successor = world.bus("h2", THREE)
    world.pass_time()
    assert world.got("h2") == []
    assert one.counters.lost == 1
    assert successor.counters.stale == 0, "it had reached the process that died"


@pytest.mark.parametrize("sender_leaves", [False, True])
def test_what_waits_for_a_listener_is_lost_with_its_sender(sender_leaves: bool) -> None:
    world = World()
    one, other = world.bus("h1", ONE), world.bus("h3", THREE)
    one.send(f"tcp://h2:7000/{TWO}", RackStatusCall("one's"))
    other.send(f"tcp://h2:7000/{TWO}", RackStatusCall("other's"))
    world.pass_time()
    if sender_leaves:
        one.close()
    world.bus("h2", TWO)
    world.pass_time()
    assert sorted(world.got("h2")) == (["other's"] if sender_leaves else ["one's", "other's"])


def test_messages_under_way_to_the_dead_reach_the_successor_and_are_stale() -> None:
    world = World(delay_s=1.0)
    one, two = world.bus("h1", ONE), world.bus("h2", TWO)
    one.send(two.address, RackStatusCall("q"))
    world.pass_time(0.5)
    two.close()
    successor = world.bus("h2", THREE)
    world.pass_time()
    assert world.got("h2") == []
    assert successor.counters.stale == 1


def test_a_route_is_gone_for_both_when_either_end_leaves() -> None:
    for leaver in ("h1", "h2"):
        world = World()
        busses = {"h1": world.bus("h1", ONE), "h2": world.bus("h2", TWO, answers=True)}
        busses["h1"].send(busses["h2"].address, RackStatusCall("q"))
        world.pass_time()
        stayer = "h1" if leaver == "h2" else "h2"
        busses[leaver].close()
        busses[stayer].send(world.inboxes[stayer][0][0], RackStatusCall("in vain"))
        assert busses[stayer].counters.dropped == {"gone": 1}
        assert busses["h1"].counters.lost == (leaver == "h2")


def test_what_travelled_can_be_replayed_by_a_stranger() -> None:
    world = World()
    one, two = world.bus("h1", ONE), world.bus("h2", TWO, answers=True)
    one.send(two.address, RackStatusCall("q"))
    world.pass_time()
    ((endpoint, frame),) = world.network.recent
    stranger = world.network.stranger(endpoint)
    stranger.send(frame)
    world.pass_time()
    assert world.got("h2") == ["q", "q"], "it is genuine: what it says must protect it"
    assert world.got("h1") == ["q"], "the answer goes to who asked"
    assert stranger.heard == [Codec().encode(Submitted("q", True, ""), "")]


@pytest.mark.parametrize("bind", ["h1", "tcp://h1", "tcp://h1:0", "tcp://h1:7000/"])
def test_an_endpoint_that_is_none_is_refused(bind: str) -> None:
    world = World()
    with pytest.raises(BindFailed, match="expected tcp://host:port"):
        SimBus(world.network, Codec(), ONE, bind, on_message=lambda sender, message: None)
