"""Faults on instances: their processes are killed, or stand still. By pid and start time, so nobody else is hit."""

from __future__ import annotations

import contextlib
import os
import signal

from fabric.chaos.script import Act
from fabric.chaos.stage import Skipped, Stage, Undo
from fabric.chaos.world import Running
from fabric.drivers.procfs import start_time


def end(stage: Stage, act: Act, names: tuple[str, ...]) -> Undo | None:
    """SIGKILL: the agent sees it exit, and starts it again by its restart policy."""
    _signal(stage, names, signal.SIGKILL)
    return None


def hang(stage: Stage, act: Act, names: tuple[str, ...]) -> Undo | None:
    """SIGSTOP: it does not answer TERM any more. Undone by SIGCONT, where it still is."""
    hit = _signal(stage, names, signal.SIGSTOP)

    def undo() -> None:
        for pid, started in hit:
            _send(pid, started, signal.SIGCONT)

    return undo


def _signal(stage: Stage, names: tuple[str, ...], number: int) -> list[tuple[int, int]]:
    """(pid, start time) of all processes that were signalled."""
    hit: list[tuple[int, int]] = []
    running: dict[Running, tuple[int, ...]] = dict(stage.watcher.running)
    for one, pids in running.items():
        if one.name in names:
            stage.watching.struck.add((one.pid, one.started))
            hit += [(pid, started) for pid in pids if (started := start_time(pid)) and _send(pid, started, number)]
    if not hit:
        raise Skipped(f"none of {', '.join(names)} runs any more")
    return hit


def _send(pid: int, started: int, number: int) -> bool:
    """Held by a pidfd while it is judged: a pid may be another's by now."""
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            if start_time(pid) == started:
                signal.pidfd_send_signal(handle, signal.Signals(number))
                return True
        finally:
            os.close(handle)
    return False
