"""The switch: carries packets from namespace to namespace, and obeys the rules. One thread, one process.

Theory of operation. The taps of all namespaces (namespaces.py) are read in turn; the address a packet goes to says to
which tap it is written, and the tap it came from says who sent it, whatever it claims. A pair without a verdict costs
one read, one look and one write. One with a verdict has a lane (pacing.py), which says when the packet arrives; until
then it waits in a heap. New rules begin with new lanes: what waits already arrives when it was to, and what is sent
from now on may overtake it, as after a change of route. TCP bears that.

What can't be delivered is lost, as on any network: a full queue at the receiver, more than MAX_HELD_BYTES on the way,
an address that nobody has.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import selectors
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address
from random import Random

from fabric.net.orders import Taker
from fabric.net.pacing import Lane
from fabric.net.rules import Names, Table

MAX_PACKET_BYTES = 65_535
MAX_HELD_BYTES = 64 << 20
BURST = 32
"""Packets from one tap before the others get their turn."""
HEADER_BYTES = 20
_TARGET = slice(16, 20)


class Switch:
    """`taps`: endpoint -> descriptor, and `addresses`: endpoint -> its address."""

    def __init__(
        self,
        names: Names,
        taps: Mapping[str, int],
        addresses: Mapping[str, IPv4Address],
        orders: Taker,
        clock: Callable[[], float] = time.monotonic,
        chance: Random | None = None,
    ) -> None:
        self._names, self._orders, self._clock = names, orders, clock
        self._chance = chance or Random()
        self._taps = dict(taps)
        self._who = {addresses[name].packed: name for name in taps}
        self._table: Table = {}
        self._lanes: defaultdict[tuple[str, str], Lane] = defaultdict(Lane)
        self._held: list[tuple[float, int, int, bytes]] = []
        self._held_bytes = self._count = 0
        self._selector = selectors.DefaultSelector()
        self._selector.register(orders, selectors.EVENT_READ, None)
        for name, tap in taps.items():
            self._selector.register(tap, selectors.EVENT_READ, name)
        self._obey()

    def run(self) -> None:
        """For ever: the process is killed when nobody needs it any more."""
        while True:
            self.turn()

    def close(self) -> None:
        self._selector.close()

    def turn(self, most_s: float | None = None) -> None:
        """Wait for something to do, at most so long, and do it."""
        if self._held:
            due_s = max(0.0, self._held[0][0] - self._clock())
            most_s = due_s if most_s is None else min(most_s, due_s)
        ready = self._selector.select(most_s)
        if any(key.data is None for key, _ in ready) and self._orders.take():
            self._obey()  # before any packet: it may have been sent after the rules were answered
        for key, _ in ready:
            if key.data is not None:
                self._read(key.data, key.fd)
        self._deliver()

    def _obey(self) -> None:
        self._table = self._names.table(self._orders.now.rules)
        self._lanes.clear()

    def _read(self, source: str, tap: int) -> None:
        for _ in range(BURST):
            try:
                packet = os.read(tap, MAX_PACKET_BYTES)
            except BlockingIOError:
                return
            if len(packet) < HEADER_BYTES or packet[0] >> 4 != 4:
                continue
            target = self._who.get(packet[_TARGET])
            if target is None:
                continue
            verdict = self._table.get((source, target))
            if verdict is None:
                _write(self._taps[target], packet)
                continue
            now = self._clock()
            arrives = self._lanes[source, target].send(verdict, len(packet), now, self._chance)
            if arrives is None or self._held_bytes + len(packet) > MAX_HELD_BYTES:
                continue
            self._count += 1
            self._held_bytes += len(packet)
            heapq.heappush(self._held, (arrives, self._count, self._taps[target], packet))

    def _deliver(self) -> None:
        now = self._clock()
        while self._held and self._held[0][0] <= now:
            _, _, tap, packet = heapq.heappop(self._held)
            self._held_bytes -= len(packet)
            _write(tap, packet)


def _write(tap: int, packet: bytes) -> None:
    with contextlib.suppress(OSError):  # it is full or down: the packet is lost, and TCP sends it again
        os.write(tap, packet)
