"""What the keeper's processes do: ZooKeeper, agents, API, eyes. The keeper itself knows only when.

`Crew` is the keeper's view; `RealCrew` the fabric. What is in `warm` is done before the first agent is forked, so that
a thousand agents share it; what only one process needs (the web framework) is imported in that process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fabric.local.folder import ZOOKEEPER, Folder
from fabric.local.network import API_PORT, Network, Reach, network_of
from fabric.local.state import LocalSpec, Node, nodes_of
from fabric.local.zookeepers import Zookeepers
from fabric.net.rules import API
from fabric.roles.settings import Settings

if TYPE_CHECKING:
    from fabric.runtime.settings import AgentConfig


class CrewError(Exception):
    """What is needed is not there: what was looked for, and what to do."""


@dataclass(frozen=True, slots=True)
class Place:
    """What all processes of one local fabric share. `zk`: the connect string, as it is outside of the fabric's
    network (`Zookeepers.peers` is the other)."""

    spec: LocalSpec
    folder: Folder
    zk: str
    key: bytes
    api: Reach
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

    @property
    def network(self) -> Network: ...

    @property
    def zookeepers(self) -> Zookeepers: ...

    def warm(self) -> None:
        """Import what agents need, and work out what each of them would."""

    def api_address(self) -> Reach:
        """Where the API shall listen and is reached. Raises CrewError when that is taken."""

    def run_agents(self, place: Place, nodes: tuple[Node, ...]) -> int:
        """In a child: be the agents of `nodes`; its exit code."""

    def run_api(self, place: Place) -> int: ...

    def run_eyes(self, place: Place, requests: int, answers: int) -> int: ...


def settings_of(spec: LocalSpec) -> Settings:
    """Of all roles of this fabric."""
    return Settings(session_timeout_s=spec.session_timeout_s, discussion=spec.discussion)


class RealCrew:
    def __init__(self, spec: LocalSpec) -> None:
        self.spec = spec
        self.folder = Folder(Path(spec.folder))
        self.network = network_of(spec)
        self.zookeepers = Zookeepers(spec, self.folder.path / ZOOKEEPER, self.network)

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

    def api_address(self) -> Reach:
        host, port = self.spec.api_host, self.spec.api_port
        try:
            return self.network.open(API, API_PORT, (host, port))
        except OSError as error:
            raise CrewError(
                f"the API can't listen at {host}:{port}: {error.strerror}; choose another address (--api HOST:PORT)"
            ) from None

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
        listen, data_listen, advertise = self.network.bus(node.name)
        return AgentConfig(
            node=node.name,
            rack=node.rack,
            layer=node.layer,
            zookeeper=self.zookeepers.peers,
            state_dir=place.folder.node(node.name),
            total=spec.capacity,
            listen=listen,
            data_listen=data_listen,
            advertise=advertise,
            driver=spec.driver,
            cluster_key=place.key,
            cache_bytes=spec.cache_bytes,
            store_bytes=spec.store_bytes,
            lifeline_fd=place.lifeline,
            log_level=spec.log_level,
            faults=place.faults,
            settings=settings_of(spec),
        )

    def run_api(self, place: Place) -> int:
        from fabric.api.main import run_api
        from fabric.api.settings import ApiConfig

        host, port = place.api.listen
        peer_listen, _, advertise = self.network.bus(API)
        return run_api(
            ApiConfig(
                zookeeper=self.zookeepers.peers,
                host=host,
                port=port,
                peer_bind=f"tcp://{peer_listen}",
                peer_advertise=advertise,
                session_timeout_s=place.spec.session_timeout_s,
                cluster_key=place.key,
                settings=settings_of(place.spec),
                log_level=place.spec.log_level,
                lifeline_fd=place.lifeline,
                faults=place.faults,
            )
        )

    def run_eyes(self, place: Place, requests: int, answers: int) -> int:
        from fabric.local.eyes import watch

        racks = sorted({node.rack for node in nodes_of(place.spec)})
        asyncio.run(watch(place.zk, racks, place.api.outside, requests, answers, self.zookeepers.addresses))
        return 0
