"""How each command of Table 1 is carried out: a row of steps, written as a generator.

Theory of operation. A procedure yields one piece of work at a time and gets its result back; a step that failed raises
`Failed` in it. Transitions are made where they happen, by the tables of deploy.states, so that a command that fails
half way leaves the states that were really reached. `COMMIT` makes the journal hold the managent as it is, before the
work after it begins.

The machine numbers the jobs, passes on what is yielded, and answers when the generator ends.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from deploy.configuration import Configuration
from deploy.messages import BipCall, Charge, Span
from deploy.records import Prints
from deploy.states import ALIVE, ENVIRONMENT, LIFE, EnvStep, LifeStep, Verb
from deploy.stub.effects import (
    Adopt,
    CloseInitiator,
    HostInitiator,
    Install,
    Installed,
    Load,
    Resolve,
    Run,
    Start,
    StepFailed,
    Stop,
    Switch,
    SwitchInitiator,
    Undone,
    Uninstall,
    Work,
)
from deploy.stub.managent import Managent

if TYPE_CHECKING:
    from deploy.resolved import Resolved

COMMIT: Literal["commit"] = "commit"

Steps = Generator[Work | Literal["commit"], Any, None]


class Failed(Exception):
    """A step did not succeed."""

    def __init__(self, failed: StepFailed) -> None:
        super().__init__(failed.reason)
        self.tail, self.silent, self.final, self.undo = failed.tail, failed.silent, failed.final, failed.undo


@dataclass(slots=True)
class Job:
    """One command under way. `call` None: the boot stub's own idea, as after a restart. `work`: what is being done now.
    `note`, `tail`: what to say of it though it is done."""

    number: int
    what: str
    steps: Steps
    call: BipCall | None = None
    sender: str = ""
    work: Work | None = None
    spans: list[Span] = field(default_factory=list)
    note: str = ""
    tail: tuple[str, ...] = ()


def begin(verb: Verb, managent: Managent, charge: Charge | None, job: Job) -> Steps:
    """The procedure of a command whose condition holds."""
    match verb:
        case "deploy":
            return _deploy(managent, _given(charge))
        case "configure-env":
            return _configure_env(managent, _given(charge))
        case "configure-managent":
            return _configure_managent(managent, _given(charge))
        case _:
            return _PLAIN[verb](managent, job)


def _given(charge: Charge | None) -> Charge:
    assert charge is not None
    return charge


# --- the environment ---------------------------------------------------------------------------------------------


def _deploy(managent: Managent, charge: Charge) -> Steps:
    resolved: Resolved = yield Resolve(managent.path, charge)
    told = told_start(charge, resolved.managent)
    if not resolved.code and not told and resolved.managent.initiator is None:
        reason = (
            f"no match at all: {charge.repository} has no code for managent {managent.path}, and neither a start "
            "command nor the role of an initiator"
        )
        raise Failed(StepFailed(reason, final=True))
    if managent.installed.undo and not managent.complete:  # of an earlier try
        yield Uninstall(managent.path, managent.parent.path, managent.install, managent.installed)
    yield Load(managent.path, resolved, not managent.complete, told)
    _env(managent, "load install code")
    managent.prints = Prints(code=resolved.prints.code)
    _configured_env(managent, resolved)
    try:
        managent.installed = yield Install(managent.path, managent.parent.path, resolved, told)
    except Failed as failed:
        managent.installed = Installed(undo=failed.undo)
        raise
    managent.complete = True
    _env(managent, "install")
    _life(managent, "deploy")
    _configured(managent, charge, resolved)
    yield from _start(managent)


def _configure_env(managent: Managent, charge: Charge) -> Steps:
    resolved: Resolved = yield Resolve(managent.path, charge)
    if managent.life != "non-existent":
        _life(managent, "remove")
    _configured_env(managent, resolved)


def _uninstall(managent: Managent, job: Job) -> Steps:
    if managent.env != "non-existent":
        managent.removing = True
        yield COMMIT
        try:
            undone: Undone = yield Uninstall(managent.path, managent.parent.path, managent.install, managent.installed)
        except Failed:  # what is left is no installation any more; a deployment or another try clears it away
            if managent.env == "installed":
                _life(managent, "remove")
                _env(managent, "configure")
            managent.installed, managent.complete = Installed(), False
            raise
        job.note, job.tail = undone.note, undone.tail
    _life(managent, "remove")
    _env(managent, "uninstall")
    managent.prints = Prints()
    managent.managent = managent.install = Configuration()
    managent.installed = Installed()


def _configured_env(managent: Managent, resolved: Resolved) -> None:
    managent.install = resolved.install
    managent.prints = Prints(code=managent.prints.code, install=resolved.prints.install)
    _env(managent, "configure")


# --- the managent ------------------------------------------------------------------------------------------------


def _configure_managent(managent: Managent, charge: Charge) -> Steps:
    resolved: Resolved = yield Resolve(managent.path, charge)
    told_start(charge, resolved.managent)
    _configured(managent, charge, resolved)


def _configured(managent: Managent, charge: Charge, resolved: Resolved) -> None:
    managent.managent, managent.charge = resolved.managent, charge
    have = managent.prints
    managent.prints = Prints(have.code, have.install, resolved.prints.managent)
    _life(managent, "configure")


def _start(managent: Managent, job: Job | None = None) -> Steps:
    assert managent.charge is not None
    told = told_start(managent.charge, managent.managent)
    run: Run = yield Start(managent.path, managent.parent.path, managent.managent, told, managent.installed)
    managent.run = run
    yield from _hosted(managent, run, True)
    _still_runs(managent)
    _life(managent, "start")
    managent.health, managent.reason = "ok", ""


def _hosted(managent: Managent, run: Run | None, active: bool) -> Steps:
    """The initiator that it is, if it is one. When none can be made the program ends too: it would be half of it, and
    nobody would know that it runs."""
    if managent.is_initiator:
        try:
            yield HostInitiator(managent.path, managent.initiator_charge(), active)
        except Failed:
            managent.run = None
            if run is not None and run.kind != "none":
                yield Stop(managent.path, managent.managent.program.stop_s)
            raise


def _shutdown(managent: Managent, job: Job | None = None) -> Steps:
    if managent.is_initiator:
        yield CloseInitiator(managent.path)
    if managent.run is not None and managent.run.kind != "none":
        yield Stop(managent.path, managent.managent.program.stop_s)
    managent.run = None
    if managent.life in ALIVE:  # it may have ended by itself meanwhile
        _life(managent, "shutdown")
    managent.health, managent.reason = "ok", ""


def _restart(managent: Managent, job: Job) -> Steps:
    yield from _shutdown(managent)
    yield from _start(managent)


def _activate(managent: Managent, job: Job) -> Steps:
    yield from _switched(managent, True)
    if managent.is_initiator:
        yield SwitchInitiator(managent.path, active=True)
    _still_runs(managent)
    _life(managent, "activate")


def _deactivate(managent: Managent, job: Job) -> Steps:
    """The initiator first: it begins nothing new while the program settles."""
    if managent.is_initiator:
        yield SwitchInitiator(managent.path, active=False)
    try:
        yield from _switched(managent, False)
    except Failed:
        if managent.is_initiator and managent.run is not None:
            yield SwitchInitiator(managent.path, active=True)
        raise
    _still_runs(managent)
    _life(managent, "deactivate")


def _switched(managent: Managent, active: bool) -> Steps:
    if managent.run is not None and managent.run.kind != "none":
        yield Switch(managent.path, active)
        _still_runs(managent)
        managent.health, managent.reason = "ok", ""


def _still_runs(managent: Managent) -> None:
    if managent.run is None:
        raise Failed(StepFailed(f"it ended meanwhile: {managent.reason}"))


_PLAIN: dict[str, Callable[[Managent, Job], Steps]] = {
    "uninstall": _uninstall,
    "start": _start,
    "shutdown": _shutdown,
    "restart": _restart,
    "activate": _activate,
    "deactivate": _deactivate,
}


# --- what a boot stub does by itself -----------------------------------------------------------------------------


def adopt(managent: Managent) -> Steps:
    """After a restart of the boot stub: what ran is found again, or it has ended."""
    active = managent.life == "active"
    if managent.run is not None and managent.run.kind != "none":
        managent.run = yield Adopt(
            managent.path, managent.parent.path, managent.managent, managent.installed, managent.run, active
        )
    yield from _hosted(managent, managent.run, active)


def lapse(managent: Managent, reason: str) -> Steps:
    """No word from the parent for the length of the lease."""
    yield from _shutdown(managent)
    managent.reason = reason


def lapsed_away(managent: Managent, reason: str) -> Steps:
    """The same, found after a restart of the boot stub: what runs is found first, to be ended."""
    if managent.run is not None and managent.run.kind != "none":
        managent.run = yield Adopt(
            managent.path, managent.parent.path, managent.managent, managent.installed, managent.run, False
        )
    yield from lapse(managent, reason)


def cleared(managent: Managent, had_run: Run) -> Steps:
    """After its program, or its initiator, ended by itself: the other one, and what the program left running, end
    too."""
    if managent.is_initiator:
        yield CloseInitiator(managent.path)
    if had_run.kind != "none":
        yield Stop(managent.path, managent.managent.program.stop_s)


def crashed(managent: Managent, reason: str) -> None:
    """Its program ended by itself: it is what it was before it was started."""
    managent.run = None
    if managent.life in ALIVE:
        _life(managent, "shutdown")
    managent.health, managent.reason = "crashed", reason


# --- transitions -------------------------------------------------------------------------------------------------


def _env(managent: Managent, step: EnvStep) -> None:
    managent.env = ENVIRONMENT[managent.env, step]


def _life(managent: Managent, step: LifeStep) -> None:
    managent.life = LIFE[managent.life, step]


def told_start(charge: Charge, managent: Configuration) -> str:
    """The start command that the initiator told, or the configuration. Raises Failed when they contradict each
    other."""
    told, configured = charge.start, managent.program.start
    if told and configured and told != configured:
        reason = (
            f"conflicting start commands: the initiator tells {told[:200]!r}, the configuration says "
            f"{configured[:200]!r}; take one of them away"
        )
        raise Failed(StepFailed(reason, final=True))
    return told or configured
