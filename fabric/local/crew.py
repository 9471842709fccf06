"""What the keeper's processes do: ZooKeeper, agents, API, eyes. The keeper itself knows only when.

`Crew` is the keeper's view; `RealCrew` the fabric. What is in `warm` is done before the first agent is forked, so that
a thousand agents share it; what only one process needs (the web framework) is imported in that process.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fabric.local.folder import ZOOKEEPER, Folder
from fabric.local.state import LocalSpec, Node, nodes_of
from fabric.roles.settings import Settings
from zk import connect
from zk.server import Server, find_zookeeper, wait_serving

if TYPE_CHECKING:
    from fabric.runtime.settings import AgentConfig

HOST = "127.0.0.1"
ZOOKEEPER_WAIT_S = 30.0
TICKS_A_SESSION = 4
RESTART_GRACE_S = 1.0


class CrewError(Exception):
    """What is needed is not there: what was looked for, and what to do."""


@dataclass(frozen=True, slots=True)
class Place:
    """What all processes of one local fabric share. `zk`: the connect string. `api`: host and port."""

    spec: LocalSpec
    folder: Folder
    zk: str
    key: bytes
    api: tuple[str, int]
    lifeline: int

    @property
    def faults(self) -> Path | None:
        """Where its processes look for faults."""
        return self.folder.faults if self.spec.faults else None


@dataclass(frozen=True, slots=True)
class Companion:
    """One more process of this fabric. `once`: it has something to do, and the fabric is up only when it has ended
    well; else it stays."""

    name: str
    body: Callable[[Place], int]
    once: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """How an agent is to be started, by somebody who asks the keeper to (control.py)."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    cwd: str


class Crew(Protocol):
    @property
    def companions(self) -> tuple[Companion, ...]:
        """Forked after `warm_companions`, while ZooKeeper starts: they have more to do before the first agent than the
        keeper has."""

    def warm_companions(self) -> None:
        """The same for companions, as far as several of them need it."""

    @property
    def agents_wait(self) -> bool:
        """Agents are not started by the keeper of itself, but when somebody asks for each: who starts them also says
        when they start again."""

    def run_ordered(self, place: Place, order: Order) -> int:
        """In a child: be the agent that was asked for; its exit code."""

    def start_zookeeper(self) -> str:
        """Begin to, unless an ensemble is given; the connect string. Raises CrewError."""

    def warm(self) -> None:
        """Import what agents need, and work out what each of them would."""

    def await_zookeeper(self) -> None:
        """Raises zk.server.ServerFailed."""

    def api_address(self) -> tuple[str, int]:
        """Where the API shall listen. Raises CrewError when that is taken."""

    def run_agents(self, place: Place, nodes: tuple[Node, ...]) -> int:
        """In a child: be the agents of `nodes`; its exit code."""

    def run_api(self, place: Place) -> int: ...

    def run_eyes(self, place: Place, requests: int, answers: int) -> int: ...

    @property
    def own_zookeeper(self) -> bool: ...

    def zookeeper_pid(self) -> int:
        """0 when there is none, or it is not ours."""

    def zookeeper_ended(self) -> None:
        """Its process is dead: reap it."""

    def zookeeper_log(self) -> Path: ...

    def restart_zookeeper(self) -> None:
        """Same port, same data."""

    def stop_zookeeper(self) -> None: ...


