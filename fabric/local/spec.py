"""What a local fabric is made of when nothing else is said, and whether that can be: `make_spec`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from fabric.local.folder import default_path
from fabric.local.state import MAX_NODES, LocalSpec, NetworkKind
from fabric.resources import Resources
from zk import connect

GIB = 1 << 30
CAPACITY = Resources(64, 256 * 1024, 4 * 1024 * 1024)
"""A node's: 64 vcpus, 256 GiB, 4 TiB. Larger than a laptop, on purpose: what runs there is small."""
CACHE_BYTES = 1 * GIB
STORE_BYTES = 8 * GIB
SESSION_TIMEOUT_S = 4.0
SESSION_LEAST_S, SESSION_MOST_S = 0.5, 60.0
START_S, START_EACH_S = 30.0, 0.15
NETWORK_NODES = 240
"""On a network with faults: for each the keeper has some open files."""
ZOOKEEPERS = (1, 3, 5)
"""An ensemble goes on while more than half of it lives, so an even number is worth no more than one less."""


class BadSpec(Exception):
    """What was asked for can't be: which option, what was expected, what was found."""


def make_spec(
    *,
    folder: Path | None = None,
    racks: int = 3,
    compute: int = 8,
    storage: int = 2,
    zk: str = "",
    driver: Literal["process", "null"] = "process",
    agents_per_process: int = 1,
    api_host: str = "127.0.0.1",
    api_port: int = 0,
    session_timeout_s: float = SESSION_TIMEOUT_S,
    capacity: Resources = CAPACITY,
    cache_bytes: int = CACHE_BYTES,
    store_bytes: int = STORE_BYTES,
    restart: bool = False,
    log_level: str = "info",
    start_deadline_s: float | None = None,
    zookeepers: int = 1,
    network: NetworkKind = "host",
    faults: bool = False,
    discussion: Literal["known", "full"] = "known",
) -> LocalSpec:
    """Raises BadSpec."""
    nodes = racks * (compute + storage)
    if not 1 <= nodes <= MAX_NODES:
        raise BadSpec(f"expected 1 to {MAX_NODES} agents, found {racks} racks of {compute} and {storage}: {nodes}")
    if not SESSION_LEAST_S <= session_timeout_s <= SESSION_MOST_S:
        limits = f"{SESSION_LEAST_S:g} to {SESSION_MOST_S:g}"
        raise BadSpec(f"--session-timeout: expected {limits} seconds, found {session_timeout_s:g}")
    if zookeepers not in ZOOKEEPERS:
        raise BadSpec(f"--zookeepers: expected 1, 3 or 5 servers, found {zookeepers}")
    if zk and zookeepers != 1:
        raise BadSpec("expected --zk (an ensemble that is there) or --zookeepers (one of its own), found both")
    if network != "host":
        _check_network(network, nodes, zk, agents_per_process)
    if zk:
        try:
            connect.parse(zk)
        except ValueError as error:
            raise BadSpec(f"--zk: {error}") from None
    spec = LocalSpec(
        folder=os.path.realpath(folder or default_path()),
        racks=racks,
        compute=compute,
        storage=storage,
        zk=zk,
        driver=driver,
        agents_per_process=agents_per_process,
        api_host=api_host,
        api_port=api_port,
        session_timeout_s=session_timeout_s,
        capacity=capacity,
        cache_bytes=cache_bytes,
        store_bytes=store_bytes,
        restart=restart,
        log_level=log_level,
        start_deadline_s=start_deadline_s or START_S + START_EACH_S * nodes,
        zookeepers=zookeepers,
        network=network,
        faults=faults,
        discussion=discussion,
    )
    try:
        return msgspec.convert(msgspec.to_builtins(spec), type=LocalSpec)
    except msgspec.ValidationError as error:
        raise BadSpec(str(error)) from None


def _check_network(network: NetworkKind, nodes: int, zk: str, agents_per_process: int) -> None:
    """Raises BadSpec."""
    if nodes > NETWORK_NODES:
        raise BadSpec(f"--network {network}: expected at most {NETWORK_NODES} agents, found {nodes}")
    if zk:
        raise BadSpec(f"--network {network}: expected a ZooKeeper of its own, found --zk (or $FABRIC_ZK) {zk}")
    if agents_per_process != 1:
        raise BadSpec(f"--network {network}: expected a process for each agent, found {agents_per_process} in one")
