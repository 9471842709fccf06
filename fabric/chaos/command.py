"""`fabric chaos run`: a scenario against a fabric that is brought up for it, or against one that is up (`--dir`).

Every end takes down what was brought up: Ctrl-C, a run that fails, a promise that is broken. With `--keep` the folder's
logs are not lost: they are copied beside the history before the fabric is taken down.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

from fabric.chaos import mounts
from fabric.chaos.runner import DISK_VERBS, Run, RunFailed, capacity
from fabric.chaos.scorecard import Scorecard, show, unknown_figures
from fabric.chaos.script import Act, BadScript, Scenario
from fabric.chaos.watch import CannotLook
from fabric.chaos.writing import told
from fabric.local.control import ControlClient
from fabric.local.display import Stages, say
from fabric.local.folder import LOGS, Folder, passing_path
from fabric.local.front import Front
from fabric.local.interrupts import Interrupted, Interrupts
from fabric.local.spec import make_spec
from fabric.local.state import LocalSpec, LocalState
from fabric.net import namespaces

ROOM_BYTES = 2 << 30
FATAL_VERBS = frozenset({"kill", "restart", "tear", "rot"})
NOT_OWN = "only a fabric that is brought up for the run has disks of its own: leave out --dir"
_numbers = itertools.count(1)


def run(
    scenario: Scenario, folder: Path | None, as_json: bool, history: Path | None = None, keep: Path | None = None
) -> int:
    """The exit code: 0 only if all promises hold. `keep`: a folder that gets the logs. Raises BadScript, UpFailed,
    FolderError, NotEnded, ControlError, BadSpec."""
    logging.getLogger("fabric.zk.link").setLevel(logging.CRITICAL)  # what it would complain of is done on purpose
    with Interrupts() as interrupts:
        try:
            card = played(scenario, folder, interrupts, history, keep)
        except Interrupted as interrupted:
            say(f"{interrupted}: healed, and what was brought up is taken down")
            return interrupted.code
        except (RunFailed, CannotLook) as error:
            say(f"the run failed: {error}")
            return 1
    show(card, as_json)
    return 0 if card.holds else 1


def played(
    scenario: Scenario,
    folder: Path | None,
    interrupts: Interrupts,
    history: Path | None = None,
    keep: Path | None = None,
) -> Scorecard:
    """One run. Raises as `run` does, and RunFailed, CannotLook, Interrupted."""
    if names := unknown_figures(scenario.expects):
        raise BadScript(f"{scenario.name}: expected a figure of the scorecard, found {names[0]!r}")
    if folder is not None:
        there = Folder(folder.absolute())
        state = ControlClient(there).status()
        deployed = there.repository_url.exists()
        if deployed and not state.spec.restart and (fatal := [act for act in scenario.acts if _fatal(act)]):
            raise RunFailed(
                f"{told(fatal[0])}: expected a fabric whose agents are started again when they die (fabric up "
                f"--restart), found one in {folder} whose agents stay dead"
            )
        return _against(scenario, state, False, NOT_OWN, interrupts, history)
    scenario = _possible(scenario)
    wanted = any(act.verb in DISK_VERBS for act in scenario.acts)
    disks = mounts.leave() if wanted else ""
    front = Front(_spec(scenario))
    try:
        with mounts.guarded(front.folder.path) if wanted and not disks else contextlib.nullcontext():
            front.start()
            with Stages() as stages:
                state = front.wait_up(stages.report, interrupts)
            return _against(scenario, state, True, disks, interrupts, history)
    finally:
        if keep is not None and (front.folder.path / LOGS).exists():
            shutil.copytree(front.folder.path / LOGS, keep, dirs_exist_ok=True)
        front.stop()


def _fatal(act: Act) -> bool:
    """An agent may end by it."""
    return act.verb in FATAL_VERBS or bool(act.step)


def _possible(scenario: Scenario) -> Scenario:
    """With the network that can be had here."""
    if scenario.shape.network == "namespaces" and (why := namespaces.why_not()):
        say(f"proxies take the place of network namespaces: {why}")
        return replace(scenario, shape=replace(scenario.shape, network="proxy"))
    return scenario


def _against(
    scenario: Scenario, state: LocalState, own: bool, disks: str, interrupts: Interrupts, history: Path | None
) -> Scorecard:
    run = Run(scenario, state, own, interrupts, say, disks=disks, history=history)
    try:
        return run.play()
    finally:
        run.close()


def _spec(scenario: Scenario) -> LocalSpec:
    shape = scenario.shape
    return make_spec(
        folder=passing_path(f"chaos-{os.getpid()}-{next(_numbers)}", ROOM_BYTES),
        racks=shape.racks,
        compute=shape.compute,
        storage=shape.storage,
        session_timeout_s=shape.session,
        capacity=capacity(shape.vcpus),
        zookeepers=shape.zookeepers,
        network=shape.network,
        faults=shape.faults,
    )
