"""Children forked from a warm parent: what a new process needs to forget, and what it must not outlive.

Theory of operation. The keeper imports everything that agents need once, with the garbage collector off, freezes the
collector's view of it (so that collections in children do not touch, and so copy, the shared pages), and forks. That is
only sound while the parent has no thread, no event loop and no ZeroMQ context, so the keeper never makes any. In the
child: the collector on, signals to default, output to its log, every inherited file descriptor closed but those named,
and SIGKILL from the kernel when the keeper dies.

A child keeps its copy of the parent's Python objects alive (it never returns from `fork`), because a finalizer of
theirs would close descriptors by number that by then belong to somebody else.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36
PARENT_GONE = 70
_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Orphans among our descendants become our children."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def name_process(name: str) -> None:
    """What `ps -o comm` and `top` show; the kernel keeps 15 characters."""
    _libc.prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """To be called in the child of `parent`, which must be single-threaded (the kernel means its forking thread)."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(PARENT_GONE)


def freeze() -> None:
    """After an import, before forks that want it."""
    gc.freeze()


def fork(body: Callable[[], int], *, name: str, log: Path, keep: Collection[int]) -> int:
    """Run `body` in a child whose exit code it returns; answers with the child's pid. `keep`: the descriptors that
    the child inherits. Raises OSError when there can be no further process."""
    parent = os.getpid()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _settle(parent, name, log, keep)
                code = body()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                with contextlib.suppress(OSError, ValueError):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(code)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _settle(parent: int, name: str, log: Path, keep: Collection[int]) -> None:
    die_with_parent(parent)
    gc.enable()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, output), (2, output)):
        os.dup2(source, target)
    first = 3
    for kept in sorted(keep):
        os.closerange(first, kept)
        first = kept + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))
    name_process(name)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
