"""What carries out the steps of a boot stub's state machine: resolver, installer, programs, initiators.

A step ends in one `Stepped`, whatever happens: what a step's own code raises on purpose becomes `StepFailed`; anything
else is a bug, which is logged and costs the command, not the boot stub. Each step is a task of its own, but for those
that are asked for while the one before them is being told: they go on in its task, as most steps of a command do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from deploy.resolved import Resolver, Unresolved
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
    Step,
    StepFailed,
    Stepped,
    Stop,
    Switch,
    SwitchInitiator,
    Undone,
    Uninstall,
    Work,
)
from deploy.stub.initiators import Initiators
from deploy.stub.installer import Installer, Trouble
from deploy.stub.programs import Programs

if TYPE_CHECKING:
    from deploy.resolved import Resolved

CLOSE_WAIT_S = 5.0


class World:
    """`emit` takes the results, on the loop."""

    def __init__(
        self,
        resolver: Resolver,
        resolve_s: float,
        installer: Installer,
        programs: Programs,
        initiators: Initiators,
        emit: Callable[[Stepped], None],
        log: logging.Logger,
    ) -> None:
        self._resolver, self._resolve_s = resolver, resolve_s
        self._installer, self._programs, self._initiators = installer, programs, initiators
        self._emit, self._log = emit, log
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._telling = 0
        """The job whose step is being told, or 0."""
        self._next: Step | None = None

    def perform(self, step: Step) -> None:
        if step.job == self._telling:
            self._next = step
            return
        task = self._loop.create_task(self._run(step))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up what is under way; installations that run are killed."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_WAIT_S)

    async def _run(self, first: Step) -> None:
        step: Step | None = first
        while step is not None:
            began = self._loop.time()
            result = await self._result(step.work)
            told = Stepped(step.job, result, round((self._loop.time() - began) * 1000))
            self._telling, self._next = step.job, None
            try:
                self._emit(told)
            finally:
                step, self._telling, self._next = self._next, 0, None

    async def _result(self, work: Work) -> Resolved | Installed | Undone | Run | StepFailed | None:
        try:
            return await self._do(work)
        except Trouble as trouble:
            return trouble.failed
        except Unresolved as error:
            return StepFailed(str(error), final=not error.again)
        except Exception as error:
            self._log.error("a bug in %s of %s", type(work).__name__, work.path, exc_info=error)
            return StepFailed(f"a bug of the boot stub: {type(error).__name__}: {error}")

    async def _do(self, work: Work) -> Resolved | Installed | Undone | Run | None:
        match work:
            case Resolve(path, charge):
                try:
                    async with asyncio.timeout(self._resolve_s):
                        return await self._resolver.resolve(path, charge)
                except TimeoutError:
                    reason = f"repository {charge.repository}: expected an answer within {self._resolve_s:g} s"
                    raise Unresolved(reason, again=True) from None
            case Load():
                await self._installer.load(work)
            case Install():
                return await self._installer.install(work)
            case Uninstall():
                return await self._installer.uninstall(work)
            case Start():
                return await self._programs.start(work)
            case Adopt():
                return await self._programs.adopt(work)
            case Stop(path, stop_s):
                await self._programs.stop(path, stop_s)
            case Switch(path, active):
                await self._programs.switch(path, active)
            case HostInitiator(path, charge, active):
                await self._initiators.host(path, charge, active)
            case SwitchInitiator(path, active):
                await self._initiators.switch(path, active)
            case CloseInitiator(path):
                self._initiators.close(path)
        return None
