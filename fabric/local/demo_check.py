"""Looking at the demo's instances from outside: not what the fabric says of them, but what they say themselves.

Each instance's process must exist, be below the directory of the node that it is said to run on, and answer at a socket
in its own working directory, reached through /proc/<pid>/cwd, with its own deployment, ordinal and node. The kernel
says which process listens there (SO_PEERCRED): it must be that very one.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from fabric.drivers.procfs import process_stat
from fabric.local.demo_image import SOCKET

ANSWER_WAIT_S = 10.0
RETRY_S = 0.02
MAX_ANSWER_BYTES = 4096


class Instance(msgspec.Struct, frozen=True):
    """As the API tells it."""

    id: str
    deployment: str
    ordinal: int
    node: str
    rack: str
    flavor: str
    state: str
    pid: int


def verify(
    instances: Sequence[Instance], deployment: str, count: int, nodes: Path, on_one: Callable[[int], None]
) -> list[str]:
    """What is wrong; empty when all `count` run, each once. `nodes`: where the nodes' directories are. `on_one` is
    called with the number of those found right so far."""
    problems: list[str] = []
    deadline = time.monotonic() + ANSWER_WAIT_S
    right = 0
    for instance in instances:
        problem = _one(instance, deployment, nodes, deadline)
        if problem:
            problems.append(f"{instance.id} (pid {instance.pid}, {instance.node}): {problem}")
        else:
            right += 1
        on_one(right)
    ordinals = sorted(instance.ordinal for instance in instances)
    if ordinals != list(range(count)):
        missing = sorted(set(range(count)) - set(ordinals))
        problems.append(f"expected ordinals 0 to {count - 1} once each, found {len(ordinals)}, without {missing}")
    if len({instance.pid for instance in instances}) != len(instances):
        problems.append("expected a process of its own for each instance, found one that is two's")
    return problems


def _one(instance: Instance, deployment: str, nodes: Path, deadline: float) -> str:
    if process_stat(instance.pid)[0] in ("", "Z"):
        return "expected its process, found none"
    expected = {
        "deployment": deployment,
        "ordinal": str(instance.ordinal),
        "instance": instance.id,
        "node": instance.node,
        "rack": instance.rack,
        "flavor": instance.flavor,
        "pid": instance.pid,
    }
    while True:
        try:
            directory = os.readlink(f"/proc/{instance.pid}/cwd")
            listener, answer = _ask(instance.pid)
            break
        except (OSError, ValueError) as error:
            # "Running" says that the program executes; it may not listen yet.
            if time.monotonic() > deadline or process_stat(instance.pid)[0] in ("", "Z"):
                return f"expected an answer at {SOCKET}, found: {error}"
            select.select((), (), (), RETRY_S)
    if not directory.startswith(f"{nodes}/{instance.node}/"):
        return f"expected it below {nodes}/{instance.node}, found it in {directory}"
    if listener != instance.pid:
        return f"expected to be answered by it, found pid {listener}"
    wrong = [f"{key} {answer.get(key)!r}" for key, value in expected.items() if answer.get(key) != value]
    return f"expected its own identity, found {', '.join(wrong)}" if wrong else ""


def _ask(pid: int) -> tuple[int, dict[str, object]]:
    """The listening process's pid, and its answer. Raises OSError, ValueError."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_WAIT_S)
        connection.connect(f"/proc/{pid}/cwd/{SOCKET}")
        listener, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        data = b""
        while not data.endswith(b"\n") and len(data) < MAX_ANSWER_BYTES:
            piece = connection.recv(MAX_ANSWER_BYTES)
            if not piece:
                break
            data += piece
    answer = json.loads(data)
    if not isinstance(answer, dict):
        raise ValueError(f"no object: {answer!r}")
    return int(listener), answer
