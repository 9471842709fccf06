"""Calls to a group: which boot stubs are there (`discover`), and where the directory is (`find_directory`).

Theory of operation. Datagrams get lost, so a call is made CALLS times within the wait, each with a nonce of its own; an
answer to any of them counts, until the wait is over. Whoever answers twice counts once. At most MAX_ANSWERS are kept.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from deploy.discovery.group import Group, calling_socket
from deploy.discovery.words import (
    MAX_SPREAD_MS,
    DirectoryCall,
    DirectoryHere,
    HearingCounters,
    StubHere,
    StubsCall,
    WordCodec,
)
from deploy.records import MAX_STUBS_IN_DOMAIN, StubRecord
from fabric.wire import BadFrame
from zk.connect import parse

CALLS = 3
FEW_SPREAD_MS = 200
MAX_ANSWERS = MAX_STUBS_IN_DOMAIN


class NotFound(Exception):
    """Nobody told where the directory is."""


@dataclass(frozen=True, slots=True)
class Discovered:
    """`records`: by name; two of one name are two boot stubs that think it theirs."""

    records: tuple[StubRecord, ...]
    counters: HearingCounters


async def discover(group: Group, key: bytes, wait_s: float) -> Discovered:
    """The boot stubs that answered within `wait_s`. Raises OSError when this machine can't call there."""
    found: dict[tuple[str, str], StubRecord] = {}

    def take(word: object) -> bool:
        if not isinstance(word, StubHere) or not word.record.address or len(found) >= MAX_ANSWERS:
            return False
        found[word.record.name, word.record.guid] = word.record
        return True

    async with _Calling(group, key, StubsCall, wait_s, take) as calling:
        await calling.over()
    records = sorted(found.values(), key=lambda record: (record.name, record.guid))
    return Discovered(tuple(records), calling.counters)


async def find_directory(group: Group, key: bytes, wait_s: float) -> str:
    """The connect string that was told first. Raises NotFound, and OSError when this machine can't call there."""
    told: list[str] = []

    def take(word: object) -> bool:
        if not isinstance(word, DirectoryHere):
            return False
        try:
            parse(word.directory)
        except ValueError:
            return False
        told.append(word.directory)
        calling.enough.set()
        return True

    async with _Calling(group, key, DirectoryCall, wait_s, take) as calling:
        await calling.over()
    if not told:
        raise NotFound(
            f"nobody at {group} told where the directory is, within {wait_s:g} s "
            f"({calling.counters.heard} answers, of which none counts): say it with --directory, or have "
            "'fabric stub discover --every' run there"
        )
    return told[0]


class _Calling(asyncio.DatagramProtocol):
    """`take`: whether an answer to one of our calls is one that was asked for."""

    def __init__(
        self,
        group: Group,
        key: bytes,
        kind: type[StubsCall | DirectoryCall],
        wait_s: float,
        take: Callable[[object], bool],
    ) -> None:
        self.counters = HearingCounters()
        self._group = group
        self._codec = WordCodec(key)
        self._kind = kind
        self._wait_s = wait_s
        self._take = take
        self._nonces: set[str] = set()
        self._trouble: Exception | None = None
        self.enough = asyncio.Event()
        """No need to wait any longer."""

    async def __aenter__(self) -> _Calling:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=calling_socket(self._group))
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._transport.close()

    async def over(self) -> None:
        """Call, and wait until the time is over. Raises OSError."""
        apart_s = self._wait_s / CALLS
        for _ in range(CALLS):
            nonce = os.urandom(16).hex()
            self._nonces.add(nonce)
            # the last answer is on its way well before the end; of those who know the directory there are few
            spread_ms = min(MAX_SPREAD_MS if self._kind is StubsCall else FEW_SPREAD_MS, int(500 * apart_s))
            call = self._kind(nonce, time.time_ns() // 1_000_000, spread_ms)
            self._transport.sendto(self._codec.encode(call), (self._group.address, self._group.port))
            with suppress(TimeoutError):
                await asyncio.wait_for(self.enough.wait(), apart_s)
                return
            if self._trouble is not None and not self.counters.answered:
                raise OSError(f"can't call {self._group}: {self._trouble}") from self._trouble

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.counters.heard += 1
        try:
            word = self._codec.decode(data)
        except BadFrame as bad:
            self.counters.ignored[bad.cause] += 1
            return
        if not isinstance(word, StubHere | DirectoryHere):
            self.counters.ignored["other"] += 1
        elif word.nonce not in self._nonces:
            self.counters.ignored["replay"] += 1
        elif not self._take(word):
            self.counters.ignored["other"] += 1
        else:
            self.counters.answered += 1

    def error_received(self, exc: Exception) -> None:
        self._trouble = exc