class RealCrew:
    def __init__(self, spec: LocalSpec) -> None:
        self.spec = spec
        self.folder = Folder(Path(spec.folder))
        self.server: Server | None = None
        self.zookeeper_child = 0
        self._held: list[socket.socket] = []

    @property
    def companions(self) -> tuple[Companion, ...]:
        return ()

    def warm_companions(self) -> None:
        pass

    @property
    def agents_wait(self) -> bool:
        return False

    def run_ordered(self, place: Place, order: Order) -> int:
        raise CrewError("this keeper starts its agents itself: expected nobody to ask for one")

    @property
    def own_zookeeper(self) -> bool:
        return not self.spec.zk

    def start_zookeeper(self) -> str:
        if self.spec.zk:
            chroot = "" if connect.parse(self.spec.zk).chroot else f"/fabric-local-{secrets.token_hex(4)}"
            return self.spec.zk.rstrip("/") + chroot
        installation = find_zookeeper()
        if installation is None:
            raise CrewError(
                "expected a ZooKeeper server on this machine (ZOOKEEPER_HOME, or Debian's package `zookeeper`) or a "
                "connect string (--zk HOST:PORT), found neither; `make setup` installs one"
            )
        tick_ms = max(100, min(2000, int(1000 * self.spec.session_timeout_s / TICKS_A_SESSION)))
        data = self.folder.path / ZOOKEEPER
        self.server = Server(installation, data, port=self._hold(HOST, 0), tick_ms=tick_ms)
        self.server.launch()
        self.zookeeper_child = self.server.pid or 0
        return self.server.hosts

    def await_zookeeper(self) -> None:
        if self.server is not None:
            self.server.wait_ready(ZOOKEEPER_WAIT_S)

    def zookeeper_serves(self) -> bool:
        """In a companion: waits for it, as it is better not asked before (zk.kazoo_tree)."""
        return self.server is None or wait_serving(self.server.port, ZOOKEEPER_WAIT_S)

    def api_address(self) -> tuple[str, int]:
        host, port = self.spec.api_host, self.spec.api_port
        try:
            return host, self._hold(host, port)
        except OSError as error:
            raise CrewError(
                f"the API can't listen at {host}:{port}: {error.strerror}; choose another address (--api HOST:PORT)"
            ) from None

    def _hold(self, host: str, port: int) -> int:
        """A port (0: a free one), bound as long as the keeper lives: the system gives it to nobody who wants any port,
        neither before its server listens there, seconds later, nor while that is restarted. A server that sets
        SO_REUSEADDR, as ours do, may listen there all the same. Raises OSError when somebody listens there."""
        holder = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._held.append(holder)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((host, port))
        return int(holder.getsockname()[1])

    def warm(self) -> None:
        import fabric.local.eyes
        import fabric.runtime.process
        from fabric.wire import FABRIC

        FABRIC.prepare()
        if self.spec.driver == "process":
            import fabric.drivers.process  # noqa: F401

    def run_agents(self, place: Place, nodes: tuple[Node, ...]) -> int:
        from fabric.runtime.process import run_agents

        return run_agents([self._agent_config(place, node) for node in nodes])

    def _agent_config(self, place: Place, node: Node) -> AgentConfig:
        from fabric.runtime.settings import AgentConfig

        spec = place.spec
        return AgentConfig(
            node=node.name,
            rack=node.rack,
            layer=node.layer,
            zookeeper=place.zk,
            state_dir=place.folder.node(node.name),
            total=spec.capacity,
            listen=f"{HOST}:0",
            data_listen=f"{HOST}:0",
            driver=spec.driver,
            cluster_key=place.key,
            cache_bytes=spec.cache_bytes,
            store_bytes=spec.store_bytes,
            lifeline_fd=place.lifeline,
            log_level=spec.log_level,
            faults=place.faults,
            settings=Settings(session_timeout_s=spec.session_timeout_s),
        )

    def run_api(self, place: Place) -> int:
        from fabric.api.main import run_api
        from fabric.api.settings import ApiConfig

        host, port = place.api
        return run_api(
            ApiConfig(
                zookeeper=place.zk,
                host=host,
                port=port,
                session_timeout_s=place.spec.session_timeout_s,
                cluster_key=place.key,
                settings=Settings(session_timeout_s=place.spec.session_timeout_s),
                log_level=place.spec.log_level,
                lifeline_fd=place.lifeline,
                faults=place.faults,
            )
        )

    def run_eyes(self, place: Place, requests: int, answers: int) -> int:
        from fabric.local.eyes import watch

        racks = sorted({node.rack for node in nodes_of(place.spec)})
        asyncio.run(watch(place.zk, racks, place.api, requests, answers))
        return 0

    # --- ZooKeeper, when it is ours ------------------------------------------------------------------------------

    def zookeeper_pid(self) -> int:
        return self.zookeeper_child  # not asked of the server, which would reap it unseen by the keeper

    def zookeeper_ended(self) -> None:
        self.zookeeper_child = 0
        if self.server is not None:
            self.server.kill()

    def zookeeper_log(self) -> Path:
        return self.server.log_path if self.server else self.folder.log("zookeeper")

    def restart_zookeeper(self) -> None:
        if self.server is None:
            raise CrewError("the ZooKeeper of this fabric is not ours to restart")
        self.server.stop(grace_s=RESTART_GRACE_S)
        self.server.launch()
        self.zookeeper_child = self.server.pid or 0

    def stop_zookeeper(self) -> None:
        """Its data are thrown away, so it need not write them down first."""
        if self.server is not None:
            self.server.kill()
