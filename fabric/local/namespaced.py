"""`--network namespaces`: each endpoint in a network namespace of its own, joined by a switch.

    this machine's network          relay listens at 127.0.0.1, for the API and each ZooKeeper server
     └─ relay ── "operator" ──┐
        "api" ────────────────┤
        "zookeeper-1" … ──────┼──── switch: obeys the rules
        "r1c01" … ────────────┘

Theory of operation. The keeper makes all namespaces before it forks anybody and holds them by descriptors, so whoever
is started again finds the same network, and the switch too may die and come back. The relay has sockets of two
networks: it was given those that listen in this machine's, and makes its own in the operator's namespace. So rules
about "operator" hold for whoever looks from this machine, and no address of a namespace is seen outside.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import AbstractContextManager, nullcontext
from ipaddress import IPv4Interface, IPv4Network

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
)
from fabric.local.state import LocalSpec
from fabric.net.namespaces import Namespace, NoRight, entered, make
from fabric.net.orders import Giver, NotTaken, Order, Taker
from fabric.net.proxy import Proxy, Route
from fabric.net.rules import OPERATOR, Rule
from fabric.net.switch import Switch

WITHIN = IPv4Network("10.91.0.0/16")
"""Addresses that mean something only in the namespaces."""
RELAY, SWITCH = "relay", "switch"
BACKLOG = 512


class NamespacedNetwork(Network):
    def __init__(self, spec: LocalSpec) -> None:
        super().__init__(spec)
        self.interfaces = {
            name: IPv4Interface(f"{WITHIN[number]}/{WITHIN.prefixlen}")
            for number, name in enumerate(self.names.endpoints, start=1)
        }
        self.namespaces: dict[str, Namespace] = {}
        self.routes: list[Route] = []
        self._listeners: list[socket.socket] = []
        self.to_switch, self.to_relay = Giver(), Giver()

    def prepare(self) -> None:
        more_files()
        try:
            for name, interface in self.interfaces.items():
                self.namespaces[name] = make(interface)
        except NoRight as error:
            raise NetworkError(str(error)) from None

    def open(self, endpoint: str, port: int, outside: Address = (HOST, 0)) -> Reach:
        listener = socket.socket(socket.AF_INET6 if ":" in outside[0] else socket.AF_INET)
        self._listeners.append(listener)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(outside)
        listener.listen(BACKLOG)
        host = str(self.interfaces[endpoint].ip)
        self.routes.append(Route(listener.fileno(), endpoint, host, port, source=OPERATOR))
        return Reach((host, port), (host, port), (outside[0], listener.getsockname()[1]))

    def bus(self, endpoint: str) -> tuple[str, str, str | None]:
        host = self.interfaces[endpoint].ip
        return f"{host}:{BUS_PORT}", f"{host}:{DATA_PORT}", None

    def inside(self, endpoint: str) -> AbstractContextManager[None]:
        if endpoint == RELAY:
            endpoint = OPERATOR
        namespace = self.namespaces.get(endpoint)
        return entered(namespace.place) if namespace else nullcontext()

    def helpers(self) -> tuple[Helper, ...]:
        taps = tuple(namespace.tap for namespace in self.namespaces.values())
        listeners = tuple(route.listener for route in self.routes)
        return (
            Helper(SWITCH, self._switch, (*taps, self.to_switch.theirs)),
            Helper(RELAY, self._relay, (*listeners, self.to_relay.theirs)),
        )

    def _switch(self) -> int:
        taps = {name: namespace.tap for name, namespace in self.namespaces.items()}
        addresses = {name: interface.ip for name, interface in self.interfaces.items()}
        Switch(self.names, taps, addresses, Taker(self.to_switch.theirs, self.to_switch.now)).run()
        return 0

    def _relay(self) -> int:
        """The proxy, with no rules: those are for the switch."""
        asyncio.run(Proxy(self.names, self.routes, Taker(self.to_relay.theirs, Order())).run())
        return 0

    def close(self) -> None:
        for namespace in self.namespaces.values():
            namespace.close()
        for orders in (self.to_switch, self.to_relay):
            orders.close()
        for listener in self._listeners:
            listener.close()

    def replace(self, rules: tuple[Rule, ...]) -> None:
        checked(self.names, rules)
        self.rules = rules
        try:
            self.to_switch.give(rules)
        except NotTaken as error:
            raise NetworkError(str(error)) from None
