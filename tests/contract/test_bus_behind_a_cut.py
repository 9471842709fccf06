"""The bus on a network that is cut, and well again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from fabric.net.namespaces import why_not
from fabric.net.rules import cut
from fabric.runtime.bus import Bus, BusLimits
from fabric.runtime.sockets import SocketContext
from fabric.wire import Codec
from tests.contract.network_world import World, world
from tests.contract.parties import Party, call
from tests.unit.runtime.until import until

A, B = "r1c01", "r2c01"
GUIDS = {A: "aaaaaaaa", B: "bbbbbbbb"}
LIMITS = BusLimits(unheard_ms=500, connect_timeout_ms=500, reconnect_min_ms=20, reconnect_max_ms=100)


@pytest.fixture
def net(tmp_path: Path) -> Iterator[World]:
    if reason := why_not():
        pytest.skip(reason)
    with world("namespaces", tmp_path) as made:
        yield made


@contextlib.contextmanager
def party(net: World, name: str) -> Iterator[Party]:
    """A bus in the namespace of `name`: libzmq's thread, which makes its sockets, is begun there."""
    with net.network.inside(name):
        context: SocketContext = zmq.Context()
        where = f"tcp://{net.parties[name].address[0]}:0"
        made = Party(lambda take: Bus(context, Codec(), GUIDS[name], where, on_message=take, limits=LIMITS))
    try:
        yield made
    finally:
        made.bus.close()
        context.term()


def test_a_connection_that_fell_silent_is_given_up_and_the_next_one_carries(net: World) -> None:
    """TCP alone would try again ever less often, and be silent for as long after the cut as the cut was."""

    async def main() -> None:
        with party(net, A) as one, party(net, B) as other:
            one.bus.send(other.address, call("before"))
            await until(lambda: other.calls() == ["before"])
            net.rules(*cut([A], [B]))
            one.bus.send(other.address, call("meanwhile"))
            await until(lambda: one.bus.counters.lost == 1)
            net.rules()
            one.bus.send(other.address, call("after"))
            await until(lambda: other.calls() == ["before", "after"])

    asyncio.run(main())
