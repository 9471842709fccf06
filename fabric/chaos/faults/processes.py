"""Faults on processes: agents, the API, ZooKeeper servers. All through the control socket, so by nobody's pid but the
keeper's own children's."""

from __future__ import annotations

import signal

from fabric.chaos.script import Act
from fabric.chaos.stage import Skipped, Stage, Undo


def kill(stage: Stage, act: Act, names: tuple[str, ...]) -> Undo | None:
    """SIGKILL, to all at once; undone by starting them again."""
    hit = _signal_all(stage, names, signal.SIGKILL)

    def undo() -> None:
        for name in hit:
            if name in stage.held or name not in {node.name for node in stage.nodes}:
                stage.start_again(name)

    return undo


def stop(stage: Stage, act: Act, names: tuple[str, ...]) -> Undo | None:
    """SIGSTOP; undone by SIGCONT. Who was killed meanwhile needs none."""
    hit = _signal_all(stage, names, signal.SIGSTOP)

    def undo() -> None:
        for name in hit:
            try:
                stage.send(name, signal.SIGCONT)
            except Skipped:
                continue
            stage.back(name)

    return undo


def restart(stage: Stage, act: Act, names: tuple[str, ...]) -> Undo | None:
    """TERM, and a new process; nothing to undo."""
    for name in names:
        stage.hit(name)
        stage.start_again(name)
    return None


def _signal_all(stage: Stage, names: tuple[str, ...], number: int) -> list[str]:
    """Those that got it. Raises Skipped when none did."""
    hit: list[str] = []
    why = ""
    for name in names:
        try:
            stage.send(name, number)
        except Skipped as error:
            why = str(error)
            continue
        stage.hit(name)
        hit.append(name)
    if not hit:
        raise Skipped(why)
    return hit
