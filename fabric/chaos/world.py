"""What is seen of a fabric: `Sample`, many times while it runs, and `World`, once when it is over. Plain data.

An instance that runs is known by its processes: each carries its instance's directory in its environment, from which
node, deployment and ordinal follow. That is what the kernel says, not what the agent or its supervisor believe.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath

import msgspec

from fabric.records import Deployment, Image
from fabric.resources import Resources


class Running(msgspec.Struct, frozen=True, order=True):
    """An instance on a node; `pid` and `started` (ticks since boot) of its oldest process, `flavor` as it was told."""

    node: str
    deployment: str
    ordinal: int
    pid: int
    started: int
    flavor: str = ""

    @property
    def name(self) -> str:
        return f"{self.deployment}.{self.ordinal}"


class Sample(msgspec.Struct, frozen=True):
    """`members`: compute nodes that ZooKeeper counted as present both before and after the look at processes; None:
    it did not answer. `busy`: deployments that a request is changing, as far as the load knows. `holders`: digest ->
    storage nodes that are present and have every file of it."""

    at_s: float
    members: frozenset[str] | None
    running: frozenset[Running]
    busy: frozenset[str] = frozenset()
    holders: Mapping[str, frozenset[str]] = {}


class Outage(msgspec.Struct, frozen=True):
    """ZooKeeper had no quorum, because a fault took it away; `to_s` when it was given back."""

    from_s: float
    to_s: float


class World(msgspec.Struct, frozen=True):
    """In the end. `members`: node -> rack, by ZooKeeper; `expected`: all nodes of the fabric -> their racks;
    `storage`: which of them are storage nodes. `holders`: digest -> nodes whose stores have every byte of it, hashed.
    `rotten`: bytes in caches of compute nodes that are not what was published. `audit`: what the fabric's own audit
    finds. `leaders`: "compute r1" -> node."""

    at_s: float
    expected: Mapping[str, str]
    storage: frozenset[str]
    members: Mapping[str, str]
    leaders: Mapping[str, str]
    records: Mapping[str, Deployment]
    unreadable: tuple[str, ...]
    open: frozenset[str]
    images: Mapping[str, Image]
    running: frozenset[Running]
    holders: Mapping[str, frozenset[str]]
    rotten: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    cordoned: frozenset[str] = frozenset()
    audit: tuple[str, ...] = ()


class Rules(msgspec.Struct, frozen=True):
    """What the judge must know of the fabric. `capacity`: of each node; `redundancy`: holders of each image; `flavor`:
    what the load asks for."""

    capacity: Resources
    flavors: Mapping[str, Resources]
    redundancy: int = 2
    flavor: str = ""


def place_of(directory: str, nodes: str) -> tuple[str, str, int] | None:
    """(node, deployment, ordinal) of an instance's directory below `nodes`, the folder of nodes; None: it is none."""
    try:
        parts = PurePath(directory).relative_to(nodes).parts
    except ValueError:
        return None
    if len(parts) < 3 or parts[1] != "instances":
        return None
    deployment, _, ordinal = parts[2].rpartition(".")
    return (parts[0], deployment, int(ordinal)) if deployment and ordinal.isdecimal() else None
