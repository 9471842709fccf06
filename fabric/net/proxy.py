"""A TCP proxy before every address, which obeys the rules: for whoever has no right to make namespaces. It is also what
reaches into namespaces from outside.

Theory of operation. Each `Route` is a listening socket, who stands behind it, and where that one really listens; all
others are told the address of the route. Who has connected is known by the process at the other end (procs.py), as the
keeper says whose processes are whose; anybody else is the operator. So nobody has to be told that there is a proxy.

Each direction of a connection is a pump (pump.py). A proxy has streams, not packets, and can only imitate: what is lost
is held as long as TCP would take to send it again; nothing passes while a rule loses all; a connection is not made
while either direction loses all, though the one who connects sees it made. New rules hold at once, also for what is
held.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from fabric.net.orders import Taker
from fabric.net.pacing import Lane
from fabric.net.procs import Ends, owners
from fabric.net.pump import pump
from fabric.net.rules import HEALTHY, OPERATOR, Names, Table, Verdict

RESENT_AFTER_S, RESENT_MOST_S = 0.2, 3.2
RESENT_TRIES = 8
CONNECT_WAIT_S = 5.0
LOOK_AFTER_S = 0.005
"""Whose connections there are is looked up for all that were made within so long."""
LOOK_AGAIN_S = 0.2
"""For whoever is nobody that is known: a process that was forked just now may connect before its id is told."""
RETRY_S = 0.2
MAX_CONNECTIONS = 4_000
log = logging.getLogger("fabric.net")


@dataclass(frozen=True, slots=True)
class Route:
    """`listener`: the descriptor of a socket that listens. `target`: who is behind it, at `host` and `port`. `source`:
    who comes this way, when that is always the same."""

    listener: int
    target: str
    host: str
    port: int
    source: str = ""


class Weather:
    """The rules as they are now, for all pumps of one process."""

    def __init__(self, names: Names, chance: Random | None = None) -> None:
        self._names = names
        self._chance = chance or Random()
        self._table: Table = {}
        self._lanes: defaultdict[tuple[str, str], Lane] = defaultdict(Lane)
        self._changed = asyncio.Event()
        self.generation = 0
        """Another number for each set of rules."""

    def obey(self, orders: Taker) -> None:
        self._table = self._names.table(orders.now.rules)
        self._lanes.clear()
        self.generation += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, at_most_s: float | None = None) -> None:
        """Until the rules change, or so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._changed.wait()

    def verdict(self, source: str, target: str) -> Verdict:
        return self._table.get((source, target), HEALTHY)

    def cut(self, source: str, target: str) -> bool:
        return self.verdict(source, target).drop >= 1

    def late_s(self, source: str, target: str, size: int, now: float) -> float:
        """In how many seconds a piece arrives that is sent now, on a link that is not cut; what is lost is sent
        again."""
        verdict = self.verdict(source, target)
        if verdict.healthy:
            return 0.0
        lane, sent, again_s = self._lanes[source, target], now, RESENT_AFTER_S
        for _ in range(RESENT_TRIES):
            arrives = lane.send(verdict, size, sent, self._chance)
            if arrives is not None:
                return arrives - now
            sent += again_s
            again_s = min(RESENT_MOST_S, 2 * again_s)
        return sent - now


class Proxy:
    def __init__(self, names: Names, routes: Sequence[Route], orders: Taker) -> None:
        self._routes, self._orders = routes, orders
        self._weather = Weather(names)
        self._weather.obey(orders)
        self._running: set[asyncio.Task[None]] = set()
        self._asked: dict[Ends, asyncio.Future[str]] = {}

    async def run(self) -> None:
        """For ever."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._orders.fileno(), self._hear)
        for route in self._routes:
            listener = socket.socket(fileno=route.listener)
            listener.setblocking(False)
            self._keep(loop.create_task(self._serve(route, listener)))
        await asyncio.Event().wait()

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def _hear(self) -> None:
        rules = self._orders.now.rules
        if self._orders.take() and self._orders.now.rules != rules:
            self._weather.obey(self._orders)

    async def _serve(self, route: Route, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("a connection to %s could not be taken: %s", route.target, error)
                await asyncio.sleep(RETRY_S)
                continue
            if len(self._running) > MAX_CONNECTIONS:
                connection.close()
                continue
            self._keep(loop.create_task(self._join(route, connection)))

    async def _join(self, route: Route, near: socket.socket) -> None:
        """From the first byte to the last of one connection."""
        target, far = route.target, socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            near.setblocking(False)
            source = route.source or await self._from(near)
            while self._weather.cut(source, target) or self._weather.cut(target, source):
                await self._weather.changed()
            async with asyncio.timeout(CONNECT_WAIT_S):
                await asyncio.get_running_loop().sock_connect(far, (route.host, route.port))
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.gather(
                pump(self._weather, source, target, near, far), pump(self._weather, target, source, far, near)
            )
        except (OSError, TimeoutError):
            pass  # nobody is there, or the one who came has left: whoever is left learns it by the close
        finally:
            near.close()
            far.close()

    async def _from(self, near: socket.socket) -> str:
        """Who has connected."""
        loop = asyncio.get_running_loop()
        ends: Ends = (near.getpeername(), near.getsockname())
        if not self._asked:
            loop.call_later(LOOK_AFTER_S, self._look)
        return await self._asked.setdefault(ends, loop.create_future())

    def _look(self) -> None:
        self._hear()  # who has just been forked may have connected already
        asked, self._asked = self._asked, {}
        found = owners(asked, self._orders.now.pids)
        for ends in set(asked) & set(found):
            if not asked[ends].done():
                asked[ends].set_result(found[ends])
        unknown = {ends: future for ends, future in asked.items() if not future.done()}
        if unknown:
            asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._look_again, unknown)

    def _look_again(self, unknown: dict[Ends, asyncio.Future[str]]) -> None:
        self._hear()
        found = owners(unknown, self._orders.now.pids)
        for ends, future in unknown.items():
            if not future.done():
                future.set_result(found.get(ends, OPERATOR))
