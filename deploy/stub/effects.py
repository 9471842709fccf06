"""What a boot stub's state machine asks the world to do, and what the world tells it.

Theory of operation. Carrying out a command is a row of *steps*, one at a time for each managent: the machine asks for
one (`Step`), the world does it in its own time, within bounds of its own, and says what came of it (`Stepped`). `job`
numbers the command, so that what comes too late is known as such. Effects are performed in order, and none before what
was persisted before it is on the disk (fabric.gate).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from deploy.configuration import Configuration
from deploy.hosting import InitiatorCharge
from deploy.messages import AdoptCall, AnyDeployMessage, BipCall, Charge, InspectCall, StubPing
from fabric.effects import Persist

if TYPE_CHECKING:
    from deploy.resolved import Resolved


class Run(msgspec.Struct, frozen=True):
    """What runs for a managent, for the journal. `kind` process: pid, start time in ticks since boot, and the boot's id
    make it unique; class: a Python object in the boot stub; none: an initiator alone. `what`: its start command, or its
    class, for people."""

    kind: Literal["process", "class", "none"]
    what: str = ""
    pid: int = 0
    ticks: int = 0
    boot: str = ""


# --- steps -----------------------------------------------------------------------------------------------------------


class Resolve(msgspec.Struct, frozen=True):
    """Steps 2 to 4: ask the repository, fetch. Ends in a `Resolved`."""

    path: str
    charge: Charge


class Load(msgspec.Struct, frozen=True):
    """Put the code into the managent's folder. `fresh`: which is emptied first. `told`: as for `Install`."""

    path: str
    resolved: Resolved
    fresh: bool
    told: str


class Install(msgspec.Struct, frozen=True):
    """Step 5: run the installation code. `told`: the start command that somebody told, "" for none: a code file that it
    names is the managent's program, and is not run now. Ends in `Installed`."""

    path: str
    parent: str
    resolved: Resolved
    told: str


class Code(msgspec.Struct, frozen=True, array_like=True):
    """A file in the managent's folder, to be executed; with `class_name`, a Python class in it, run in the boot
    stub."""

    file: str
    class_name: str = ""


class Installed(msgspec.Struct, frozen=True):
    """`start`: the start command that the installation code returned, "" for none. `undo`: code that wants to be run
    again to uninstall, in order of installation. `programs`: code that is the managent's own program."""

    start: str = ""
    undo: tuple[Code, ...] = ()
    programs: tuple[Code, ...] = ()


class Uninstall(msgspec.Struct, frozen=True):
    """Reverse all that the installation did; nothing of the managent is left. Ends in `Undone`."""

    path: str
    parent: str
    install: Configuration
    installed: Installed


class Undone(msgspec.Struct, frozen=True):
    """`note`: what the installation code's own uninstalling had to complain of, "" for nothing; everything of the
    managent's folder is gone all the same."""

    note: str = ""
    tail: tuple[str, ...] = ()


class Start(msgspec.Struct, frozen=True):
    """Step 6. Ends in a `Run`; the program is active then."""

    path: str
    parent: str
    managent: Configuration
    told: str
    installed: Installed


class Adopt(msgspec.Struct, frozen=True):
    """After a restart of the boot stub: find `run` again (a class is made anew). Ends in a `Run`."""

    path: str
    parent: str
    managent: Configuration
    installed: Installed
    run: Run
    active: bool


class Stop(msgspec.Struct, frozen=True):
    """End its program, whatever it does; there is nothing left of it then."""

    path: str
    stop_s: float


class Switch(msgspec.Struct, frozen=True):
    """BMP: activate, or deactivate; the program has acknowledged when this ends."""

    path: str
    active: bool


class HostInitiator(msgspec.Struct, frozen=True):
    """Make the initiator of this path, and activate it if so said."""

    path: str
    charge: InitiatorCharge
    active: bool


class SwitchInitiator(msgspec.Struct, frozen=True):
    path: str
    active: bool


class CloseInitiator(msgspec.Struct, frozen=True):
    path: str


Work = (
    Resolve
    | Load
    | Install
    | Uninstall
    | Start
    | Adopt
    | Stop
    | Switch
    | HostInitiator
    | SwitchInitiator
    | CloseInitiator
)


class Step(msgspec.Struct, frozen=True):
    """Do this, and say what came of it with the same `job`."""

    job: int
    work: Work


# --- other effects ---------------------------------------------------------------------------------------------------


class Send(msgspec.Struct, frozen=True):
    to: str
    message: AnyDeployMessage


class Charged(msgspec.Struct, frozen=True):
    """The parent of a hosted initiator is another one now, or was told a newer epoch."""

    path: str
    charge: InitiatorCharge


class Note(msgspec.Struct, frozen=True):
    """A line for the log."""

    level: Literal["debug", "info", "warning", "error"]
    text: str


Effect = Step | Send | Charged | Note | Persist


# --- inputs ----------------------------------------------------------------------------------------------------------


class Received(msgspec.Struct, frozen=True):
    """`sender`: answer there."""

    sender: str
    message: BipCall | InspectCall | AdoptCall | StubPing


class StepFailed(msgspec.Struct, frozen=True):
    """`silent`: the program did not answer. `final`: to try again is of no use, the description is wrong. `tail`: the
    last lines of the program's output. `undo`: of an installation that failed, the code that wants to be run to reverse
    it."""

    reason: str
    tail: tuple[str, ...] = ()
    silent: bool = False
    final: bool = False
    undo: tuple[Code, ...] = ()


class Stepped(msgspec.Struct, frozen=True):
    """`ms`: how long it took."""

    job: int
    result: Resolved | Installed | Undone | Run | StepFailed | None
    ms: int = 0


class Ended(msgspec.Struct, frozen=True):
    """What ran for this managent (`run`), or its initiator (None), ended by itself."""

    path: str
    run: Run | None
    reason: str
    tail: tuple[str, ...] = ()


Input = Received | Stepped | Ended
