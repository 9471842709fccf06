"""Agents that talk, for the suite of all busses: on ZeroMQ and real time, or on the simulated network and its own."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol, TypeVar

import zmq

from fabric.messages import AnyMessage, RackStatusCall, Submitted
from fabric.runtime.bus import Bus, BusLimits
from fabric.sim.clock import Clock
from fabric.sim.network import QUEUE_MESSAGES, Network, SimBus, Weather
from fabric.traffic import BusCounters, OnMessage
from fabric.wire import Codec
from tests.unit.runtime.until import until

T = TypeVar("T")
QUICK = BusLimits(reconnect_min_ms=20, reconnect_max_ms=100)


def call(name: str) -> RackStatusCall:
    return RackStatusCall(call=name)


def answer(name: str) -> Submitted:
    return Submitted(call=name, taken=True, reason="")


class AnyBus(Protocol):
    address: str
    counters: BusCounters

    def send(self, to: str, message: AnyMessage) -> None: ...

    def close(self) -> None: ...


class Party:
    """A bus and what it received; answers every RackStatusCall if it is told to."""

    def __init__(self, open_bus: Callable[[OnMessage], AnyBus], answers: bool = False) -> None:
        self.inbox: list[tuple[str, AnyMessage]] = []
        self.answers = answers
        self.bus = open_bus(self.take)
        self.address = self.bus.address
        self.endpoint = self.address.rpartition("/")[0]

    def take(self, sender: str, message: AnyMessage) -> None:
        self.inbox.append((sender, message))
        if self.answers and isinstance(message, RackStatusCall):
            self.bus.send(sender, answer(message.call))

    def calls(self) -> list[str]:
        return [message.call for _, message in self.inbox if isinstance(message, RackStatusCall | Submitted)]


class AnyStranger(Protocol):
    """Somebody who is connected to an agent's port."""

    def send(self, *parts: bytes) -> None:
        """One message, of so many parts."""

    def heard(self) -> list[bytes]:
        """What has come back so far."""


class Parties(Protocol):
    """A network and who is on it."""

    def make(
        self,
        guid: str,
        endpoint: str | None = None,
        *,
        answers: bool = False,
        key: bytes | None = None,
        queue_messages: int = QUEUE_MESSAGES,
    ) -> Party:
        """Somebody who listens at `endpoint`, or anywhere."""

    def free_endpoint(self) -> str:
        """Where nobody listens yet."""

    def stranger(self, endpoint: str) -> AnyStranger: ...

    async def until(self, probe: Callable[[], T], what: str = "") -> T:
        """Let time pass until `probe` answers something true, and return that; fails after 10 s of it."""


Meet = Callable[[], AbstractAsyncContextManager[Parties]]


# --- ZeroMQ -----------------------------------------------------------------------------------------------------------


class ZmqParties:
    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.made: list[Party] = []
        self.strangers: list[ZmqStranger] = []

    def make(
        self,
        guid: str,
        endpoint: str | None = None,
        *,
        answers: bool = False,
        key: bytes | None = None,
        queue_messages: int = QUEUE_MESSAGES,
        limits: BusLimits = QUICK,
        host: str | None = None,
    ) -> Party:
        if queue_messages != limits.queue_messages:
            limits = BusLimits(queue_messages=queue_messages)
        bind = endpoint or "tcp://127.0.0.1:0"

        def open_bus(on_message: OnMessage) -> Bus:
            return Bus(
                self.context, Codec(key), guid, bind, on_message=on_message, limits=limits, advertise_host=host
            )

        self.made.append(Party(open_bus, answers))
        return self.made[-1]

    def free_endpoint(self) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return f"tcp://127.0.0.1:{probe.getsockname()[1]}"

    def stranger(self, endpoint: str) -> ZmqStranger:
        self.strangers.append(ZmqStranger(self.context, endpoint))
        return self.strangers[-1]

    async def until(self, probe: Callable[[], T], what: str = "") -> T:
        return await until(probe, what=what)

    def close(self) -> None:
        for party in self.made:
            party.bus.close()
        for stranger in self.strangers:
            stranger.socket.close(0)
        self.context.term()


class ZmqStranger:
    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, routing_id: bytes = b"") -> None:
        self.socket = context.socket(zmq.DEALER)
        if routing_id:
            self.socket.setsockopt(zmq.ROUTING_ID, routing_id)
        self.socket.connect(endpoint)
        self._heard: list[bytes] = []

    def send(self, *parts: bytes) -> None:
        self.socket.send_multipart(parts)

    def heard(self) -> list[bytes]:
        while self.socket.poll(0):
            self._heard.append(self.socket.recv())
        return self._heard


@asynccontextmanager
async def zmq_parties() -> AsyncIterator[ZmqParties]:
    parties = ZmqParties()
    try:
        yield parties
    finally:
        parties.close()


# --- simulated --------------------------------------------------------------------------------------------------------


class SimParties:
    """Fair weather: nothing is lost, repeated or overtaken."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.network = Network(self.clock, Weather(random.Random(3)))
        self.ports = iter(range(40_000, 50_000))

    def make(
        self,
        guid: str,
        endpoint: str | None = None,
        *,
        answers: bool = False,
        key: bytes | None = None,
        queue_messages: int = QUEUE_MESSAGES,
    ) -> Party:
        bind = endpoint or self.free_endpoint()

        def open_bus(on_message: OnMessage) -> SimBus:
            return SimBus(
                self.network, Codec(key), guid, bind, on_message=on_message, queue_messages=queue_messages
            )

        return Party(open_bus, answers)

    def free_endpoint(self) -> str:
        return f"tcp://127.0.0.1:{next(self.ports)}"

    def stranger(self, endpoint: str) -> SimStranger:
        return SimStranger(self.network, endpoint)

    async def until(self, probe: Callable[[], T], what: str = "") -> T:
        deadline = self.clock.now + 10.0
        while not (found := probe()):
            assert self.clock.now < deadline, f"waited 10 s in vain for: {what or 'a condition'}"
            self.clock.run(self.clock.now + 0.01)
            await asyncio.sleep(0)
        return found


class SimStranger:
    def __init__(self, network: Network, endpoint: str) -> None:
        self._stranger = network.stranger(endpoint)

    def send(self, *parts: bytes) -> None:
        self._stranger.send(*parts)

    def heard(self) -> list[bytes]:
        return [frame for frame in self._stranger.heard if isinstance(frame, bytes)]


@asynccontextmanager
async def sim_parties() -> AsyncIterator[SimParties]:
    yield SimParties()
