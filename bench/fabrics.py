"""Fabrics that are brought up to be measured, with a word on how far they are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from bench.wanted import say
from fabric.load import meters
from fabric.local.harness import LocalFabric
from fabric.local.state import LocalState
from fabric.roles.settings import Settings

Discussion = Literal["known", "full"]


@dataclass(frozen=True, slots=True)
class Shape:
    """Racks, and the compute and storage agents of each."""

    racks: int
    compute: int
    storage: int = 1

    @property
    def agents(self) -> int:
        return self.racks * (self.compute + self.storage)

    def __str__(self) -> str:
        return f"{self.racks} racks of {self.compute} compute and {self.storage} storage agents"


@contextmanager
def up(shape: Shape, **options: Any) -> Iterator[tuple[LocalFabric, float]]:
    """In the block it is up: and how long that took, in seconds, from the first process to all agents led."""
    say(f"bringing up {shape}: {shape.agents} agents")
    began = time.perf_counter()
    options.setdefault("session_timeout_s", Settings().session_timeout_s)  # local fabrics have shorter ones
    options |= {"racks": shape.racks, "compute": shape.compute, "storage": shape.storage, "log_level": "warning"}
    fabric = LocalFabric(**options)
    with fabric:
        took_s = time.perf_counter() - began
        say(f"up after {took_s:.1f} s")
        yield fabric, took_s
        say("taking it down")


def zookeeper_pids(state: LocalState) -> tuple[int, ...]:
    return tuple(one.process.pid for one in state.zookeepers.values() if one.process)


def agent_pids(state: LocalState) -> tuple[int, ...]:
    return tuple(dict.fromkeys(view.process.pid for view in state.nodes if view.process and not view.ended))


def api_pids(state: LocalState) -> tuple[int, ...]:
    return (state.api.process.pid,) if state.api.process else ()


def all_cpu_s(state: LocalState) -> float:
    """Of agents, API and ZooKeeper."""
    return meters.cpu_s((*agent_pids(state), *api_pids(state), *zookeeper_pids(state)))
