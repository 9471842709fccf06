"""The bus on real sockets: who reaches whom, what is dropped, and what strangers can't do."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import zmq

from fabric.messages import AnyMessage, Heartbeat, LeaderHello, RackStatusCall, Submitted
from fabric.resources import Resources
from fabric.runtime.bus import BindFailed, Bus, BusLimits, PortInUse
from fabric.wire import MAX_FRAME_BYTES, Codec
from tests.unit.runtime.until import until

ONE = "aaaaaaaa"
TWO = "bbbbbbbb"
THREE = "cccccccc"
QUICK = BusLimits(reconnect_min_ms=20, reconnect_max_ms=100)


def call(name: str) -> RackStatusCall:
    return RackStatusCall(call=name)


def answer(name: str) -> Submitted:
    return Submitted(call=name, taken=True, reason="")


class Party:
    """A bus and what it received; answers every RackStatusCall if it is told to."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        guid: str,
        bind: str = "tcp://127.0.0.1:0",
        *,
        answers: bool = False,
        key: bytes | None = None,
        limits: BusLimits = QUICK,
        host: str | None = None,
    ) -> None:
        self.inbox: list[tuple[str, AnyMessage]] = []
        self.answers = answers
        self.bus = Bus(
            context, Codec(key), guid, bind, on_message=self.take, limits=limits, advertise_host=host
        )
        self.address = self.bus.address
        self.endpoint = self.address.rpartition("/")[0]

    def take(self, sender: str, message: AnyMessage) -> None:
        self.inbox.append((sender, message))
        if self.answers and isinstance(message, RackStatusCall):
            self.bus.send(sender, answer(message.call))

    def calls(self) -> list[str]:
        return [message.call for _, message in self.inbox if isinstance(message, RackStatusCall | Submitted)]


Make = Callable[..., Party]


@asynccontextmanager
async def parties() -> AsyncIterator[Make]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made: list[Party] = []

    def make(guid: str, bind: str = "tcp://127.0.0.1:0", **options: object) -> Party:
        made.append(Party(context, guid, bind, **options))  # type: ignore[arg-type]
        return made[-1]

    try:
        yield make
    finally:
        for party in made:
            party.bus.close()
        context.term()


def run(body: Callable[[Make], Awaitable[None]]) -> None:
    async def main() -> None:
        async with parties() as make:
            await body(make)

    asyncio.run(main())


def test_a_question_and_its_answer_travel_on_one_connection() -> None:
    async def body(make: Make) -> None:
        one, two = make(ONE), make(TWO, answers=True)
        one.bus.send(two.address, call("q"))
        await until(lambda: one.inbox, what="the answer")
        assert one.calls() == ["q"]
        assert two.inbox[0][0].startswith("route:")
        assert (one.bus.counters.peers, two.bus.counters.peers) == (1, 0)
        assert one.bus.counters.sent == {"RackStatusCall": 1}
        assert one.bus.counters.received == {"Submitted": 1}

    run(body)


def test_two_agents_that_connect_to_each_other_at_the_same_moment() -> None:
    async def body(make: Make) -> None:
        one, two = make(ONE, answers=True), make(TWO, answers=True)
        for number in range(50):
            one.bus.send(two.address, call(f"1-{number}"))
            two.bus.send(one.address, call(f"2-{number}"))
        await until(lambda: len(one.inbox) == 100 and len(two.inbox) == 100, what="50 questions and 50 answers each")
        assert [name for name in one.calls() if name[0] == "2"] == [f"2-{number}" for number in range(50)]
        assert sorted(one.calls()) == sorted(two.calls())

    run(body)


def test_forty_peers_are_asked_in_parallel_and_all_answer() -> None:
    async def body(make: Make) -> None:
        leader = make(ONE)
        agents = [make(f"{number:08x}", answers=True) for number in range(40)]
        for agent in agents:
            for number in range(5):
                leader.bus.send(agent.address, call(f"{number}"))
        await until(lambda: len(leader.inbox) == 200, what="200 answers")

    run(body)


def test_a_send_to_oneself_goes_through_the_codec_and_can_be_answered() -> None:
    async def body(make: Make) -> None:
        one = make(ONE, answers=True)
        one.bus.send(one.address, call("self"))
        assert one.inbox == []  # never from inside send
        await until(lambda: len(one.inbox) == 2)
        assert one.calls() == ["self", "self"]
        assert one.bus.counters.peers == 0
        one.bus.send(f"{one.endpoint}/{TWO}", call("to my predecessor"))
        await until(lambda: one.bus.counters.stale == 1)
        assert len(one.inbox) == 2

    run(body)


