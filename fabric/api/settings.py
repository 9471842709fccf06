"""What an API process is configured with, and every limit of it, named with its unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fabric.flavors import Flavor, load_flavors
from fabric.images.manifest import MAX_IMAGE_BYTES
from fabric.roles.settings import Settings


@dataclass(frozen=True, slots=True)
class ApiLimits:
    body_bytes: int = 1 << 20
    """Of a JSON body; an image has its own limit."""
    image_bytes: int = MAX_IMAGE_BYTES
    max_requests: int = 2000
    """Connections served at a time; over it, 503."""
    max_watchers: int = 2000
    """Long-polls and event streams at a time; over it, 503."""
    max_pushes: int = 4
    """Image uploads at a time (each holds a few MiB); over it, 503."""
    wait_most_s: float = 300.0
    """The longest `?wait=`."""
    wait_default_s: float = 30.0
    stream_most_s: float = 3600.0
    """An event stream is ended after this; clients come back with Last-Event-ID."""
    stream_beat_s: float = 15.0
    """A comment on an event stream that has had nothing to say for so long, so that proxies keep it open."""
    tree_wait_s: float = 5.0
    """For an answer of ZooKeeper to one operation."""
    session_wait_s: float = 5.0
    """For ZooKeeper to be connected again, since it was lost: as long as an ensemble takes to elect another leader,
    requests wait. Later they are refused at once."""
    rack_wait_s: float = 2.0
    """For the answers of racks, and their agents."""
    holders_wait_s: float = 6.0
    """For a storage leader to say who holds, or could hold, an image. It waits for silent agents itself, and a second
    leader is asked when it dies."""
    push_spares: int = 6
    """Storage agents considered for a push; two are needed, in different racks."""
    upload_drain_s: float = 2.0
    """What a client goes on sending after it was refused is thrown away for so long, so that it gets to read why."""
    status_age_s: float = 1.0
    """What rack leaders said about their nodes is used again for so long."""
    cordon_wait_s: float = 3.0
    """For a node to say that it knows of its (un)cordoning."""
    audit_gap_s: float = 3.0
    """At least so much between the two looks of an audit."""
    audit_gap_most_s: float = 30.0
    """At most so much. Above a reservation's time to live, as what is left of one is found only when that is over."""
    audit_looks: int = 4
    """Of one audit, before a repair: what comes and goes is not looked at for ever."""
    audit_poll_s: float = 2.0
    """Between the looks at whether a repair has worked."""
    audit_repair_wait_s: float = 60.0
    """For a repair to have worked; what is not well then is left."""
    audit_most: int = 1000
    """Findings that one report lists."""
    list_reads: int = 32
    """Records read at a time for a list."""
    list_most: int = 20_000
    """Names in a list that the API is willing to sort; ZooKeeper's answer is bounded by 1 MB anyway."""
    upload_idle_s: float = 30.0
    """A client that sends nothing of its image for so long is cut off."""
    connect_wait_s: float = 30.0
    """For ZooKeeper at the start."""
    stop_wait_s: float = 5.0
    """For requests to end when the process is told to stop."""
    write_tries: int = 8
    """Of a change that loses races for the record's version."""


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """`cluster_key`: 32 bytes, or None. `lifeline_fd`: end when this file descriptor says so (its other end is closed).
    `ready_file`: the base URL is written into it (as a whole, by renaming) once requests are served; `on_ready` is
    called with it. `faults`: as of an agent (fabric.runtime.settings); the API is "api" there."""

    zookeeper: str
    host: str = "127.0.0.1"
    port: int = 8080
    session_timeout_s: float = 10.0
    cluster_key: bytes | None = field(default=None, repr=False)
    flavors: Mapping[str, Flavor] = field(default_factory=load_flavors)
    settings: Settings = field(default_factory=Settings)
    limits: ApiLimits = field(default_factory=ApiLimits)
    peer_bind: str = "tcp://127.0.0.1:0"
    """Where agents answer to: an address of this host that they reach."""
    peer_advertise: str | None = None
    """The host that they connect to, when it is not that of `peer_bind`."""
    log_level: str = "info"
    lifeline_fd: int | None = None
    ready_file: Path | None = None
    on_ready: Callable[[str], None] | None = None
    faults: Path | None = None
