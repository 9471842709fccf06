"""Asking a top initiator in another process, or a boot stub: a bus of its own, and a call that is repeated until it is
answered; a top answers in pages, which are put together.

One top works at a time (deploy.top_lock). While somebody's rollout is under way, everybody else's questions and orders
go through that top.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from deploy.gathering import Gathering
from deploy.identity import TOP
from deploy.messages import AnyDeployMessage, BipAnswer, BipCall, Parent, TreeCall, TreePage, What, deploy_codec
from fabric.runtime.bus import Bus, SocketContext

REPEAT_S = 1.0
LAST_WORD_S = 5.0
"""After the wait that the tree was given, for its answer to arrive."""


class Asker:
    """Made and used on the loop; `close` it."""

    def __init__(self, context: SocketContext, key: bytes | None, bind: str) -> None:
        self._bus: Bus[AnyDeployMessage] = Bus(
            context, deploy_codec(key), secrets.token_hex(16), bind, on_message=self._take
        )
        self._gatherings: dict[str, tuple[Gathering, asyncio.Event]] = {}
        self._commands: dict[str, asyncio.Future[BipAnswer]] = {}

    @property
    def parent(self) -> Parent:
        return Parent(TOP, self._bus.address)

    def close(self) -> None:
        self._bus.close()

    async def gather(self, top: str, pattern: str, what: What, wait_s: float) -> Gathering:
        """Ask the top initiator at address `top`; returns after `wait_s` and a little at the latest, with what came."""
        gathering, news = Gathering(secrets.token_hex(8)), asyncio.Event()
        loop = asyncio.get_running_loop()
        give_up = loop.time() + wait_s + LAST_WORD_S
        self._gatherings[gathering.call] = gathering, news
        try:
            while not gathering.whole and loop.time() < give_up:
                self._bus.send(
                    top,
                    TreeCall(gathering.call, TOP, self.parent, pattern, what, int(wait_s * 1000), gathering.have),
                )
                await self._news(news, lambda: gathering.whole, give_up)
        finally:
            del self._gatherings[gathering.call]
        return gathering

    async def command(self, stub: str, call: BipCall, wait_s: float) -> BipAnswer | None:
        """Have the boot stub at address `stub` do something; None when it has not said after `wait_s` what came of
        it."""
        answer: asyncio.Future[BipAnswer] = asyncio.get_running_loop().create_future()
        self._commands[call.call] = answer
        try:
            async with asyncio.timeout(wait_s):
                while not answer.done():
                    self._bus.send(stub, call)
                    await asyncio.wait([answer], timeout=REPEAT_S)
            return answer.result()
        except TimeoutError:
            return None
        finally:
            del self._commands[call.call]

    async def _news(self, news: asyncio.Event, enough: Callable[[], bool], give_up: float) -> None:
        """Returns when it is enough, when nothing new came for REPEAT_S, or at `give_up`."""
        loop = asyncio.get_running_loop()
        while not enough() and loop.time() < give_up:
            news.clear()
            try:
                async with asyncio.timeout_at(min(loop.time() + REPEAT_S, give_up)):
                    await news.wait()
            except TimeoutError:
                return

    def _take(self, sender: str, message: AnyDeployMessage) -> None:
        if isinstance(message, TreePage):
            found = self._gatherings.get(message.call)
            if found is not None and found[0].take(message):
                found[1].set()
        elif isinstance(message, BipAnswer) and message.outcome != "running":
            waiting = self._commands.get(message.call)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
