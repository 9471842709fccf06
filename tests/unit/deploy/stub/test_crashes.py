"""kill -9 between every two effects of a boot stub: afterwards no process is there that it does not know, and none
twice; and the initiator, which repeats its call, gets the command done."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from deploy.states import Verb
from deploy.stub.effects import (
    Adopt,
    Effect,
    HostInitiator,
    Install,
    Load,
    Resolve,
    Run,
    Start,
    Step,
    StepFailed,
    Stepped,
    Stop,
    Uninstall,
    Work,
)
from tests.unit.deploy.stub.scene import INITIATOR, Scene, obliging, resolved

PATH = "/site/a"
WAYS: list[tuple[Verb, ...]] = [
    ("deploy",),
    ("deploy", "deactivate", "activate"),
    ("deploy", "restart"),
    ("deploy", "shutdown", "configure-managent", "start"),
    ("deploy", "shutdown", "uninstall", "deploy"),
    ("deploy", "shutdown", "configure-env", "deploy"),
    ("deploy", "shutdown", "uninstall"),
]


class Killed(Exception):
    pass


class Mortal(Scene):
    """A machine with processes and folders, whose boot stub is killed when `left` points are passed. Points are: before
    an effect, and between what a step did and what the boot stub hears of it."""

    def __init__(self, left: int, initiator: bool) -> None:
        self.left, self.initiator = left, initiator
        self.pids = count(1)
        self.processes: dict[int, str] = {}
        self.folders: set[str] = set()
        self.undone = 0
        super().__init__(self.does)

    def does(self, work: Work) -> Any:
        path = work.path
        match work:
            case Resolve() if self.initiator:
                return resolved(INITIATOR)
            case Load():
                self.folders.add(path)
            case Install() | HostInitiator():
                assert path in self.folders
            case Start():
                assert path in self.folders
                assert path not in self.processes.values(), "started twice"
                pid = next(self.pids)
                self.processes[pid] = path
                return Run("process", "./agent.sh", pid, pid, "boot")
            case Adopt(run=run):
                return run if run.pid in self.processes else StepFailed("its program ended while it was away")
            case Stop():
                self.processes = {pid: one for pid, one in self.processes.items() if one != path}
            case Uninstall():
                self.undone += 1
                assert path not in self.processes.values(), "uninstalled while it runs"
                self.folders.discard(path)
        return obliging(work)

    def point(self) -> None:
        self.left -= 1
        if not self.left:
            raise Killed

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            self.point()
            if isinstance(effect, Step):
                result = self.does(effect.work)
                self.point()
                self.perform(self.stub.handle(self.now, Stepped(effect.job, result, 5)))
            else:
                super().perform([effect])

    def restart(self) -> None:
        """As deploy.stub.host does: sweep, then take up again."""
        self.stub = self._boot()
        known = {one.run.pid for one in self.stub.managents.values() if one.run is not None}
        self.processes = {pid: path for pid, path in self.processes.items() if pid in known}
        self.folders &= set(self.stub.managents)
        self.perform(self.stub.start(self.now))
        assert {one.path for one in self.stub.managents.values() if one.run is not None} == set(self.processes.values())


@pytest.mark.parametrize("initiator", [False, True], ids=["leaf", "initiator"])
@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_a_boot_stub_may_be_killed_at_any_moment(way: tuple[Verb, ...], initiator: bool) -> None:
    for moment in count(1):
        here = Mortal(moment, initiator)
        killed = False
        for number, verb in enumerate(way):
            try:
                answer = here.command(verb, call=f"call {number}")
            except Killed:
                killed = True
                here.restart()
                answer = here.command(verb, call=f"call {number}")
            if answer.outcome == "refused":  # it was done, as far as it matters here, and the answer was not kept
                assert verb in ("shutdown", "restart", "deactivate", "activate")
                if answer.life == "configured" and verb != "shutdown":  # its program did not outlast the kill
                    assert here.command("start").outcome == "done"
            else:
                assert answer.outcome == "done", (moment, answer)
            running = sorted(here.processes.values())
            assert running == ([PATH] if here.stub.managents.get(PATH) and here.stub.managents[PATH].run else [])
        assert here.folders == (set() if way[-1] == "uninstall" else {PATH})
        assert not ("uninstall" in way and not here.undone)
        if not killed:
            assert moment > 8
            return
