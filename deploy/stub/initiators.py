"""Initiators that live in a boot stub: made, told, closed, and given their messages.

Theory of operation. An initiator is a managent whose configuration says so; the boot stub hosts the built-in one for
its path. Messages that name a path in `to` are its own. One that fails by a bug says so itself (`failed`) and is not
asked again: its managent counts as crashed, and its parent decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable

from deploy.hosting import HostedInitiator, InitiatorCharge, NewInitiator
from deploy.messages import (
    AnyDeployMessage,
    BipAnswer,
    InspectAnswer,
    RolloutCall,
    StubBeat,
    SubtreeReport,
    TreeCall,
    TreePage,
)
from deploy.stub.effects import Ended
from deploy.stub.installer import Trouble
from zk.tree import Tree

ForInitiator = BipAnswer | InspectAnswer | RolloutCall | StubBeat | SubtreeReport | TreeCall | TreePage
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class Home:
    """See deploy.hosting.InitiatorHome. `failed` is called with (path, reason)."""

    def __init__(
        self,
        address: str,
        send: Callable[[str, AnyDeployMessage], None],
        tree: Callable[[str], Awaitable[Tree]],
        failed: Callable[[str, str], None],
        log: logging.Logger,
    ) -> None:
        self._address, self._send, self._tree, self._failed, self._log = address, send, tree, failed, log
        self._loop = asyncio.get_running_loop()

    @property
    def address(self) -> str:
        return self._address

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def send(self, to: str, message: AnyDeployMessage) -> None:
        self._send(to, message)

    async def tree(self, directory: str) -> Tree:
        return await self._tree(directory)

    def log(self, level: str, text: str) -> None:
        self._log.log(_LEVELS.get(level, logging.INFO), "%s", text)

    def failed(self, path: str, reason: str) -> None:
        self._failed(path, reason)


class Initiators:
    """`new` None: this boot stub hosts none. `ended` takes news of one that failed."""

    def __init__(
        self,
        address: str,
        send: Callable[[str, AnyDeployMessage], None],
        tree: Callable[[str], Awaitable[Tree]],
        new: NewInitiator | None,
        ended: Callable[[Ended], None],
        log: logging.Logger,
    ) -> None:
        self._home = Home(address, send, tree, self._failed, log)
        self._new, self._ended = new, ended
        self._hosted: dict[str, HostedInitiator] = {}
        self.unknown: Counter[str] = Counter()
        """Messages for initiators that are not here, by kind."""

    async def host(self, path: str, charge: InitiatorCharge, active: bool) -> None:
        """Raises Trouble."""
        if self._new is None:
            raise Trouble("its configuration makes it an initiator, and this boot stub hosts none")
        self._hosted[path] = self._new(self._home, charge)
        await self.switch(path, active)  # a passive one has children to answer for, too
        if path not in self._hosted:
            raise Trouble("its initiator failed at once: see the boot stub's log")

    async def switch(self, path: str, active: bool) -> None:
        """Raises Trouble."""
        hosted = self._hosted.get(path)
        if hosted is None:
            raise Trouble("its initiator is not there any more")
        if active:
            hosted.activate()
        else:
            hosted.deactivate()

    def close(self, path: str) -> None:
        hosted = self._hosted.pop(path, None)
        if hosted is not None:
            hosted.close()

    def close_all(self) -> None:
        for path in list(self._hosted):
            self.close(path)

    def charged(self, path: str, charge: InitiatorCharge) -> None:
        hosted = self._hosted.get(path)
        if hosted is not None:
            hosted.charged(charge)

    def take(self, sender: str, message: ForInitiator) -> None:
        hosted = self._hosted.get(message.to)
        if hosted is None:
            self.unknown[type(message).__name__] += 1
        else:
            hosted.take(sender, message)

    def _failed(self, path: str, reason: str) -> None:
        if self._hosted.pop(path, None) is not None:
            self._home.loop.call_soon(self._ended, Ended(path, None, f"its initiator failed: {reason}"))
