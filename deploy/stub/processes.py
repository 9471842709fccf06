"""Processes: made for an installation, watched, signalled by group.

Theory of operation. Every process that a boot stub starts leads a session of its own, so that it survives the boot stub
and its terminal, and so that one signal reaches all that it started. Programs are started by deploy.stub.spawning; what
an installation runs to its end is our own child. Every one is watched through a pidfd, whether it is our
child or not. A pid names a process only as long as it is not reaped: groups are signalled while the leader lives, or at
the moment of its end; stored pids are judged by (pid, start time, boot id) with the pidfd in hand. What got away from
its session still carries MANAGENT_DIR in its environment, by which `kill_strays` finds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from fabric.drivers.procfs import boot_id, kill_others, marked_directory, process_stat, start_time

MARK = "MANAGENT_DIR"
STRAYS_KILL_S = 5.0
MAX_GROUP = 256
"""Processes of one group that are looked at when it is to stand still."""


def spawn(argv: Sequence[str], env: Mapping[str, str], cwd: Path, out: int, err: int) -> int:
    """The pid of a new process, our child, that leads a session; it must be waited for. Blocks until it executes.
    Raises OSError as execve says it; ValueError for what no process can have."""
    process = subprocess.Popen(
        argv,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        close_fds=False,  # all of ours close themselves on execution
        start_new_session=True,
    )
    process.returncode = 0  # it is not this object that waits for it
    return process.pid


def reap(pid: int) -> str:
    """Wait for our child that has ended: how it did; "" when it is not ours."""
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return ""
    return how_it_ended(status)


def how_it_ended(status: int) -> str:
    """`status`: as waitpid has it."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit status {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


def signal_group(leader: int, number: signal.Signals) -> None:
    """To all of its group that are there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


class Watch:
    """Calls `ended` on the loop, once, when the process has ended; before it is reaped, if it is our child. Raises
    ProcessLookupError when there is no such process now, OSError when there is no file descriptor left."""

    def __init__(self, pid: int, ended: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = ended
        self._fd = os.pidfd_open(pid)
        self._loop.add_reader(self._fd, self._readable)

    def close(self) -> None:
        """Watch no longer. May be called twice."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _readable(self) -> None:
        self.close()
        self._ended()


def identity(pid: int) -> tuple[int, str]:
    """(start time in ticks, boot id): with the pid, unique for ever. (0, …) when there is no such process."""
    return start_time(pid), this_boot()


def is_same(pid: int, ticks: int, boot: str) -> bool:
    """This process is there, and no zombie. Hold a pidfd of it when the answer is to stay true."""
    state, _, found = process_stat(pid)
    return boot == this_boot() and found == ticks and ticks > 0 and state not in ("", "Z", "X")


@cache
def this_boot() -> str:
    """The machine's boot id."""
    return boot_id()


def group_of(leader: int) -> list[int]:
    """The leader and those of its descendants that are in its group, up to MAX_GROUP."""
    found, at = [leader], 0
    while at < len(found) and len(found) < MAX_GROUP:
        pid = found[at]
        at += 1
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            for child in map(int, file.read().split()):
                with contextlib.suppress(ProcessLookupError):
                    if os.getpgid(child) == leader:
                        found.append(child)
    return found


def stands_still(leader: int) -> bool:
    """Every process of the group is stopped, or has ended."""
    return all(process_stat(pid)[0] in ("T", "t", "Z", "X", "") for pid in group_of(leader))


def belongs_to(pid: int, leader: int, levels: int = 32) -> bool:
    """`pid` is the leader, in its session, or a descendant of it."""
    with contextlib.suppress(ProcessLookupError):
        if os.getsid(pid) == leader:
            return True
    while pid > 1 and levels:
        if pid == leader:
            return True
        pid, levels = process_stat(pid)[1], levels - 1
    return False


class Strays:
    """Ends processes by the MANAGENT_DIR in their environment. One look over all processes serves everybody who waits
    for one, as it takes a while where there are ten thousand."""

    def __init__(self) -> None:
        self._wanted: list[tuple[Callable[[str], bool], asyncio.Future[bool]]] = []
        self._task: asyncio.Task[None] | None = None

    async def kill(self, wanted: Callable[[str], bool]) -> bool:
        """`wanted(directory)`, called on another thread. True when none is left. Raises OSError."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bool] = loop.create_future()
        self._wanted.append((wanted, done))
        if self._task is None:
            self._task = loop.create_task(self._run(), name="strays")
        return await done

    async def _run(self) -> None:
        try:
            while self._wanted:
                batch, self._wanted = self._wanted, []
                try:
                    clean = await asyncio.to_thread(_kill_marked, [wanted for wanted, _ in batch])
                except Exception as error:  # who waits must hear of it
                    for _, done in batch:
                        if not done.done():
                            done.set_exception(error)
                    continue
                for _, done in batch:
                    if not done.done():
                        done.set_result(clean)
        finally:
            self._task = None


def _kill_marked(wanted: Sequence[Callable[[str], bool]]) -> bool:
    def is_wanted(pid: int) -> bool:
        directory = marked_directory(pid, MARK)
        return bool(directory) and any(one(str(directory)) for one in wanted)

    return kill_others(is_wanted, STRAYS_KILL_S)
