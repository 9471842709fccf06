"""How the processes of a local fabric reach each other: `--network host`, and what the other two have in common.

    host         everybody at 127.0.0.1, straight. Nothing can be wrong with it.
    namespaces   namespaced.py: each node, ZooKeeper server and the API in a network namespace of its own
    proxy        proxied.py: everybody on loopback, a TCP proxy before every address

Theory of operation. The keeper opens every address once, before it forks who listens there, and learns from where each
is reached (`Reach`). Each fork happens `inside` the endpoint's network. Whoever runs the fabric (the commands, the
keeper's eyes, tests) stays in this machine's own network and is the endpoint "operator"; boot stubs, repository and
initiators of `deploy.local` are on its side too.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fabric.local.ports import Ports
from fabric.local.state import LocalSpec, nodes_of
from fabric.net.rules import API, OPERATOR, BadRule, Names, Rule

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

HOST = "127.0.0.1"
ZOOKEEPER = "zookeeper"
BUS_PORT, DATA_PORT, API_PORT = 7000, 7001, 8420
"""Where an endpoint listens that has an address of its own."""

Address = tuple[str, int]


class NetworkError(Exception):
    """This network can't be had, or can't do what was asked for, and why."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Where an endpoint `listen`s, and where it is reached: by its `peers`, and from `outside` by whoever runs the
    fabric."""

    listen: Address
    peers: Address
    outside: Address


@dataclass(frozen=True, slots=True)
class Helper:
    """A process that the network needs. `keep`: the descriptors that it inherits."""

    name: str
    body: Callable[[], int]
    keep: tuple[int, ...]


class Network:
    """`--network host`, and the port that the others implement."""

    def __init__(self, spec: LocalSpec) -> None:
        self.spec = spec
        self.names = names_of(spec)
        self.rules: tuple[Rule, ...] = ()
        self._ports = Ports()

    def prepare(self) -> None:
        """Make what is needed. Raises NetworkError."""

    def open(self, endpoint: str, port: int, outside: Address = (HOST, 0)) -> Reach:
        """An address for `endpoint`; at `port` where it has a network of its own. `outside`: where it shall be reached
        from there; port 0: any. Raises OSError when somebody listens there."""
        found = (outside[0], self._ports.hold(*outside))
        return Reach(found, found, found)

    def bus(self, endpoint: str) -> tuple[str, str, str | None]:
        """What an agent, or the API, is configured with to speak to its peers: listen, data_listen, advertise."""
        return f"{HOST}:0", f"{HOST}:0", None

    def inside(self, endpoint: str) -> AbstractContextManager[None]:
        """Who is forked in the block is in the network of `endpoint`. Raises OSError."""
        return contextlib.nullcontext()

    def forked(self, endpoint: str, pid: int) -> None:
        """Whose process this is."""

    def helpers(self) -> tuple[Helper, ...]:
        """To be forked once every address is open."""
        return ()

    def close(self) -> None:
        """Give all of it back; the keeper's end does as much."""
        self._ports.close()

    def replace(self, rules: tuple[Rule, ...]) -> None:
        """These rules hold from now on, and no others. Raises NetworkError."""
        if rules:
            raise NetworkError("expected `--network namespaces` or `--network proxy`, found a fabric without either")


def names_of(spec: LocalSpec) -> Names:
    """Racks are groups by their names; "zookeeper" is all of its servers."""
    nodes = nodes_of(spec)
    servers = zookeeper_names(spec.zookeepers)
    groups: dict[str, list[str]] = {"nodes": [node.name for node in nodes]}
    if servers != [ZOOKEEPER]:
        groups[ZOOKEEPER] = servers
    for node in nodes:
        groups.setdefault(node.rack, []).append(node.name)
    return Names((OPERATOR, API, *servers, *(node.name for node in nodes)), groups)


def zookeeper_names(size: int) -> list[str]:
    return [ZOOKEEPER] if size == 1 else [f"{ZOOKEEPER}-{number}" for number in range(1, size + 1)]


def more_files() -> None:
    """For the keeper, and the network's process that it forks: as many open files as it may have. Each endpoint is two
    for the one, each connection two for the other."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def checked(names: Names, rules: tuple[Rule, ...]) -> None:
    """Raises NetworkError for rules that speak of who is not there."""
    try:
        names.table(rules)
    except BadRule as error:
        raise NetworkError(str(error)) from None


def network_of(spec: LocalSpec) -> Network:
    """Nothing is made yet. Only what is used is imported: most fabrics have no faulty network."""
    if spec.network == "namespaces":
        from fabric.local.namespaced import NamespacedNetwork

        return NamespacedNetwork(spec)
    if spec.network == "proxy":
        from fabric.local.proxied import ProxiedNetwork

        return ProxiedNetwork(spec)
    return Network(spec)
