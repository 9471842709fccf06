"""Step hooks: a process that reaches an armed step does to itself what is armed there. Only with `fabric up --faults`.

Theory of operation. Everything is files in the fabric's folder, so that whoever tests needs no way into a process:

    faults/armed/<n>.json     an `Armed`: at this step, on one of these nodes, do this
    faults/fired/<n>.json     the same, claimed: a `Fired` with node, pid, time and subject
    faults/nodes/<node>.json  a `NodeFault`: what is wrong with this node as long as the file is there

The host shows `Stepping` each input and effect, before and after. The table (`fabric.steps`) says whether that is a
step; only then the folder of armed ones is looked at, by its time of change, so that nothing armed costs one stat a
step. Who reaches an armed step claims it by renaming its file from `armed` to `fired`, which one process alone can;
then it adds what it knows, and acts on itself: SIGKILL, SIGSTOP, SIGTERM, an exit without a word, or nothing. A message
that was sent just before, and is to have left, lies in ZeroMQ's thread: *after* a step it waits SETTLE_S. What is for
ZooKeeper the caller has written out before (`SessionTree.flush`).

A file's time of change has a grain of some milliseconds: a folder that was read within GRAIN_S of its last change is
read again.

Hosts (the loop) and the chunk server (its thread) call at the same time; that is no trouble: what they share is
replaced whole, and counts that miss one are of no weight.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from fabric.steps import BY_NAME, Moment, Step, by_kind

ARMED, FIRED, NODES = "armed", "fired", "nodes"
SETTLE_S = 0.03
GRAIN_S = 0.05
MAX_ARMED = 1000
EXIT_FAULT = 75

Action = Literal["kill", "stop", "term", "exit", "mark"]
"""SIGKILL, SIGSTOP, SIGTERM, an exit at once with EXIT_FAULT, nothing: that it was reached is all that is wanted."""
S = TypeVar("S", bound=msgspec.Struct)


class FaultError(Exception):
    """What can't be armed: what was expected, what was found."""


class Armed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`nodes`: who may be the one (the API is "api"); empty: whoever comes first. `after`: a process fires when it has
    reached the step so often."""

    step: str
    nodes: tuple[str, ...] = ()
    action: Action = "kill"
    after: int = 1


class Fired(msgspec.Struct, frozen=True):
    """`node` is empty for the moment between claim and deed. `about`: the deployment, instance or digest, or ""."""

    step: str
    action: Action
    number: int = 0
    node: str = ""
    pid: int = 0
    at_ms: int = 0
    about: str = ""


class NodeFault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`wall_offset_ms`: its clock is wrong by so much, from now on. `newer`: from its next start on it speaks as a
    later minor version of the protocol would, with fields that others do not know."""

    wall_offset_ms: int = 0
    newer: bool = False


SOUND = NodeFault()


# --- for who tests ---------------------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Make the folders of faults. Raises OSError."""
    for name in (ARMED, FIRED, NODES):
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)


def arm(folder: Path, armed: Armed) -> int:
    """Returns its number. Raises FaultError for a step that there is not, or a fabric without faults."""
    if armed.step not in BY_NAME:
        raise FaultError(f"expected a step, as `fabric chaos steps` lists them, found {armed.step!r}")
    if armed.after < 1:
        raise FaultError(f"{armed.step}: expected to act on the first time or a later one, found time {armed.after}")
    if not (folder / ARMED).is_dir():
        raise FaultError(f"expected {folder / ARMED} to be there: was this fabric brought up with --faults?")
    taken = [_number(name) for place in (ARMED, FIRED) for name in os.listdir(folder / place)]
    if len(taken) >= MAX_ARMED:
        raise FaultError(f"expected at most {MAX_ARMED} steps, armed or fired, found {len(taken)}: disarm them first")
    number = max(taken, default=0) + 1
    _write(folder / ARMED / f"{number}.json", msgspec.json.encode(armed))
    return number


def disarm(folder: Path, number: int) -> bool:
    """Whether it was still armed. What has fired stays to be read."""
    with contextlib.suppress(FileNotFoundError):
        (folder / ARMED / f"{number}.json").unlink()
        return True
    return False


def disarm_all(folder: Path) -> None:
    """Nothing is armed then, and what has fired is forgotten."""
    for place in (ARMED, FIRED):
        for name in os.listdir(folder / place):
            with contextlib.suppress(FileNotFoundError):
                (folder / place / name).unlink()


