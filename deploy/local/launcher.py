"""Agents of a local fabric are forked by its keeper, which has imported all that they need: much cheaper than a new
interpreter each. Every other program is executed, as on any machine."""

from __future__ import annotations

import asyncio
import sys

from deploy.identity import name_of
from deploy.stub.launcher import Launcher, Program
from fabric.local.control import ControlClient, ControlError

AGENT = (sys.executable, "-m", "deploy.agent")


class KeeperLauncher(Launcher):
    def __init__(self, control: ControlClient, other: Launcher) -> None:
        self._control = control
        self._other = other

    async def start(self, program: Program) -> int:
        if tuple(program.argv[: len(AGENT)]) != AGENT:
            return await self._other.start(program)
        who, argv = name_of(program.managent), program.argv
        try:
            return await asyncio.to_thread(self._control.start, who, argv, program.env, str(program.cwd))
        except ControlError as error:
            raise OSError(f"the keeper of the local fabric did not start it: {error}") from None

    async def ended(self, pid: int) -> str:
        return await self._other.ended(pid)  # "" for one of the keeper's: nobody here can wait for it
