"""What one agent is told when it starts. `fabric.config` makes it from file, environment and flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fabric.records import LayerName
from fabric.resources import Resources
from fabric.roles.settings import Settings

DriverName = Literal["process", "null"]

EXIT_OK = 0
EXIT_FAILED = 1
"""It could not start, or could not go on: one line says why."""
EXIT_BUG = 70
"""An exception that should not be: the traceback is in the log."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """`total`: what the node offers to instances. `listen`, `data_listen`: "host:port", port 0 for any free one; the
    second serves image chunks (of a compute agent: while it fetches, to its rack). `advertise`: the host that others
    connect to, when it is not that of `listen`; best an address, as libzmq looks names up on the thread that carries
    all messages. `state_dir`: of this agent alone; journal, instances, cache or store are in it. `cache_bytes`: images
    on a compute node; `store_bytes`: on a storage node (None: what the disk has); all of them are read again at
    `scrub_mib_s`, from the beginning at most every `scrub_every_s`. `lifeline_fd`: the reading end of a pipe; when its
    last writing end is closed, the process ends at once. `zookeeper_wait_s`: for ZooKeeper to answer at a node's first
    start. `managent`: its path, when it was deployed as one. `faults`: where it looks for faults that somebody wants it
    to have (fabric.runtime.stepping); None: nowhere."""

    node: str
    rack: str
    layer: LayerName
    zookeeper: str
    state_dir: Path
    total: Resources
    listen: str = "127.0.0.1:0"
    data_listen: str = "127.0.0.1:0"
    advertise: str | None = None
    driver: DriverName = "process"
    cluster_key: bytes | None = field(default=None, repr=False)
    cache_bytes: int = 20 * 1024**3
    store_bytes: int | None = None
    scrub_mib_s: float = 20.0
    scrub_every_s: float = 86400.0
    lifeline_fd: int | None = None
    zookeeper_wait_s: float = 60.0
    log_level: str = "info"
    managent: str = ""
    faults: Path | None = None
    settings: Settings = field(default_factory=Settings)
