"""What every bus does, on ZeroMQ and simulated: who reaches whom, what is dropped, and what strangers can't do."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import pytest

from fabric.messages import Heartbeat, LeaderHello, Vitals
from fabric.resources import Resources
from fabric.traffic import PortInUse
from fabric.wire import MAX_FRAME_BYTES, Codec
from tests.contract.parties import Meet, Parties, Party, answer, call, sim_parties, zmq_parties

ONE = "aaaaaaaa"
TWO = "bbbbbbbb"
THREE = "cccccccc"


@pytest.fixture(params=["zeromq", "simulated"])
def meet(request: pytest.FixtureRequest) -> Meet:
    return zmq_parties if request.param == "zeromq" else sim_parties


def run(meet: Meet, body: Callable[[Parties], Awaitable[None]]) -> None:
    async def main() -> None:
        async with meet() as parties:
            await body(parties)

    asyncio.run(main())


# --- who reaches whom ---------------------------------------------------------------------------------------------


def test_a_question_and_its_answer_travel_on_one_connection(meet: Meet) -> None:
    async def body(p: Parties) -> None:
        one, two = p.make(ONE), p.make(TWO, answers=True)
        one.bus.send(two.address, call("q"))
        assert two.inbox == []  # never from inside send
        await p.until(lambda: one.inbox, what="the answer")
        assert one.calls() == ["q"]
        assert two.inbox[0][0].startswith("route:")
        assert (one.bus.counters.peers, two.bus.counters.peers) == (1, 0)
        assert one.bus.counters.sent == {"RackStatusCall": 1}
        assert one.bus.counters.received == {"Submitted": 1}
        frame = Codec().encode(answer("q"), "")
        assert two.bus.counters.bytes_sent == one.bus.counters.bytes_received == len(frame)
        one.bus.send(one.inbox[0][0], call("thanks"))  # on the same connection again
        await p.until(lambda: two.calls() == ["q", "thanks"])
        assert one.bus.counters.peers == 1

    run(meet, body)


def test_messages_of_one_connection_keep_their_order(meet: Meet) -> None:
    async def body(p: Parties) -> None:
        one, two = p.make(ONE), p.make(TWO, answers=True)
        names = [f"{number}" for number in range(300)]
        for name in names:
            one.bus.send(two.address, call(name))
        await p.until(lambda: len(one.inbox) == 300)
        assert two.calls() == one.calls() == names

    run(meet, body)


def test_two_agents_that_connect_to_each_other_at_the_same_moment(meet: Meet) -> None:
    async def body(p: Parties) -> None:
        one, two = p.make(ONE, answers=True), p.make(TWO, answers=True)
        for number in range(50):
            one.bus.send(two.address, call(f"1-{number}"))
            two.bus.send(one.address, call(f"2-{number}"))
        await p.until(lambda: len(one.inbox) == 100 and len(two.inbox) == 100, what="50 questions and answers each")
        assert [name for name in one.calls() if name[0] == "2"] == [f"2-{number}" for number in range(50)]
        assert sorted(one.calls()) == sorted(two.calls())

    run(meet, body)


def test_forty_peers_are_asked_in_parallel_and_all_answer(meet: Meet) -> None:
    async def body(p: Parties) -> None:
        leader = p.make(ONE)
        agents = [p.make(f"{number:08x}", answers=True) for number in range(40)]
        for agent in agents:
            for number in range(5):
                leader.bus.send(agent.address, call(f"{number}"))
        await p.until(lambda: len(leader.inbox) == 200, what="200 answers")
        assert leader.bus.counters.peers == 40

    run(meet, body)


def test_a_send_to_oneself_goes_through_the_codec_and_can_be_answered(meet: Meet) -> None:
    async def body(p: Parties) -> None:
        one = p.make(ONE, answers=True)
        one.bus.send(one.address, call("self"))
        assert one.inbox == []  # never from inside send
        await p.until(lambda: len(one.inbox) == 2)
        assert one.calls() == ["self", "self"]
        assert one.bus.counters.peers == 0
        one.bus.send(f"{one.endpoint}/{TWO}", call("to my predecessor"))
        await p.until(lambda: one.bus.counters.stale == 1)
        assert len(one.inbox) == 2

    run(meet, body)


def test_a_port_in_use_is_a_clear_error(meet: Meet) -> None:
    async def body(p: Parties) -> None:
        one = p.make(ONE)
        with pytest.raises(PortInUse, match=rf"{one.endpoint} is in use.*stop it or listen on another port"):
            p.make(TWO, one.endpoint)

    run(meet, body)


# --- incarnations -------------------------------------------------------------------------------------------------


def test_a_message_for_another_incarnation_is_stale(meet: Meet) -> None:
    async def body(p: Parties) -> None:
        one, two = p.make(ONE), p.make(TWO)
        one.bus.send(f"{two.endpoint}/{THREE}", Heartbeat("n1", ONE, Vitals(Resources(1, 1, 1), False, 0, 0, 0, 0)))
        one.bus.send(two.address, LeaderHello("r1", "compute", 1, one.address, 1000))
        await p.until(lambda: two.inbox)
        assert two.bus.counters.stale == 1
        assert two.bus.counters.received == {"LeaderHello": 1}
        assert [type(message) for _, message in two.inbox] == [LeaderHello]

    run(meet, body)


def test_a_successor_on_the_same_port_drops_what_was_queued_for_the_dead(meet: Meet) -> None:
    async def body(p: Parties) -> None:
        one = p.make(ONE)
        endpoint = p.free_endpoint()
        for number in range(10):
            one.bus.send(f"{endpoint}/{TWO}", call(f"late {number}"))
        successor = p.make(THREE, endpoint, answers=True)
        one.bus.send(successor.address, call("after"))
        await p.until(lambda: one.calls() == ["after"], what="the successor's answer")
        assert successor.calls() == ["after"]
        assert successor.bus.counters.stale == 10
        assert one.bus.counters.peers == 1

    run(meet, body)


async def rebound(p: Parties, guid: str, endpoint: str) -> Party:
    """Somebody who takes over a port; libzmq gives it back in its own time."""
    made: list[Party] = []

    def bound() -> bool:
        with suppress(PortInUse):
            made.append(p.make(guid, endpoint, answers=True))
        return bool(made)

    await p.until(bound, what="the port to be free again")
    return made[0]


def test_a_peer_that_comes_back_at_the_same_port_is_reached_on_a_new_connection(meet: Meet) -> None:
    async def body(p: Parties) -> None:
        one, two = p.make(ONE), p.make(TWO, answers=True)
        one.bus.send(two.address, call("before"))
        await p.until(lambda: one.inbox)
        two.bus.close()
        await p.until(lambda: one.bus.counters.lost == 1, what="the broken connection to be noticed")
        assert one.bus.counters.peers == 0
        three = await rebound(p, THREE, two.endpoint)
        one.bus.send(two.address, call("for the dead"))
        one.bus.send(three.address, call("after"))
        await p.until(lambda: one.calls() == ["before", "after"])
        assert three.bus.counters.stale == 1

    run(meet, body)


def test_an_answer_never_reaches_the_askers_successor(meet: Meet) -> None:
    async def body(p: Parties) -> None:
        one, two = p.make(ONE), p.make(TWO)
        one.bus.send(two.address, call("q"))
        await p.until(lambda: two.inbox)
        route = two.inbox[0][0]
        one.bus.close()
        three = await rebound(p, THREE, one.endpoint)
        await p.until(partial(is_gone, two, route), what="the route to be gone")
        two.bus.send(three.address, call("to the new one"))
        await p.until(lambda: three.inbox)
        assert three.calls() == ["to the new one"]

    run(meet, body)


def is_gone(party: Party, route: str) -> bool:
    """Whether sending by that route is known to be in vain."""
    party.bus.send(route, answer("q"))
    return party.bus.counters.dropped["gone"] > 0


# --- what is dropped ----------------------------------------------------------------------------------------------


def test_an_answer_to_a_peer_that_has_left_is_counted_not_raised(meet: Meet) -> None:
    async def body(p: Parties) -> None:
        one, two = p.make(ONE), p.make(TWO)
        one.bus.send(two.address, call("q"))
        await p.until(lambda: two.inbox)
        route = two.inbox[0][0]
        one.bus.close()
        await p.until(partial(is_gone, two, route), what="the route to be gone")
        two.bus.send("route:", answer("q"))
        two.bus.send("route:xyz", answer("q"))
        assert two.bus.counters.dropped["gone"] == 3

    run(meet, body)


def test_a_peer_that_does_not_keep_up_costs_a_bounded_queue(meet: Meet) -> None:
    async def body(p: Parties) -> None:
        one = p.make(ONE, queue_messages=10)
        nobody = f"{p.free_endpoint()}/{TWO}"
        for number in range(100):
            one.bus.send(nobody, call(f"{number}"))
        assert one.bus.counters.sent["RackStatusCall"] <= 10
        assert one.bus.counters.dropped["full"] >= 90

    run(meet, body)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "tcp://127.0.0.1:1",
        "ipc:///tmp/x/aaaaaaaa",
        "inproc://x/aaaaaaaa",
        "tcp://127.0.0.1:70000/aaaaaaaa",
        "tcp://127.0.0.1:0/aaaaaaaa",
        "tcp://127.0.0.1:*/aaaaaaaa",
        "tcp://127.0.0.1:80;127.0.0.1:81/aaaaaaaa",
        "tcp://127.0.0.1:80/not-a-guid",
    ],
)
def test_a_malformed_address_from_a_peer_is_counted(meet: Meet, address: str) -> None:
    async def body(p: Parties) -> None:
        one = p.make(ONE)
        one.bus.send(address, call("q"))
        assert one.bus.counters.dropped == {"address": 1}
        assert one.bus.counters.peers == 0

    run(meet, body)


def test_a_message_larger_than_any_peer_takes_is_counted(meet: Meet) -> None:
    async def body(p: Parties) -> None:
        one = p.make(ONE)
        one.bus.send(f"tcp://127.0.0.1:9/{TWO}", call("x" * MAX_FRAME_BYTES))
        assert one.bus.counters.dropped == {"large": 1}
        assert one.bus.counters.sent == {}

    run(meet, body)


def test_a_closed_bus_neither_sends_nor_hears(meet: Meet) -> None:
    async def body(p: Parties) -> None:
        one, two, three = p.make(ONE), p.make(TWO), p.make(THREE)
        one.bus.close()
        one.bus.close()
        one.bus.send(two.address, call("never"))
        two.bus.send(one.address, call("in vain"))
        three.bus.send(two.address, call("last"))
        await p.until(lambda: two.inbox)
        assert two.calls() == ["last"]
        assert one.inbox == []
        assert one.bus.counters.sent == {}

    run(meet, body)


# --- strangers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "cause"),
    [
        ([b"\xc1 no msgpack"], "msgpack"),
        ([b""], "empty"),
        ([b"", Codec().encode(call("q"), TWO)], "parts"),
        ([Codec().encode(call("q"), TWO)] * 3, "parts"),
        ([Codec().encode(call("q"), TWO)[:-1]], "msgpack"),
        ([Codec().encode(call("q"), TWO) + b"x"], "msgpack"),
        ([b"\x94\x09\x00\xa0\x80"], "version"),
        ([b"\x94\x02\x00\xa0\x80"], "type"),
    ],
)
def test_frames_that_are_no_messages_are_counted_and_change_nothing(
    meet: Meet, parts: list[bytes], cause: str
) -> None:
    async def body(p: Parties) -> None:
        two = p.make(TWO, answers=True)
        stranger = p.stranger(two.endpoint)
        stranger.send(*parts)
        stranger.send(Codec().encode(call("good"), ""))
        await p.until(stranger.heard, what="the answer to the good message behind the bad one")
        assert two.bus.counters.bad == {cause: 1}
        assert two.calls() == ["good"]
        assert stranger.heard() == [Codec().encode(answer("good"), "")]

    run(meet, body)


def test_random_frames_are_counted_and_change_nothing(meet: Meet) -> None:
    seed = 20_011
    rng = random.Random(seed)
    good = Codec().encode(call("good"), TWO)

    def spoiled() -> bytes:
        where = rng.randrange(len(good))
        return rng.choice((rng.randbytes(rng.randrange(1, 200)), good[:where], good[:where] + rng.randbytes(9)))

    frames = [frame for frame in (spoiled() for _ in range(300)) if frame]

    async def body(p: Parties) -> None:
        two = p.make(TWO)
        stranger = p.stranger(two.endpoint)
        for frame in frames:
            stranger.send(frame)
        stranger.send(good)
        await p.until(lambda: two.inbox, what=f"the good message behind them (seed {seed})")
        assert two.calls() == ["good"]
        assert sum(two.bus.counters.bad.values()) + two.bus.counters.stale == len(frames)

    run(meet, body)


def test_a_frame_larger_than_any_agent_sends_costs_the_stranger_its_connection(meet: Meet) -> None:
    async def body(p: Parties) -> None:
        one, two = p.make(ONE), p.make(TWO, answers=True)
        stranger = p.stranger(two.endpoint)
        stranger.send(b"x" * (MAX_FRAME_BYTES + 1))
        one.bus.send(two.address, call("still there"))
        await p.until(lambda: one.inbox)
        assert two.calls() == ["still there"]
        assert two.bus.counters.bad == {}

    run(meet, body)


def test_without_the_clusters_key_nothing_is_read(meet: Meet) -> None:
    async def body(p: Parties) -> None:
        key = bytes(range(32))
        one, two, outsider = p.make(ONE, key=key), p.make(TWO, key=key), p.make(THREE)
        outsider.bus.send(two.address, call("outside"))
        await p.until(lambda: two.bus.counters.bad["seal"] == 1)
        one.bus.send(two.address, call("inside"))
        await p.until(lambda: two.calls() == ["inside"])

    run(meet, body)


def test_a_frame_that_is_replayed_to_a_successor_is_stale(meet: Meet) -> None:
    async def body(p: Parties) -> None:
        key = bytes(range(32))
        recorded = Codec(key).encode(call("order of yesterday"), THREE)
        two = p.make(TWO, key=key)
        stranger = p.stranger(two.endpoint)
        stranger.send(recorded)
        await p.until(lambda: two.bus.counters.stale == 1)
        assert two.inbox == []

    run(meet, body)
