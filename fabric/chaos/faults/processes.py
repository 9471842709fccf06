"""Faults on processes: agents, the API, ZooKeeper servers. All through the control socket, so by nobody's pid but the
keeper's own children's."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Mapping
from pathlib import Path

from fabric.chaos.script import Act
from fabric.chaos.stage import Skipped, Stage, Undo
from fabric.runtime import stepping
from fabric.runtime.stepping import Action, Armed, NodeFault

DRAG_S = 0.1
DRAG_WAIT_S = 15.0
STEP_ACTIONS: Mapping[str, Action] = {"kill": "kill", "stop": "stop", "restart": "term"}


def kill(stage: Stage, act: Act, names: tuple[str, ...]) -> Undo | None:
    """SIGKILL, to all at once; undone by starting them again."""
    hit = _signal_all(stage, names, signal.SIGKILL)

    def undo() -> None:
        for name in hit:
            stage.start_dead(name)

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


def clock(stage: Stage, act: Act, names: tuple[str, ...]) -> Undo | None:
    """The wall clock of an agent steps, and back. It looks at a file; so it must have been told to (faults=on)."""
    folder = _hooks(stage)
    for name in names:
        stepping.set_fault(folder, name, NodeFault(wall_offset_ms=int(1000 * act.option("by", 60.0))))

    def undo() -> None:
        for name in names:
            stepping.set_fault(folder, name, stepping.SOUND)

    return undo


def drag(stage: Stage, act: Act, names: tuple[str, ...]) -> Undo | None:
    """Stopped and set going again, many times a second, so that it runs for `share` of the time."""
    running_s = DRAG_S * act.option("share", 0.2)
    over = threading.Event()

    def work() -> None:
        with contextlib.suppress(Skipped):
            while not over.is_set():
                for name in names:
                    stage.send(name, signal.SIGSTOP)
                over.wait(DRAG_S - running_s)
                for name in names:
                    stage.send(name, signal.SIGCONT)
                over.wait(running_s)
        for name in names:  # who died meanwhile needs none
            with contextlib.suppress(Skipped):
                stage.send(name, signal.SIGCONT)

    thread = threading.Thread(target=work, name="drag", daemon=True)
    thread.start()

    def undo() -> None:
        over.set()
        thread.join(DRAG_WAIT_S)

    return undo


def arm(stage: Stage, act: Act, names: tuple[str, ...]) -> int:
    """Whoever of `names` (none: whoever) reaches the act's step first does it to himself. Returns the number by which
    `stepping.fired` tells of it. Raises Skipped."""
    try:
        return stepping.arm(_hooks(stage), Armed(act.step, names, STEP_ACTIONS[act.verb]))
    except (stepping.FaultError, OSError) as error:
        raise Skipped(str(error)) from None


def undo_fired(stage: Stage, verb: str, name: str) -> Undo:
    """What undoes an act that `name` did to himself."""

    def undo() -> None:
        if verb == "stop":
            stage.send(name, signal.SIGCONT)
            stage.back(name)
        else:
            stage.start_again(name)

    return undo


def _hooks(stage: Stage) -> Path:
    if not stage.state.spec.faults:
        raise Skipped("expected a fabric that was brought up with --faults (in a scenario: faults=on)")
    return stage.folder.faults
