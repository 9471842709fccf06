"""Taking a local fabric down: every process of it, then every file.

Theory of operation, in the keeper. The keeper is a subreaper, so whatever was started below it and lost its parent is
its child: when it has no child left but ZooKeeper, nothing of the fabric runs. On an ensemble that is not ours agents
first leave in order (TERM), so that no ephemeral znode outlives them, and then the znodes are removed. Then agents and
API are killed: a thousand agents are ended sooner by KILL than by each doing something first, and there is nothing left
to do in order. The end of the lifeline makes supervisors kill their instances and leave. What is still there after
LEAVE_WAIT_S is killed, and what that orphans becomes a child and is killed in the next round.

`clean_up` does the same from outside for a fabric whose keeper was killed: everything is on its way out by then
(lifeline, and PR_SET_PDEATHSIG), and is found by the pids in state.json and by the marks in its environment.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Collection, Iterable

from fabric.drivers.procfs import children, kill_others, marked_directory, process_stat
from fabric.local.folder import Folder, FolderError
from fabric.local.state import LocalState, Process

MARK = "FABRIC_LOCAL"
"""In the environment of the keeper and all that it forks: the folder of the fabric."""

LEAVE_WAIT_S = 3.0
ORDERLY_WAIT_S = 8.0
KILL_WAIT_S = 10.0
POLL_S = 0.02


class NotEnded(Exception):
    """Something can't be killed."""


def leave_in_order(pids: Iterable[int]) -> None:
    """TERM to our children `pids`, and wait for them, boundedly."""
    wanted = set(pids)
    for pid in wanted:
        _signal(pid, signal.SIGTERM)
        _signal(pid, signal.SIGCONT)
    _wait(lambda: not wanted & _living(), ORDERLY_WAIT_S)


def end_children(killed: Collection[int], spared: Collection[int]) -> None:
    """All our children but `spared`, and all that they orphan: `killed` at once, the others when the end of the
    lifeline did not end them. Raises NotEnded."""
    for pid in killed:
        _signal(pid, signal.SIGKILL)
    for pid in _living() - set(spared):
        _signal(pid, signal.SIGCONT)  # whoever is stopped does not see the end of the lifeline
    if _wait(lambda: not _living() - set(spared), LEAVE_WAIT_S):
        return

    def none_left() -> bool:
        left = _living() - set(spared)
        for pid in left:
            _signal(pid, signal.SIGKILL)
        return not left

    if not _wait(none_left, KILL_WAIT_S):
        raise NotEnded(f"still there {KILL_WAIT_S:g} s after KILL: pids {sorted(_living() - set(spared))}")


def _living() -> set[int]:
    """Our children. Those that are dead are reaped on the way; Popen objects bear that."""
    alive = set()
    for pid in children():
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                alive.add(pid)
    return alive


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _wait(done: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            return False
        select.select((), (), (), POLL_S)
    return True


def strays(folder: Folder, state: LocalState | None) -> Callable[[int], bool]:
    """Whether a pid is of the fabric in `folder`: known by state.json, or marked."""
    known = {each.pid: each.started for each in state.processes()} if state else {}
    path = str(folder.path)

    def ours(pid: int) -> bool:
        return (
            (pid in known and process_stat(pid)[2] == known[pid])
            or environment_of(pid, MARK) == path
            or (marked_directory(pid) or "").startswith(path + "/")
            or _supervises(pid, path)
        )

    return ours


def clean_up(folder: Folder, keeper: Process | None = None) -> None:
    """After a keeper's death, by the holder of the folder's lock: end what is left of its fabric, then remove the
    folder. Raises NotEnded, FolderError."""
    ours = strays(folder, folder.read_state())
    if keeper is not None:
        _wait(lambda: not keeper.alive, KILL_WAIT_S)
    _wait(lambda: not any(ours(pid) for pid in _pids()), LEAVE_WAIT_S)
    if not kill_others(ours, KILL_WAIT_S):
        raise NotEnded(f"processes of the fabric in {folder.path} are still there {KILL_WAIT_S:g} s after KILL")
    folder.remove()


def claim(folder: Folder) -> int:
    """Lock the folder; what a killed fabric left in it is ended and removed. Raises Taken, FolderError, NotEnded."""
    for _ in range(3):
        lock = folder.lock()
        try:
            if not os.listdir(folder.path):
                return lock
            if name := folder.foreign():
                raise FolderError(f"expected {folder.path} empty or missing, found {name!r} in it; take another --dir")
            clean_up(folder)
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
    raise FolderError(f"{folder.path} fills again and again")


def environment_of(pid: int, name: str) -> str:
    """A variable of the environment that `pid` was started with; empty when it has none or hides it."""
    prefix = name.encode() + b"="
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return next((os.fsdecode(e[len(prefix) :]) for e in file.read().split(b"\0") if e.startswith(prefix)), "")
    except OSError:
        return ""


def _supervises(pid: int, path: str) -> bool:
    """A supervisor of instances: its arguments name its state directory. It may have a clean environment."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = os.fsdecode(file.read()).split("\0")
    except OSError:
        return False
    return any("fabric.drivers" in word for word in words) and any(word.startswith(path + "/") for word in words)


def _pids() -> list[int]:
    me = os.getpid()
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != me and _alive(int(name))]


def _alive(pid: int) -> bool:
    return process_stat(pid)[0] not in ("", "Z")