def test_a_successor_on_the_same_port_drops_what_was_queued_for_the_dead() -> None:
    async def body(make: Make) -> None:
        one = make(ONE)
        endpoint = f"tcp://127.0.0.1:{free_port()}"
        for number in range(10):
            one.bus.send(f"{endpoint}/{TWO}", call(f"late {number}"))
        successor = make(THREE, endpoint, answers=True)
        one.bus.send(successor.address, call("after"))
        await until(lambda: one.calls() == ["after"], what="the successor's answer")
        assert successor.calls() == ["after"]
        assert successor.bus.counters.stale == 10
        assert one.bus.counters.peers == 1

    run(body)


PEER = """
import asyncio, sys, zmq
from fabric.messages import Submitted
from fabric.runtime.bus import Bus
from fabric.wire import Codec

async def main():
    def take(sender, question):
        bus.send(sender, Submitted(call=question.call, taken=True, reason=""))

    bus = Bus(zmq.Context(), Codec(), sys.argv[1], sys.argv[2], on_message=take)
    print(bus.address, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_a_killed_process_and_its_successor() -> None:
    def start(guid: str, bind: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen([sys.executable, "-c", PEER, guid, bind], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    def kill(process: subprocess.Popen[str]) -> None:
        process.kill()
        process.communicate(timeout=10)

    async def body(make: Make) -> None:
        one = make(ONE)
        process, address = await asyncio.to_thread(start, TWO, "tcp://127.0.0.1:0")
        try:
            one.bus.send(address, call("before"))
            await until(lambda: one.calls() == ["before"])
            kill(process)
            for number in range(10):
                one.bus.send(address, call(f"late {number}"))
            process, address = await asyncio.to_thread(start, THREE, address.rpartition("/")[0])
            one.bus.send(address, call("after"))
            await until(lambda: len(one.inbox) == 2, what="the successor's answer")
            assert one.calls() == ["before", "after"]  # the late ones were dropped: another incarnation
        finally:
            kill(process)

    run(body)


def test_an_answer_to_a_peer_that_has_left_is_counted_not_raised() -> None:
    async def body(make: Make) -> None:
        one, two = make(ONE), make(TWO)
        one.bus.send(two.address, call("q"))
        await until(lambda: two.inbox)
        route = two.inbox[0][0]
        one.bus.close()

        def gone() -> bool:
            two.bus.send(route, answer("q"))
            return two.bus.counters.dropped["gone"] > 0

        await until(gone, what="the route to be gone")
        two.bus.send("route:", answer("q"))
        two.bus.send("route:xyz", answer("q"))
        assert two.bus.counters.dropped["gone"] == 3

    run(body)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_peers_that_are_gone_leave_nothing_behind() -> None:
    async def body(make: Make) -> None:
        one = make(ONE, limits=BusLimits(idle_s=0.2))
        peer = make(TWO, answers=True)
        one.bus.send(peer.address, call("first"))
        await until(lambda: one.inbox)
        await until(lambda: one.bus.counters.peers == 0, what="the idle connection to be closed")
        peer.bus.close()
        before = open_files()
        for generation in range(3):
            peers = {f"{generation}-{n}": make(f"{n:08x}", answers=True) for n in range(30)}

            def all_answered(peers: dict[str, Party] = peers) -> bool:
                missing = set(peers) - set(one.calls())
                for name in missing:  # again: on a busy machine 0.2 s may pass before an answer comes
                    one.bus.send(peers[name].address, call(name))
                return not missing

            await until(all_answered, every_s=0.15, what="30 answers")
            for other in peers.values():
                other.bus.close()
        await until(lambda: one.bus.counters.peers == 0, what="idle connections to be closed")
        await until(lambda: open_files() <= before, what="file descriptors to be given back")

    run(body)


def test_connections_are_bounded_and_the_least_recently_used_goes_first() -> None:
    async def body(make: Make) -> None:
        one = make(ONE, limits=BusLimits(max_peers=3))
        others = [make(f"{number:08x}", answers=True) for number in range(5)]
        for number, other in enumerate(others):
            one.bus.send(other.address, call(f"{number}"))
            await until(lambda: len(one.inbox) == number + 1)  # noqa: B023
        assert (one.bus.counters.peers, one.bus.counters.evicted) == (3, 2)
        one.bus.send(others[0].address, call("again"))  # was evicted: connects anew, under a new name
        await until(lambda: len(one.inbox) == 6)

    run(body)


def test_a_peer_that_does_not_keep_up_costs_a_bounded_queue() -> None:
    async def body(make: Make) -> None:
        one = make(ONE, limits=BusLimits(queue_messages=10))
        nobody = f"tcp://127.0.0.1:{free_port()}/{TWO}"
        for number in range(100):
            one.bus.send(nobody, call(f"{number}"))
        assert one.bus.counters.sent["RackStatusCall"] <= 10
        assert one.bus.counters.dropped["full"] >= 90

    run(body)


def test_a_flood_does_not_starve_the_loop() -> None:
    async def body(make: Make) -> None:
        one, two = make(ONE), make(TWO)
        at_turn = [0]

        def turn() -> None:
            at_turn.append(len(two.inbox))
            if at_turn[-1] < 900:
                asyncio.get_running_loop().call_soon(turn)

        for number in range(900):
            one.bus.send(two.address, call(f"{number}"))
        turn()
        await until(lambda: at_turn[-1] == 900, every_s=0)
        between_turns = max(later - earlier for earlier, later in itertools.pairwise(at_turn))
        assert between_turns <= 2 * QUICK.drain_messages  # one drain that was scheduled, one for the wake-up

    run(body)


def test_a_port_in_use_is_a_clear_error() -> None:
    async def body(make: Make) -> None:
        one = make(ONE)
        with pytest.raises(PortInUse, match=rf"{one.endpoint} is in use.*stop it or listen on another port"):
            make(TWO, one.endpoint)

    run(body)


@pytest.mark.parametrize(
    ("bind", "reason"),
    [
        ("tcp://127.0.0.1", "expected tcp://host:port"),
        ("ipc:///tmp/x", "expected tcp://host:port"),
        ("tcp://127.0.0.1:99999", "expected tcp://host:port"),
        ("tcp://0.0.0.0:0", "which host to advertise"),
        ("tcp://192.0.2.1:0", "an address of this host"),
    ],
)
def test_what_cannot_be_listened_on_is_a_clear_error(bind: str, reason: str) -> None:
    async def body(make: Make) -> None:
        with pytest.raises(BindFailed, match=reason):
            make(ONE, bind)

    run(body)


def test_a_wildcard_with_a_host_to_advertise() -> None:
    async def body(make: Make) -> None:
        one, two = make(ONE, "tcp://0.0.0.0:0", host="127.0.0.1", answers=True), make(TWO)
        two.bus.send(one.address, call("q"))
        await until(lambda: two.inbox)

    run(body)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "tcp://127.0.0.1:1",
        "ipc:///tmp/x/aaaaaaaa",
        "inproc://x/aaaaaaaa",
        "tcp://127.0.0.1:70000/aaaaaaaa",
        "tcp://127.0.0.1:*/aaaaaaaa",
        "tcp://127.0.0.1:80;127.0.0.1:81/aaaaaaaa",
        "tcp://127.0.0.1:80/not-a-guid",
    ],
)
def test_a_malformed_address_from_a_peer_is_counted(address: str) -> None:
    async def body(make: Make) -> None:
        one = make(ONE)
        one.bus.send(address, call("q"))
        assert one.bus.counters.dropped == {"address": 1}
        assert one.bus.counters.peers == 0

    run(body)


def test_a_message_larger_than_any_peer_takes_is_counted() -> None:
    async def body(make: Make) -> None:
        one = make(ONE)
        one.bus.send(f"tcp://127.0.0.1:9/{TWO}", call("x" * MAX_FRAME_BYTES))
        assert one.bus.counters.dropped == {"large": 1}

    run(body)


# --- strangers -----------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def dealer(endpoint: str, routing_id: bytes = b"") -> zmq.Socket[bytes]:
    stranger = zmq.Context.instance().socket(zmq.DEALER)
    stranger.setsockopt(zmq.LINGER, 0)
    if routing_id:
        stranger.setsockopt(zmq.ROUTING_ID, routing_id)
    stranger.connect(endpoint)
    return stranger


def heartbeat() -> Heartbeat:
    return Heartbeat("n1", ONE, Resources(1, 1, 1), False, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("frames", "cause"),
    [
        ([b"\xc1 no msgpack"], "msgpack"),
        ([b""], "empty"),
        ([b"", Codec().encode(call("q"), TWO)], "parts"),
        ([Codec().encode(call("q"), TWO)] * 3, "parts"),
        ([Codec().encode(call("q"), TWO)[:-1]], "msgpack"),
        ([Codec().encode(call("q"), TWO) + b"x"], "msgpack"),
        ([b"\x94\x09\x00\xa0\x80"], "version"),
        ([b"\x94\x01\x00\xa0\x80"], "type"),
    ],
)
def test_frames_that_are_no_messages_are_counted_and_change_nothing(frames: list[bytes], cause: str) -> None:
    async def body(make: Make) -> None:
        two = make(TWO, answers=True)
        stranger = dealer(two.endpoint)
        try:
            stranger.send_multipart(frames)
            stranger.send(Codec().encode(call("good"), ""))
            await until(lambda: two.inbox, what="the good message behind the bad one")
        finally:
            stranger.close()
        assert two.bus.counters.bad == {cause: 1}
        assert two.calls() == ["good"]

    run(body)


def test_without_the_clusters_key_nothing_is_read() -> None:
    async def body(make: Make) -> None:
        key = bytes(range(32))
        one, two, outsider = make(ONE, key=key), make(TWO, key=key), make(THREE)
        outsider.bus.send(two.address, call("outside"))
        await until(lambda: two.bus.counters.bad["seal"] == 1)
        one.bus.send(two.address, call("inside"))
        await until(lambda: two.calls() == ["inside"])

    run(body)


def test_a_message_for_another_incarnation_is_stale() -> None:
    async def body(make: Make) -> None:
        one, two = make(ONE), make(TWO)
        one.bus.send(f"{two.endpoint}/{THREE}", heartbeat())
        one.bus.send(two.address, LeaderHello("r1", "compute", 1, one.address, 1000))
        await until(lambda: two.inbox)
        assert two.bus.counters.stale == 1
        assert [type(message) for _, message in two.inbox] == [LeaderHello]

    run(body)


def test_random_bytes_and_huge_frames_on_the_port_do_no_harm() -> None:
    seed = 20_010
    rng = random.Random(seed)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
    ready = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    huge = b"\x02" + (1 << 62).to_bytes(8, "big")
    spoken = [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        greeting[:20],
        greeting,
        greeting + ready + huge + b"x" * 4096,
        greeting + ready + b"\x02" + (MAX_FRAME_BYTES + 1).to_bytes(8, "big") + b"x" * 4096,
        *(rng.randbytes(rng.randrange(1, 4096)) for _ in range(20)),
        *(greeting + rng.randbytes(rng.randrange(1, 4096)) for _ in range(20)),
        *(greeting + ready + rng.randbytes(rng.randrange(1, 4096)) for _ in range(20)),
    ]

    async def body(make: Make) -> None:
        one, two = make(ONE), make(TWO, answers=True)
        host, port = two.endpoint.removeprefix("tcp://").split(":")
        for data in spoken:
            with socket.create_connection((host, int(port)), timeout=5) as plain:
                plain.sendall(data)
            await asyncio.sleep(0)
        one.bus.send(two.address, call("still there"))
        await until(lambda: one.calls() == ["still there"], what=f"an answer after the strangers (seed {seed})")
        assert two.calls() == ["still there"]

    run(body)


def test_a_connection_that_speaks_no_zeromq_is_replaced_when_an_agent_comes_up_there() -> None:
    async def body(make: Make) -> None:
        one = make(ONE)

        async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 100)
            writer.close()

        server = await asyncio.start_server(http, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        one.bus.send(f"tcp://127.0.0.1:{port}/{TWO}", call("lost"))
        await until(lambda: server.sockets)
        server.close()
        await server.wait_closed()
        two = make(TWO, f"tcp://127.0.0.1:{port}", answers=True)

        def reached() -> bool:
            one.bus.send(two.address, call("found"))
            return "found" in one.calls()

        await until(reached, every_s=0.05, what="the agent that took the port")

    run(body)


def test_a_connection_that_speaks_another_pattern_is_given_up_and_made_anew() -> None:
    """libzmq drops such a connection for good, with its name; the next send finds nobody there and connects again."""

    async def body(make: Make) -> None:
        one = make(ONE)
        publisher = zmq.Context.instance().socket(zmq.PUB)
        port = publisher.bind_to_random_port("tcp://127.0.0.1")
        for number in range(20):
            one.bus.send(f"tcp://127.0.0.1:{port}/{TWO}", call(f"{number}"))
            await asyncio.sleep(0.01)
        publisher.close(0)
        two: list[Party] = []

        def bound() -> bool:
            with suppress(PortInUse):  # libzmq closes in its own time
                two.append(make(TWO, f"tcp://127.0.0.1:{port}", answers=True))
            return bool(two)

        await until(bound)

        def reached() -> bool:
            one.bus.send(two[0].address, call("found"))
            return "found" in one.calls()

        await until(reached, every_s=0.05, what="the agent that took the port")
        assert one.bus.counters.peers == 1

    run(body)


def test_strangers_cannot_take_each_others_names() -> None:
    """Two dealers that announce one id: the second is ignored, the first still gets its answers."""

    async def body(make: Make) -> None:
        two = make(TWO, answers=True)
        first = dealer(two.endpoint, b"same")
        second = dealer(two.endpoint, b"same")
        try:
            first.send(Codec().encode(call("first"), ""))
            await until(lambda: two.calls() == ["first"])
            second.send(Codec().encode(call("second"), ""))
            first.send(Codec().encode(call("again"), ""))
            await until(lambda: two.calls() == ["first", "again"])
            assert await asyncio.to_thread(first.poll, 5_000)
        finally:
            first.close()
            second.close()

    run(body)
