"""The fabric that a load test is run against: brought up for it, or one that is there, on this machine or another.

Of a local one the processes are known, so CPU and memory can be told by role; of a remote one only what its API says.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fabric.load.plan import Shape
from fabric.local.control import ControlClient, ControlError
from fabric.local.display import Stages
from fabric.local.folder import Folder, default_path, passing_path
from fabric.local.front import Front
from fabric.local.interrupts import Interrupts
from fabric.local.spec import make_spec
from fabric.local.state import LocalState
from fabric.resources import Resources

ROOM_BYTES = 2 << 30
MEMORY_MIB, DISK_MIB = 1 << 20, 1 << 24
"""Of each node: never what limits. The vcpus are."""
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Place:
    """`state`: of a local fabric. `own`: it was brought up for this run."""

    url: str
    told: str
    state: LocalState | None = None
    own: bool = False


@contextmanager
def brought_up(shape: Shape, interrupts: Interrupts) -> Iterator[Place]:
    """In the block there is such a fabric; how it comes up is shown. Raises BadSpec, UpFailed, FolderError, NotEnded,
    Interrupted."""
    spec = make_spec(
        folder=passing_path(f"load-{os.getpid()}-{next(_numbers)}", ROOM_BYTES),
        racks=shape.racks,
        compute=shape.compute,
        storage=shape.storage,
        zk=shape.zk,
        driver=shape.driver,
        agents_per_process=shape.agents_per_process,
        discussion=shape.discussion,
        session_timeout_s=shape.session_timeout_s,
        capacity=Resources(shape.vcpus, MEMORY_MIB, DISK_MIB),
        log_level="warning",
    )
    front = Front(spec)
    try:
        front.start()
        with Stages() as stages:
            state = front.wait_up(stages.report, interrupts)
        told = f"{shape.racks} racks of {shape.compute} compute and {shape.storage} storage agents, brought up for it"
        yield Place(state.api.where, told, state, own=True)
    finally:
        front.stop()


def local(folder: Path) -> Place:
    """Of the fabric that is up in a folder. Raises ControlError."""
    state = ControlClient(Folder(folder.absolute())).status()
    if state.phase != "up":
        raise ControlError(f"the fabric in {state.folder} is {state.phase}: expected one that is up")
    return Place(state.api.where, f"the fabric in {state.folder}", state)


def at(url: str) -> Place:
    """By its API, on this machine perhaps."""
    state = Folder(default_path()).read_state()
    if state is not None and state.api.where == url:
        try:
            return local(default_path())
        except ControlError:
            pass
    return Place(url, url)