def fired(folder: Path) -> tuple[Fired, ...]:
    """All that have, by number."""
    numbers = sorted(filter(None, map(_number, os.listdir(folder / FIRED))))
    found = ((number, _read(folder / FIRED / f"{number}.json", Fired)) for number in numbers)
    return tuple(msgspec.structs.replace(one, number=number) for number, one in found if one is not None)


def set_fault(folder: Path, node: str, fault: NodeFault) -> None:
    """`SOUND` ends it. Raises OSError."""
    path = folder / NODES / f"{node}.json"
    if fault == SOUND:
        path.unlink(missing_ok=True)
    else:
        _write(path, msgspec.json.encode(fault))


def _number(name: str) -> int:
    stem = name.removesuffix(".json")
    return int(stem) if stem.isascii() and stem.isdecimal() else 0


def _write(path: Path, data: bytes) -> None:
    """Whole, or not at all."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_bytes(data)
    new.replace(path)


# --- in the process --------------------------------------------------------------------------------------------------


class _Watched:
    """A folder that is read again when it has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._changed_ns = -1
        self._read_ns = 0

    def changed(self) -> bool:
        """Whether it may have since this was last asked."""
        try:
            changed_ns = os.stat(self.path).st_mtime_ns
        except FileNotFoundError:
            changed_ns = 0
        if changed_ns == self._changed_ns and self._read_ns - changed_ns > GRAIN_S * 1e9:
            return False
        self._changed_ns, self._read_ns = changed_ns, time.time_ns()
        return True


class Stepping:
    """One agent's, or the API's. `folder`: the faults of its fabric. It never raises for what is in there."""

    def __init__(self, folder: Path, node: str) -> None:
        self.node = node
        self._folder = folder
        self._kinds: dict[Moment, dict[type, tuple[Step, ...]]] = {
            "before": by_kind("before"),
            "after": by_kind("after"),
        }
        self._armed: dict[str, tuple[tuple[int, Armed], ...]] = {}
        self._armed_folder = _Watched(folder / ARMED)
        self._times: Counter[int] = Counter()
        self._fault = SOUND
        self._fault_folder = _Watched(folder / NODES)

    def before(self, thing: object) -> None:
        """An input or effect that is about to be handled or performed. May not return."""
        self._reach("before", thing)

    def after(self, thing: object) -> None:
        """One that has been."""
        self._reach("after", thing)

    @property
    def fault(self) -> NodeFault:
        """What is wrong with this node now."""
        if self._fault_folder.changed():
            self._fault = _read(self._folder / NODES / f"{self.node}.json", NodeFault) or SOUND
        return self._fault

    def _reach(self, moment: Moment, thing: Any) -> None:
        kinds = self._kinds[moment]
        # A host's own subclass of an effect is that effect.
        for step in kinds.get(type(thing)) or kinds.get(type(thing).__mro__[1], ()):
            about = step.about(thing)
            if about is not None:
                self._fire(step, about)

    def _fire(self, step: Step, about: str) -> None:
        if self._armed_folder.changed():
            self._armed = self._look()
        for number, armed in self._armed.get(step.name, ()):
            if armed.nodes and self.node not in armed.nodes:
                continue
            self._times[number] += 1
            if self._times[number] >= armed.after and self._claim(number, armed, about):
                if step.moment == "after" and armed.action != "mark":
                    time.sleep(SETTLE_S)
                _act(armed.action)
                return

    def _look(self) -> dict[str, tuple[tuple[int, Armed], ...]]:
        found: dict[str, tuple[tuple[int, Armed], ...]] = {}
        with contextlib.suppress(FileNotFoundError):
            for number in sorted(filter(None, map(_number, os.listdir(self._folder / ARMED)))):
                armed = _read(self._folder / ARMED / f"{number}.json", Armed)
                if armed is not None:
                    found[armed.step] = (*found.get(armed.step, ()), (number, armed))
        return found

    def _claim(self, number: int, armed: Armed, about: str) -> bool:
        mine = self._folder / FIRED / f"{number}.json"
        try:
            os.rename(self._folder / ARMED / f"{number}.json", mine)
        except OSError:
            return False  # somebody else was first, or it was disarmed
        told = Fired(armed.step, armed.action, number, self.node, os.getpid(), time.time_ns() // 1_000_000, about)
        with contextlib.suppress(OSError):
            _write(mine, msgspec.json.encode(told))
        return True


def _read(path: Path, kind: type[S]) -> S | None:
    """None: there is none, or it is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError):
        return None


def _act(action: Action) -> None:
    match action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "term":
            os.kill(os.getpid(), signal.SIGTERM)
        case "exit":
            os._exit(EXIT_FAULT)
