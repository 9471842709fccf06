"""What a local fabric is asked for (`LocalSpec`) and what it tells about itself (`LocalState`), as JSON.

`LocalSpec` goes from the front to the keeper once. `LocalState` is the answer of the control socket to "status", and
lies in the folder as state.json, so that a killed keeper's processes are found. A process is known by pid *and* start
time (ticks since boot): a pid alone names nobody.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from fabric.drivers.procfs import process_stat
from fabric.net.rules import Rule
from fabric.records import LayerName
from fabric.resources import Resources

MAX_RACKS = 200
MAX_NODES_IN_RACK = 1000
MAX_NODES = 5000

MAX_ZOOKEEPERS = 5

NetworkKind = Literal["host", "namespaces", "proxy"]
Phase = Literal["starting", "up", "leaving"]
NodeState = Literal["waiting", "starting", "registered", "paused", "dead"]


class Process(msgspec.Struct, frozen=True):
    """`started`: ticks since boot, from /proc. 0: it was gone before it could be read."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """There is such a process, and it is no zombie."""
        state, _, started = process_stat(self.pid)
        return state not in ("", "Z") and started == self.started


def process(pid: int) -> Process:
    return Process(pid, process_stat(pid)[2])


class LocalSpec(msgspec.Struct, frozen=True):
    """`zk`: a connect string, empty for a ZooKeeper of its own: `zookeepers` servers, an odd number. `api_host`,
    `api_port`: 0 takes any free port. `capacity`: what each compute or storage node declares. `network`: as
    fabric.local.network has it. `faults`: its processes offer step hooks (fabric.runtime.stepping).
    `discussion`: as in fabric.roles.settings."""

    folder: str
    racks: Annotated[int, msgspec.Meta(ge=1, le=MAX_RACKS)]
    compute: Annotated[int, msgspec.Meta(ge=0, le=MAX_NODES_IN_RACK)]
    storage: Annotated[int, msgspec.Meta(ge=0, le=MAX_NODES_IN_RACK)]
    zk: str
    driver: Literal["process", "null"]
    agents_per_process: Annotated[int, msgspec.Meta(ge=1, le=MAX_NODES_IN_RACK)]
    api_host: str
    api_port: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    session_timeout_s: Annotated[float, msgspec.Meta(ge=0.5, le=60.0)]
    capacity: Resources
    cache_bytes: int
    store_bytes: int
    restart: bool
    log_level: str
    start_deadline_s: float
    zookeepers: Annotated[int, msgspec.Meta(ge=1, le=MAX_ZOOKEEPERS)] = 1
    network: NetworkKind = "host"
    faults: bool = False
    discussion: Literal["known", "full"] = "known"


class Node(msgspec.Struct, frozen=True):
    name: str
    rack: str
    layer: LayerName


def nodes_of(spec: LocalSpec) -> tuple[Node, ...]:
    """r1c01, r1c02, …, r1s01, … : rack by rack, so that each rack is whole early."""
    made: list[Node] = []
    layers: tuple[tuple[LayerName, str, int], ...] = (("compute", "c", spec.compute), ("storage", "s", spec.storage))
    for rack in range(1, spec.racks + 1):
        for layer, letter, count in layers:
            digits = max(2, len(str(count)))
            made += [Node(f"r{rack}{letter}{i:0{digits}}", f"r{rack}", layer) for i in range(1, count + 1)]
    return tuple(made)


def grouped(nodes: tuple[Node, ...], size: int) -> tuple[tuple[Node, ...], ...]:
    """Nodes that share a process: at most `size`, of one rack and layer."""
    groups: list[list[Node]] = []
    for node in nodes:
        last = groups[-1] if groups else []
        if last and len(last) < size and (last[0].rack, last[0].layer) == (node.rack, node.layer):
            last.append(node)
        else:
            groups.append([node])
    return tuple(tuple(group) for group in groups)


class NodeView(msgspec.Struct, frozen=True):
    """`ended`: how its last process ended, empty if it did not."""

    node: Node
    state: NodeState
    process: Process | None
    ended: str = ""


class Service(msgspec.Struct, frozen=True):
    """ZooKeeper as a whole, the API, or a companion: `where` is the connect string or the URL, "" for who has none;
    ZooKeeper has no `process` as a whole."""

    where: str
    process: Process | None
    ready: bool
    ended: str = ""


class ZooKeeper(msgspec.Struct, frozen=True):
    """One ZooKeeper server of the fabric's own. `where`: its host and port. `mode`: standalone, leader or follower, by
    its own word a moment ago; empty when it does not serve: it starts, is paused or dead, or sees no quorum.
    `disk_delay_ms`: how much longer each write to its log is made to take."""

    where: str
    process: Process | None
    mode: str
    paused: bool
    ended: str
    disk_delay_ms: int = 0


class LocalState(msgspec.Struct, frozen=True):
    """`leaders`: rack -> node, by layer. `error`: why it could not come up. `marks_ms`: wall clock of each stage of
    coming up ("zookeeper_started", "zookeeper_ready", "registered", "elected", "api_ready", "deployed", "up").
    `companions`: the further processes that stay, by name. `zookeepers`: its own ZooKeeper servers, by name
    ("zookeeper", or "zookeeper-1" …); none when an ensemble was given. `endpoints`: who is on the network, and `rules`:
    what is wrong with it."""

    phase: Phase
    folder: str
    spec: LocalSpec
    keeper: Process
    zookeeper: Service
    api: Service
    nodes: tuple[NodeView, ...]
    leaders: dict[LayerName, dict[str, str]]
    marks_ms: dict[str, int]
    error: str = ""
    companions: dict[str, Service] = {}
    zookeepers: dict[str, ZooKeeper] = {}
    endpoints: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()

    @property
    def registered(self) -> int:
        return sum(view.state == "registered" for view in self.nodes)

    @property
    def leaders_wanted(self) -> int:
        return self.spec.racks * sum(1 for count in (self.spec.compute, self.spec.storage) if count)

    @property
    def leaders_elected(self) -> int:
        return sum(len(by_rack) for by_rack in self.leaders.values())

    def processes(self) -> tuple[Process, ...]:
        """All that are known: keeper, ZooKeeper, API, companions, agents. Supervisors and instances are found by their
        marks."""
        services = [one.process for one in (self.api, *self.companions.values()) if one.process]
        services += [one.process for one in self.zookeepers.values() if one.process]
        return (self.keeper, *services, *{view.process for view in self.nodes if view.process})


class Report(msgspec.Struct, frozen=True):
    """A line to the front: how far it is. `error` is the last word, if there is one."""

    phase: Phase
    zookeeper: bool
    registered: int
    nodes: int
    elected: int
    leaders: int
    api: bool
    error: str = ""
