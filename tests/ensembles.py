"""Ensembles of three real ZooKeeper servers that a test may hurt: as child processes, and as containers.

A test written against `Servers` runs on either. Containers share this machine's network (`network_mode="host"`), as the
child processes do: then the servers reach each other, and tests reach them, at 127.0.0.1 without any bridge. The image
is the official one, or FABRIC_ZK_IMAGE; it is configured by the official image's variables alone.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from tests.waiting import wait_until
from tests.zookeeper import LOCAL, installation
from zk.ensemble import Ensemble
from zk.server import Server, ask_status, free_ports

IMAGE = os.environ.get("FABRIC_ZK_IMAGE", "zookeeper:3.9")
SIZE = 3
START_S = 90.0
"""For all servers to serve: containers on a busy machine take their time."""
STOP_S = 10


class Servers(Protocol):
    """Servers are known by name. Whoever starts or resumes them returns when they serve."""

    @property
    def hosts(self) -> str:
        """The connect string with all of them."""

    @property
    def names(self) -> Sequence[str]: ...

    def leader(self) -> str:
        """Waits until one leads."""

    def kill(self, name: str) -> None:
        """As a crash would: its data stay."""

    def restart(self, name: str) -> None:
        """End it in order if it runs, and start it with its data. It needs a majority to serve."""

    def start_all(self) -> None:
        """Those that are dead."""

    def pause(self, name: str) -> None:
        """It holds its connections, and says nothing."""

    def resume(self, name: str) -> None: ...


class ProcessServers:
    def __init__(self, ensemble: Ensemble) -> None:
        self._ensemble = ensemble
        self.names = tuple(str(number) for number in range(1, len(ensemble.servers) + 1))
        self._paused: set[str] = set()

    @property
    def hosts(self) -> str:
        return self._ensemble.hosts

    def _server(self, name: str) -> Server:
        return self._ensemble.servers[int(name) - 1]

    def leader(self) -> str:
        def probe() -> str:
            awake = (name for name in self.names if self._server(name).pid and name not in self._paused)
            return next((name for name in awake if _leads(self._server(name).port)), "")

        return wait_until(probe, START_S, "a leader")

    def kill(self, name: str) -> None:
        self._server(name).kill()

    def restart(self, name: str) -> None:
        self._server(name).stop()
        self._server(name).start()

    def start_all(self) -> None:
        self._ensemble.start()

    def pause(self, name: str) -> None:
        self._paused.add(name)
        self._server(name).pause()

    def resume(self, name: str) -> None:
        self._server(name).resume()
        self._paused.discard(name)
        self._server(name).wait_ready()


class ContainerServers:
    """`containers`: of the docker library, by name, with the port that each serves clients at."""

    def __init__(self, containers: dict[str, tuple[Any, int]]) -> None:
        self._containers = containers
        self.names = tuple(containers)

    @property
    def hosts(self) -> str:
        return ",".join(f"{LOCAL}:{port}" for _, port in self._containers.values())

    def leader(self) -> str:
        def probe() -> str:
            running = [(name, port) for name, (_, port) in self._containers.items() if self._state(name) == "running"]
            return next((name for name, port in running if _leads(port)), "")

        return wait_until(probe, START_S, "a leader")

    def _state(self, name: str) -> str:
        container, _ = self._containers[name]
        container.reload()
        return str(container.status)

    def kill(self, name: str) -> None:
        self._containers[name][0].kill()
        wait_until(lambda: self._state(name) == "exited", what=f"the end of container {name}")

    def restart(self, name: str) -> None:
        self._containers[name][0].restart(timeout=STOP_S)
        self._serves(name)

    def start_all(self) -> None:
        for name, (container, _) in self._containers.items():
            if self._state(name) != "running":
                container.start()
        for name in self.names:
            self._serves(name)

    def pause(self, name: str) -> None:
        self._containers[name][0].pause()

    def resume(self, name: str) -> None:
        self._containers[name][0].unpause()
        self._serves(name)

    def _serves(self, name: str) -> None:
        container, port = self._containers[name]

        def probe() -> bool:
            assert self._state(name) == "running", f"container {name} has ended:\n{_tail(container)}"
            return ask_status(port) is not None

        wait_until(probe, START_S, f"container {name} of {IMAGE} to serve", every_s=0.2)


def _leads(port: int) -> bool:
    status = ask_status(port)
    return status is not None and status.mode == "leader"


def _tail(container: Any) -> str:
    return str(container.logs(tail=30).decode("utf-8", "replace"))


@contextmanager
def process_servers(folder: Path, size: int = SIZE) -> Iterator[ProcessServers]:
    with Ensemble(installation(), folder, size=size) as ensemble:
        yield ProcessServers(ensemble)


@contextmanager
def container_servers(size: int = SIZE) -> Iterator[ContainerServers]:
    """An engine must answer (`container_engine_trouble`)."""
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")  # one image to pull, not two
    from testcontainers.core.container import DockerContainer

    ports = free_ports(3 * size)
    each = [ports[3 * number : 3 * number + 3] for number in range(size)]
    lines = " ".join(
        f"server.{number}={LOCAL}:{quorum}:{election};{LOCAL}:{client}"
        for number, (client, quorum, election) in enumerate(each, start=1)
    )
    with ExitStack() as stack:
        containers: dict[str, tuple[Any, int]] = {}
        for number, (client, _, _) in enumerate(each, start=1):
            container = DockerContainer(IMAGE).with_kwargs(network_mode="host").with_envs(
                ZOO_MY_ID=str(number),
                ZOO_SERVERS=lines,
                ZOO_TICK_TIME="500",
                ZOO_INIT_LIMIT="20",
                ZOO_SYNC_LIMIT="5",
                ZOO_MAX_CLIENT_CNXNS="0",
                ZOO_4LW_COMMANDS_WHITELIST="srvr,ruok,mntr",
                ZOO_ADMINSERVER_ENABLED="false",
            )
            stack.enter_context(container)
            containers[str(number)] = (container.get_wrapped_container(), client)
        servers = ContainerServers(containers)
        servers.start_all()
        yield servers


def container_engine_trouble() -> str | None:
    """Why no container can be used here, in a sentence; None when an engine answers. Takes a second at most."""
    where = urlsplit(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
    if where.scheme != "unix":
        return f"the container engine is at {where.geturl()}: expected one of this machine, whose network it shares"
    try:
        with closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.settimeout(1)
            connection.connect(where.path)
    except OSError as error:
        return f"no container engine answers at {where.geturl()} ({error.strerror or error})"
    return None
