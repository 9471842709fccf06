"""A slow disk under one ZooKeeper server: each of its writes to the transaction log takes so much longer.

Theory of operation. A server writes its log, and has it written to the disk, on one thread, "SyncThread:N", and
promises a client nothing before that. This traces that thread (ptrace), stops it wherever it is about to write, and
lets it go on after the delay. All other threads run on, so pings and votes are answered: as on a machine whose disk is
slow, and other than with SIGSTOP. It needs no device of its own, so the data may lie in memory. Whoever traces must
have the right to: root (CAP_SYS_PTRACE), or a kernel without Yama's restriction.

The kernel binds tracing to the tracer's thread, so each traced thread has one here that waits for it. A new election
begins with a new SyncThread, so they are looked for again and again. When the tracer ends, however it does, the kernel
lets all go on as if nothing had been.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import signal
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

LOOK_EVERY_S = 0.2
THREAD = "SyncThread:"
MAX_DELAY_S = 60.0

# write, pwrite64, writev, fsync, fdatasync
_WRITES = {"x86_64": {1, 18, 20, 74, 75}, "aarch64": {64, 68, 66, 82, 83}}
_SYSCALL, _SEIZE, _INTERRUPT, _LISTEN, _SYSCALL_INFO = 24, 0x4206, 0x4207, 0x4208, 0x420E
_TRACE_SYSGOOD = 1
_EVENT_STOP = 128
_ANY_CHILD = 0x40000000  # __WALL: threads too
_ENTRY = 1
_INFO_BYTES = 88
_GROUP_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)


class SlowDiskRefused(OSError):
    """It can't be done here, and why."""


def slow(pid: int, delay_s: float, on_ready: Callable[[], object] = lambda: None) -> None:
    """Until the server has ended, or this process does. `on_ready` is called when its first log thread is slow. Raises
    SlowDiskRefused."""
    writes = _WRITES.get(platform.machine())
    if writes is None:
        raise SlowDiskRefused(f"expected a machine of {' or '.join(_WRITES)}, found {platform.machine()}")
    if not 0 < delay_s <= MAX_DELAY_S:
        raise SlowDiskRefused(f"expected a delay above 0 and up to {MAX_DELAY_S:g} s, found {delay_s:g}")
    traced: dict[int, _Traced] = {}
    while os.path.exists(f"/proc/{pid}") and _state(pid) != "Z":
        for tid in _log_threads(pid):
            if tid not in traced:
                traced[tid] = _Traced(tid, frozenset(writes), delay_s)
                traced[tid].begin()
                if len(traced) == 1:
                    on_ready()
        time.sleep(LOOK_EVERY_S)


class _Traced:
    """One traced thread, and the one that traces it."""

    def __init__(self, tid: int, writes: frozenset[int], delay_s: float) -> None:
        self._tid, self._writes, self._delay_s = tid, writes, delay_s
        self._begun = threading.Event()
        self._refused: OSError | None = None

    def begin(self) -> None:
        """Returns when it is traced, or is gone already. Raises SlowDiskRefused."""
        threading.Thread(target=self._run, daemon=True).start()
        self._begun.wait()
        if self._refused is not None:
            raise SlowDiskRefused(
                f"expected the right to trace thread {self._tid} of the server (root, or kernel.yama.ptrace_scope 0), "
                f"found: {self._refused.strerror}"
            )

    def _run(self) -> None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has ended: nothing is left to slow down
            try:
                _ptrace(_SEIZE, self._tid, 0, _TRACE_SYSGOOD)
                _ptrace(_INTERRUPT, self._tid)
            except PermissionError as error:
                self._refused = error
                return
            finally:
                self._begun.set()
            while True:
                _, status = os.waitpid(self._tid, _ANY_CHILD)
                if not os.WIFSTOPPED(status):
                    return
                self._go_on(os.WSTOPSIG(status), status >> 16)

    def _go_on(self, number: int, event: int) -> None:
        if event == _EVENT_STOP:
            paused = number in _GROUP_STOPS  # the whole server is, and shall stay so
            _ptrace(_LISTEN if paused else _SYSCALL, self._tid)
        elif number == signal.SIGTRAP | 0x80:
            if _entered(self._tid) in self._writes:
                time.sleep(self._delay_s)
            _ptrace(_SYSCALL, self._tid)
        else:
            _ptrace(_SYSCALL, self._tid, 0, number)  # a signal for it


def _entered(tid: int) -> int | None:
    """The number of the system call that it is about to make; None when it comes back from one."""
    info = ctypes.create_string_buffer(_INFO_BYTES)
    _ptrace(_SYSCALL_INFO, tid, _INFO_BYTES, ctypes.addressof(info))
    (number,) = struct.unpack_from("=Q", info.raw, 24)
    return int(number) if info.raw[0] == _ENTRY else None


def _ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> None:
    call = ctypes.CDLL(None, use_errno=True).ptrace
    call.restype = ctypes.c_long
    found = call(ctypes.c_long(request), ctypes.c_long(tid), ctypes.c_void_p(address), ctypes.c_void_p(data))
    if found == -1 and (code := ctypes.get_errno()):
        if code == errno.ESRCH:
            raise ProcessLookupError(code, os.strerror(code))
        raise OSError(code, os.strerror(code))


def _log_threads(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):  # it has ended
            if (task / "comm").read_text().startswith(THREAD):
                found.append(int(task.name))
    return found


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
