"""Initiators that live in a boot stub: made, told, closed, and given their messages.

Theory of operation. An initiator is a managent whose configuration says so; the boot stub hosts the built-in one for
its path. Messages that name a path in `to` are its own. What an initiator raises is a bug of it: it is closed, its
managent counts as crashed, and its parent decides.
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
    """See deploy.hosting.InitiatorHome."""

    def __init__(
        self,
        address: str,
        send: Callable[[str, AnyDeployMessage], None],
        tree: Callable[[str], Awaitable[Tree]],
        log: logging.Logger,
    ) -> None:
        self._address, self._send, self._tree, self._log = address, send, tree, log
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


class Initiators:
    """`new` None: this boot stub hosts none. `ended` takes news of one that failed."""

    def __init__(
        self, home: Home, new: NewInitiator | None, ended: Callable[[Ended], None], log: logging.Logger
    ) -> None:
        self._home, self._new, self._ended, self._log = home, new, ended, log
        self._hosted: dict[str, HostedInitiator] = {}
        self.unknown: Counter[str] = Counter()
        """Messages for initiators that are not here, by kind."""

    async def host(self, path: str, charge: InitiatorCharge, active: bool) -> None:
        """Raises Trouble."""
        if self._new is None:
            raise Trouble("its configuration makes it an initiator, and this boot stub hosts none")
        try:
            hosted = self._new(self._home, charge)
            self._hosted[path] = hosted
            if active:
                hosted.activate()
        except Exception as error:
            self.close(path)
            self._log.error("initiator %s", path, exc_info=error)
            raise Trouble(f"initiator: {type(error).__name__}: {error}") from None

    async def switch(self, path: str, active: bool) -> None:
        """Raises Trouble."""
        hosted = self._hosted.get(path)
        if hosted is None:
            raise Trouble("its initiator is not there any more")
        self._guarded(path, hosted.activate if active else hosted.deactivate)

    def close(self, path: str) -> None:
        hosted = self._hosted.pop(path, None)
        if hosted is not None:
            try:
                hosted.close()
            except Exception as error:
                self._log.error("closing initiator %s", path, exc_info=error)

    def close_all(self) -> None:
        for path in list(self._hosted):
            self.close(path)

    def charged(self, path: str, charge: InitiatorCharge) -> None:
        hosted = self._hosted.get(path)
        if hosted is not None:
            self._guarded(path, lambda: hosted.charged(charge))

    def take(self, sender: str, message: ForInitiator) -> None:
        hosted = self._hosted.get(message.to)
        if hosted is None:
            self.unknown[type(message).__name__] += 1
        else:
            self._guarded(message.to, lambda: hosted.take(sender, message))

    def _guarded(self, path: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._log.error("initiator %s", path, exc_info=error)
            self.close(path)
            news = Ended(path, None, f"its initiator failed: {type(error).__name__}: {error}")
            self._home.loop.call_soon(self._ended, news)
