"""`--network proxy`: everybody at a loopback address of their own, and a TCP proxy before it that obeys the rules.

    127.<even>.x.y     where an endpoint listens, and only the proxy connects
    127.<odd>.x.y      where the proxy listens for it, at the same port: the address that everybody is told

Theory of operation. Loopback is 127.0.0.0/8, so a fabric takes a pair of /16 of it that no other fabric has (the first
that can be claimed, tried in random order), and within it every endpoint has the well-known ports. Who connects is
known by its process; see fabric.net.proxy, also for what a proxy can't imitate. One more thing it can't: ZooKeeper
servers reach each other straight, as they tell each other their addresses; rules between them are refused.
"""

from __future__ import annotations

import asyncio
import random
import socket

from fabric.local.network import (
    BUS_PORT,
    DATA_PORT,
    HOST,
    Address,
    Helper,
    Network,
    NetworkError,
    Reach,
    checked,
    more_files,
    zookeeper_names,
)
from fabric.local.state import LocalSpec
from fabric.net.orders import Giver, NotTaken, Taker
from fabric.net.proxy import Proxy, Route
from fabric.net.rules import API, Rule

CLAIM_PORT = 7999
PAIRS = range(32, 63)
"""127.64.0.0/16 with 127.65.0.0/16, to 127.124 with 127.125."""
PROXY = "proxy"
BACKLOG = 512


class ProxiedNetwork(Network):
    def __init__(self, spec: LocalSpec) -> None:
        super().__init__(spec)
        self.pair = 0
        self.numbers = {name: number for number, name in enumerate(self.names.endpoints, start=1)}
        self.routes: list[Route] = []
        self.pids: dict[str, int] = {}
        self.orders = Giver()
        self._sockets: list[socket.socket] = []

    def prepare(self) -> None:
        more_files()
        for pair in random.sample(PAIRS, len(PAIRS)):
            try:
                self._listen(f"127.{2 * pair}.0.1", CLAIM_PORT, reuse=False)
            except OSError:
                continue
            self.pair = pair
            break
        else:
            raise NetworkError(f"expected a free pair of networks in 127.0.0.0/8, found all {len(PAIRS)} taken")
        try:
            self.open(API, BUS_PORT)
            for node in self.names.groups["nodes"]:
                self.open(node, BUS_PORT)
                self.open(node, DATA_PORT)
        except OSError as error:
            raise NetworkError(f"the proxy can't listen on loopback: {error.strerror}") from None

    def open(self, endpoint: str, port: int, outside: Address = (HOST, 0)) -> Reach:
        host, told = self._host(endpoint, 0), self._host(endpoint, 1)
        listener = self._listen(told, port)
        self.routes.append(Route(listener.fileno(), endpoint, host, port))
        if outside == (HOST, 0):
            return Reach((host, port), (told, port), (told, port))
        wanted = self._listen(*outside)
        self.routes.append(Route(wanted.fileno(), endpoint, host, port))
        return Reach((host, port), (told, port), (outside[0], wanted.getsockname()[1]))

    def _host(self, endpoint: str, side: int) -> str:
        number = self.numbers[endpoint]
        return f"127.{2 * self.pair + side}.{number >> 8}.{number & 255}"

    def _listen(self, host: str, port: int, reuse: bool = True) -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._sockets.append(made)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
        made.bind((host, port))
        made.listen(BACKLOG)
        return made

    def bus(self, endpoint: str) -> tuple[str, str, str | None]:
        host = self._host(endpoint, 0)
        return f"{host}:{BUS_PORT}", f"{host}:{DATA_PORT}", self._host(endpoint, 1)

    def forked(self, endpoint: str, pid: int) -> None:
        if endpoint in self.numbers:
            self.pids[endpoint] = pid
            self.orders.know(dict(self.pids))

    def helpers(self) -> tuple[Helper, ...]:
        return (Helper(PROXY, self._proxy, (*(route.listener for route in self.routes), self.orders.theirs)),)

    def _proxy(self) -> int:
        asyncio.run(Proxy(self.names, self.routes, Taker(self.orders.theirs, self.orders.now)).run())
        return 0

    def close(self) -> None:
        self.orders.close()
        for one in self._sockets:
            one.close()

    def replace(self, rules: tuple[Rule, ...]) -> None:
        checked(self.names, rules)
        servers = zookeeper_names(self.spec.zookeepers)
        if any(source in servers and target in servers for source, target in self.names.table(rules)):
            raise NetworkError(
                "expected no rule between two ZooKeeper servers, which reach each other without the proxy; "
                "`--network namespaces` can do that"
            )
        self.rules = rules
        try:
            self.orders.give(rules)
        except NotTaken as error:
            raise NetworkError(str(error)) from None
