"""What the system says of processes, how to end those that are not our children, locks. Standard library only.

Theory of operation. A pid alone names nobody: it is used again. Our own child keeps its pid until we reap it, so it may
be signalled at any time before. Anybody else is held by a pidfd first, judged second, and signalled through the pidfd,
so that what was judged is what is hit. A process stored on disk is judged by (pid, start time, boot id).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import time
from collections.abc import Callable

MAX_COMPLAINTS_BYTES = 64 * 1024
MARK = "FABRIC_INSTANCE_DIR"
"""Every process that an instance starts inherits this variable, unless it takes pains not to."""


def complain(text: str) -> None:
    """To standard error, a file, while it is small; neither that nor a full disk may stop who complains."""
    with contextlib.suppress(OSError):
        if os.fstat(2).st_size < MAX_COMPLAINTS_BYTES:
            os.write(2, text.encode("utf-8", "replace") + b"\n")


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def process_stat(pid: int) -> tuple[str, int, int]:
    """(state letter, parent's pid, start time in ticks since boot); ("", 0, 0) when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[1]), int(fields[19])
    except (OSError, IndexError):
        return "", 0, 0


def start_time(pid: int) -> int:
    """In ticks since boot; 0 when there is no such process. With the boot id, it makes a pid unique."""
    return process_stat(pid)[2]


def marked_directory(pid: int, mark: str = MARK) -> str | None:
    """The value of `mark` in the environment that `pid` was started with; empty when there is none, or it is hidden.
    None when there is no environment: that is also what one sees, for a moment, of a process that executes or dies."""
    prefix = mark.encode() + b"="
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except PermissionError:
        return ""
    except OSError:
        return None
    if entries == [b""]:
        return None
    return next((os.fsdecode(entry[len(prefix) :]) for entry in entries if entry.startswith(prefix)), "")


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children() -> set[int]:
    """Our children, dead ones that are not reaped included. The kernel's list may skip entries while others leave it,
    so it is read twice; without that list (a kernel built without it), every process is asked for its parent."""
    me = os.getpid()
    found: set[int] = set()
    try:
        for _ in range(2):
            with open(f"/proc/{me}/task/{me}/children") as file:
                found.update(map(int, file.read().split()))
        return found
    except FileNotFoundError:
        return {pid for pid in all_pids() if process_stat(pid)[1] == me}


def dead_child() -> int | None:
    """The pid of a child that is dead and not yet reaped; it stays so."""
    try:
        info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return info.si_pid if info else None


def kill_others(wanted: Callable[[int], object], timeout_s: float) -> bool:
    """KILL every process that is `wanted` (any true value), and those that appear meanwhile. True when none is left in
    time."""
    deadline = time.monotonic() + timeout_s
    clean = 0
    while True:
        held = []
        for pid in all_pids():
            if pid == os.getpid() or not wanted(pid):
                continue
            with contextlib.suppress(OSError):
                handle = os.pidfd_open(pid)
                if wanted(pid) and process_stat(pid)[0] not in ("", "Z"):
                    held.append(handle)
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                else:
                    os.close(handle)
        if not held:
            clean += 1
            if clean == 2:  # one may have been about to execute, and shown no environment
                return True
            time.sleep(0.02)
            continue
        with selectors.DefaultSelector() as deaths:
            for handle in held:
                deaths.register(handle, selectors.EVENT_READ)
            deaths.select(max(0.0, deadline - time.monotonic()))
        for handle in held:
            os.close(handle)
        if time.monotonic() > deadline:
            return False


def hold_lock(path: str, wait_s: float) -> int | str:
    """The file descriptor that holds the lock until it is closed; or, when another holds it for longer than `wait_s`,
    the pid that the holder signed with. Sign once the pid is the final one: a lock outlives a fork."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() >= deadline:
                holder = os.pread(lock, 20, 0).decode()
                os.close(lock)
                return holder or "unknown"
            time.sleep(0.01)


def sign_lock(lock: int) -> None:
    """For people to read; a full disk does not matter."""
    with contextlib.suppress(OSError):
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
