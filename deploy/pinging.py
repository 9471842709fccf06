"""Asking a boot stub whether it is there: a bus of one's own, and a question that is repeated until it is answered.

For commands, and for a directory that two machines claim one name in. It asks as a parent of nothing, so no lease is
kept alive by it.
"""

from __future__ import annotations

import asyncio
import secrets

from deploy.identity import TOP
from deploy.messages import AnyDeployMessage, Parent, StubBeat, StubPing, deploy_codec
from fabric.runtime.bus import Bus, SocketContext
from fabric.traffic import parse_address

REPEAT_S = 0.5


class Pinger:
    """Made and used on the loop; `close` it. Raises fabric.traffic.BindFailed."""

    def __init__(self, context: SocketContext, key: bytes | None, bind: str) -> None:
        self._bus: Bus[AnyDeployMessage] = Bus(
            context, deploy_codec(key), secrets.token_hex(16), bind, on_message=self._take
        )
        self._waiting: dict[str, list[asyncio.Future[StubBeat]]] = {}  # by the incarnation that is asked

    def close(self) -> None:
        self._bus.close()

    async def ping(self, address: str, wait_s: float, parent: str = TOP) -> StubBeat | None:
        """What the boot stub at `address` says of itself, and of what it has of `parent`'s children; None when that
        very incarnation did not answer in time."""
        parsed = parse_address(address)
        if parsed is None:
            return None
        guid = parsed[1]
        answer: asyncio.Future[StubBeat] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(guid, []).append(answer)
        question = StubPing(secrets.token_hex(8), Parent(parent, self._bus.address))
        try:
            async with asyncio.timeout(wait_s):
                while not answer.done():
                    self._bus.send(address, question)
                    await asyncio.wait([answer], timeout=REPEAT_S)
            return answer.result()
        except TimeoutError:
            return None
        finally:
            self._waiting[guid].remove(answer)
            if not self._waiting[guid]:
                del self._waiting[guid]

    def _take(self, sender: str, message: AnyDeployMessage) -> None:
        if isinstance(message, StubBeat) and message.whole:
            for answer in self._waiting.get(message.guid, ()):
                if not answer.done():
                    answer.set_result(message)
