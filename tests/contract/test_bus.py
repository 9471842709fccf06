"""The bus where it is more than any bus (test_any_bus.py): on real sockets, beside processes, files and strangers."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import zmq

from fabric.runtime.bus import BindFailed, BusLimits, PortInUse
from fabric.wire import MAX_FRAME_BYTES, Codec
from tests.contract.parties import QUICK, Party, ZmqStranger, call, zmq_parties
from tests.unit.runtime.until import until

ONE = "aaaaaaaa"
TWO = "bbbbbbbb"
THREE = "cccccccc"
Make = Callable[..., Party]


def run(body: Callable[[Make], Awaitable[None]]) -> None:
    async def main() -> None:
        async with zmq_parties() as parties:
            await body(parties.make)

    asyncio.run(main())


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


# --- strangers -----------------------------------------------------------------------------------------------------


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
        context = zmq.Context.instance()
        first = ZmqStranger(context, two.endpoint, b"same")
        second = ZmqStranger(context, two.endpoint, b"same")
        try:
            first.send(Codec().encode(call("first"), ""))
            await until(lambda: two.calls() == ["first"])
            second.send(Codec().encode(call("second"), ""))
            first.send(Codec().encode(call("again"), ""))
            await until(lambda: two.calls() == ["first", "again"])
            await until(lambda: len(first.heard()) == 2)
        finally:
            first.socket.close(0)
            second.socket.close(0)

    run(body)
