"""Answers calls to a group, as long as it is open: a boot stub's record, where the directory is, or both.

    listener = Listener(group, key, record=lambda: record, directory="192.0.2.1:2181")
    await listener.open()
    ...
    listener.close()

What it hears and what it says is `words.Ears`; here are the socket and the moment of the answer, which is drawn from
the time that the caller allows. At most MAX_PENDING answers wait for their moment.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

from deploy.discovery.group import Group, listening_socket
from deploy.discovery.words import Ears, HearingCounters
from deploy.records import StubRecord

MAX_PENDING = 64

log = logging.getLogger("deploy.discovery")


class Listener(asyncio.DatagramProtocol):
    def __init__(
        self,
        group: Group,
        key: bytes,
        *,
        record: Callable[[], StubRecord | None] = lambda: None,
        directory: str = "",
        rng: random.Random | None = None,
    ) -> None:
        self.group = group
        self._ears = Ears(key, record, directory)
        self._rng = rng or random.Random()
        self._transport: asyncio.DatagramTransport | None = None
        self._answers = 0
        self._pending: dict[int, asyncio.TimerHandle] = {}
        self._said: set[str] = set()

    @property
    def counters(self) -> HearingCounters:
        return self._ears.counters

    async def open(self) -> None:
        """Raises OSError, when there is no such interface on this machine."""
        self._loop = asyncio.get_running_loop()
        self._transport, _ = await self._loop.create_datagram_endpoint(lambda: self, sock=listening_socket(self.group))

    def close(self) -> None:
        for timer in self._pending.values():
            timer.cancel()
        self._pending.clear()
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        try:
            reply = self._ears.hear(self._loop.time(), time.time_ns() // 1_000_000, data)
        except ValueError as error:
            self._say_once("large", f"what this boot stub has to say does not fit: {error}")
            return
        if self.counters.ignored["age"]:
            self._say_once(
                "age", f"a call to {self.group} from {addr[0]} is old: their clock and ours differ, or it is a replay"
            )
        if reply is None or len(self._pending) >= MAX_PENDING:
            return
        number = self._answers = self._answers + 1
        after_s = self._rng.uniform(0, reply.within_s)
        self._pending[number] = self._loop.call_later(after_s, self._send, number, reply.data, addr)

    def _send(self, number: int, data: bytes, to: tuple[str, int]) -> None:
        del self._pending[number]
        if self._transport is not None:
            self._transport.sendto(data, to)

    def error_received(self, exc: Exception) -> None:
        """Nobody is where an answer went; that is theirs to know."""

    def _say_once(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            log.warning("%s", text)
