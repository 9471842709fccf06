"""The floor under a request: a bare tree of ZeroMQ sockets that gathers one answer from every agent, and does no more.

    with Tree(racks=25, agents=40) as tree:
        tree.ask(repeat=30)                                  # seconds, each
        tree.cycles(clients=32, of_rack=2, for_s=10)         # a second

Theory of operation. The sockets and hops of a discussion without its protocol: a root asks one leader a rack, each
leader asks the agents of its rack in parallel, and answers when all have. Every party is one bound ROUTER, driven by
`add_reader` and drained, as those of the fabric are (fabric.runtime.bus); questions and answers are 200 bytes of
msgpack, made and read, but neither sealed nor checked. The parties of a rack share a process, as agents do that are
started several a process; the root has its own. Nothing is lost on loopback, so nobody waits for anybody in vain.

A cycle is what a deployment, made and deleted, sends: a question to every leader (the short discussion), then three to
some agents of each rack by way of its leader (reserve, confirm, stop), each when the one before is answered.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import msgpack
import zmq

PAYLOAD = "x" * 150
READY_WAIT_S = 60.0
ASK_WAIT_S = 30.0
ROUNDS = (False, True, True, True)
"""Of a cycle: whether the agents are asked."""
MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
NOBLOCK = int(zmq.NOBLOCK)


class Party:
    """One ROUTER for both directions."""

    def __init__(self, context: Any, heard: Callable[[bytes, dict[str, Any]], None]) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, 100_000)
        self.socket.setsockopt(zmq.RCVHWM, 100_000)
        port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        self.address = f"tcp://127.0.0.1:{port}"
        self.heard = heard
        self.loop = asyncio.get_running_loop()
        self.loop.add_reader(self.socket.FD, self.drain)
        self.due = False
        self.loop.call_soon(self.drain)

    def connect(self, address: str) -> bytes:
        name = os.urandom(16)
        self.socket.setsockopt(zmq.CONNECT_ROUTING_ID, name)
        self.socket.connect(address)
        return name

    def send(self, to: bytes, message: dict[str, Any]) -> None:
        self.socket.send(to, MORE)
        self.socket.send(msgpack.packb(message), NOBLOCK)
        if not self.due:
            self.due = True
            self.loop.call_soon(self.drain)

    def drain(self) -> None:
        self.due = False
        while True:
            try:
                name = self.socket.recv(NOBLOCK)
            except zmq.Again:
                return
            self.heard(name, msgpack.unpackb(self.socket.recv(NOBLOCK)))


def answer(agent: Party, name: bytes, message: dict[str, Any]) -> None:
    agent.send(name, {"call": message["call"], "p": PAYLOAD})


class Leader:
    def __init__(self, context: Any, agents: int) -> None:
        self.party = Party(context, self.heard)
        self.agents = [Party(context, lambda name, message: None) for _ in range(agents)]
        for agent in self.agents:
            agent.heard = partial(answer, agent)
        self.names = [self.party.connect(agent.address) for agent in self.agents]
        self.open: dict[int, tuple[bytes, int, list[str]]] = {}
        self.next = 0
        """Who is asked first when not all are."""

    def heard(self, name: bytes, message: dict[str, Any]) -> None:
        """`ask`: how many agents to ask, each time others."""
        call, asked = message["call"], message.get("ask")
        if asked is None:
            name, asked, answers = self.open[call]
            answers.append(message["p"])
        else:
            self.open[call] = name, asked, (answers := [])
            for place in range(self.next, self.next + asked):
                self.party.send(self.names[place % len(self.names)], {"call": call, "p": PAYLOAD})
            self.next = (self.next + asked) % len(self.names)
        if len(answers) == asked:
            del self.open[call]
            self.party.send(name, {"call": call, "answers": answers})


def rack(agents: int, pipe: Connection) -> None:
    """In a process of its own, until the other end closes."""

    async def main() -> None:
        context: Any = zmq.Context()
        context.setsockopt(zmq.MAX_SOCKETS, 4 * agents + 64)
        leader = Leader(context, agents)
        pipe.send(leader.party.address)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(pipe.fileno(), ended.set)
        await ended.wait()
        os._exit(0)

    asyncio.run(main())


class Tree:
    """Raises TimeoutError when it does not come up."""

    def __init__(self, racks: int, agents: int) -> None:
        self.racks, self.agents = racks, agents
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("fork")
        for _ in range(self.racks):
            ours, theirs = context.Pipe()
            process = context.Process(target=rack, args=(self.agents, theirs), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)
        self.addresses = []
        for pipe in self.pipes:
            if not pipe.poll(READY_WAIT_S):
                self.__exit__(None, None, None)
                raise TimeoutError(f"a rack of the bare tree was not up after {READY_WAIT_S:g} s")
            self.addresses.append(pipe.recv())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(5)
            if process.is_alive():
                process.kill()

    def ask(self, repeat: int) -> list[float]:
        """Seconds of each of `repeat` gathers over all agents, one after the other, after two that do not count."""
        return asyncio.run(self._ask(repeat + 2))[2:]

    def cycles(self, clients: int, of_rack: int, for_s: float) -> float:
        """How many cycles a second end that `clients` begin one after the other, each over `of_rack` agents a rack."""
        return asyncio.run(self._cycles(clients, of_rack, for_s))

    async def _ask(self, repeat: int) -> list[float]:
        took: list[float] = []
        with Root(self.addresses) as root:
            for _ in range(repeat):
                began = time.perf_counter()
                await root.gather(self.agents)
                took.append(time.perf_counter() - began)
        return took

    async def _cycles(self, clients: int, of_rack: int, for_s: float) -> float:
        ended = 0
        with Root(self.addresses) as root:
            await root.gather(self.agents)
            began = time.perf_counter()

            async def client() -> None:
                nonlocal ended
                while time.perf_counter() < began + for_s:
                    for with_agents in ROUNDS:
                        await root.gather(of_rack if with_agents else 0)
                    ended += 1

            await asyncio.gather(*(client() for _ in range(clients)))
            return ended / (time.perf_counter() - began)


class Root:
    """Who asks all leaders. Made on a loop."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.context: Any = zmq.Context()
        self.party = Party(self.context, self.heard)
        self.names = [self.party.connect(address) for address in addresses]
        self.open: dict[int, tuple[asyncio.Future[None], int, list[int]]] = {}
        self.calls = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.party.loop.remove_reader(self.party.socket.FD)
        self.party.socket.close(0)
        self.context.term()

    async def gather(self, agents: int) -> None:
        """Of each rack so many agents. Raises TimeoutError."""
        call = next(self.calls)
        answered: asyncio.Future[None] = self.party.loop.create_future()
        self.open[call] = answered, agents, []
        for name in self.names:
            self.party.send(name, {"call": call, "ask": agents, "p": PAYLOAD})
        async with asyncio.timeout(ASK_WAIT_S):
            await answered

    def heard(self, _name: bytes, message: dict[str, Any]) -> None:
        answered, wanted, racks = self.open[message["call"]]
        racks.append(len(message["answers"]))
        assert racks[-1] == wanted
        if len(racks) == len(self.names):
            del self.open[message["call"]]
            answered.set_result(None)


def main() -> None:
    for racks, agents in ((1, 40), (12, 40), (25, 40)):
        with Tree(racks, agents) as tree:
            took = tree.ask(30)
        print(f"{racks * agents:5} agents: {1000 * statistics.median(took):.1f} ms")


if __name__ == "__main__":
    main()
