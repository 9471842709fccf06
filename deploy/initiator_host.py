"""The two homes of initiators: a boot stub, which hosts any number for others, and a program that is the top itself.

    new_initiator(settings)    what a boot stub makes them with (deploy.hosting.NewInitiator)
    TopHost                    one top initiator, with a bus of its own, and what a program awaits of it

Theory of operation. How an initiator is hosted is deploy.hosted's; here is by whom. `TopHost` is both home and host of
one initiator: it sends over its bus, takes what comes there for the top, and turns the top's reports into the ends of
`start`, `roll` and `order`. Each of these ends with what was asked for, or with why it can't be; a roll may take long.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
from collections.abc import Callable
from typing import Any

import msgspec

from deploy.configuration import InitiatorRole
from deploy.directory import Fenced
from deploy.hosted import Hosted, MakeMachine, News
from deploy.hosting import InitiatorCharge, NewInitiator
from deploy.identity import TOP
from deploy.initiator.effects import Claimed, Gathered, Order, Progress, Roll, Settled
from deploy.initiator.initiator import Initiator
from deploy.messages import AnyDeployMessage, Charge, Counts, Entry, Parent, Problem, Rollout, What, deploy_codec
from deploy.patterns import CommandPattern
from deploy.records import StubRef
from deploy.settings import Settings
from fabric.runtime.bus import Bus, SocketContext
from zk.tree import Tree

LAST_WORD_S = 10.0
"""After the wait that an order was given, for its last page."""
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

OnCounts = Callable[[Counts, tuple[Problem, ...]], None]
Say = Callable[[str, str], None]
"""(level, text); as InitiatorHome.log."""

log = logging.getLogger("deploy.initiator")


class InitiatorFailed(Exception):
    """A bug ended the top initiator: which, where it is in the log."""


def built_in(settings: Settings | None = None) -> MakeMachine:
    """The initiator that comes with this package."""
    limits = settings or Settings()
    return lambda charge, address, guid: Initiator(charge, address, guid, limits, CommandPattern)


def new_initiator(settings: Settings | None = None) -> NewInitiator:
    """For boot stubs."""
    make = built_in(settings)
    return lambda home, charge: Hosted(home, charge, make)


class TopHost:
    """The top initiator in this process, over its own bus and the session `tree`. Made on the loop; `close` it. Raises
    fabric.traffic.BindFailed. Also the home (InitiatorHome) of its one initiator."""

    def __init__(
        self,
        context: SocketContext,
        key: bytes | None,
        bind: str,
        tree: Tree,
        make: MakeMachine | None = None,
    ) -> None:
        self.guid = secrets.token_hex(16)
        self.loop = asyncio.get_running_loop()
        self._tree = tree
        self._make = make or built_in()
        self._bus: Bus[AnyDeployMessage] = Bus(context, deploy_codec(key), self.guid, bind, on_message=self._heard)
        self._hosted: Hosted | None = None
        self._starting: asyncio.Future[None] | None = None
        self._rolling: tuple[str, int, asyncio.Future[Settled]] | None = None
        self._on_progress: OnCounts | None = None
        self._say: Say | None = None
        self._on_counts: OnCounts | None = None
        self._orders: dict[str, tuple[list[Entry], asyncio.Future[None]]] = {}
        self.over: Exception | None = None
        """Why it does nothing any more."""

    def watched(self, say: Say, on_counts: OnCounts) -> None:
        """From now on `say` hears what goes on, instead of the log, and `on_counts` what changes while nobody rolls."""
        self._say, self._on_counts = say, on_counts

    async def start(self, role: InitiatorRole, charge: Charge) -> None:
        """Returns when it has its table. Raises what kept it from that: BadRecord, TreeError, InitiatorFailed."""
        mine = InitiatorCharge(TOP, Parent(TOP, self.address), 0, 0, role, charge)
        self._starting = self.loop.create_future()
        self._charge = mine
        self._hosted = Hosted(self, mine, self._make, report=self._told)
        self._hosted.activate()
        await self._starting

    def spread(self, domain: tuple[StubRef, ...]) -> None:
        """The boot stubs on which it may deploy are these now."""
        assert self._hosted is not None, "not started"
        charge = msgspec.structs.replace(self._charge.charge, domain=domain)
        self._charge = dataclasses.replace(self._charge, charge=charge)
        self._hosted.charged(self._charge)

    def begin(self, rollout: Rollout) -> None:
        """As `roll`, without waiting. Raises Fenced, InitiatorFailed."""
        self._give(Roll(rollout))

    async def roll(self, rollout: Rollout, on_progress: OnCounts) -> Settled:
        """Bring it about; returns when everything up to its `until` has its final outcome. One at a time. Raises Fenced
        when another top has claimed the table, InitiatorFailed, and what `on_progress` raised."""
        settled: asyncio.Future[Settled] = self.loop.create_future()
        self._rolling, self._on_progress = (rollout.id, rollout.seq, settled), on_progress
        try:
            self._give(Roll(rollout))
            return await settled
        finally:
            self._rolling = self._on_progress = None

    async def order(self, pattern: str, what: What, wait_s: float) -> list[Entry]:
        """What came of it within `wait_s` and a little. Raises Fenced, InitiatorFailed."""
        call = secrets.token_hex(8)
        entries, ended = self._orders[call] = [], self.loop.create_future()
        try:
            self._give(Order(call, pattern, what, wait_s))
            await asyncio.wait([ended], timeout=wait_s + LAST_WORD_S)
            if ended.done():
                ended.result()
            return entries
        finally:
            del self._orders[call]

    def close(self) -> None:
        if self._hosted is not None:
            self._hosted.close()
        self._bus.close()

    def _give(self, given: Roll | Order) -> None:
        if self.over is not None:
            raise self.over
        assert self._hosted is not None, "not started"
        self._hosted.give(given)

    def _heard(self, sender: str, message: AnyDeployMessage) -> None:
        if self._hosted is not None and getattr(message, "to", None) == TOP:
            self._hosted.take(sender, message)

    def _told(self, news: News) -> None:
        match news:
            case (Progress(_, _, counts, problems) | Settled(_, _, counts, problems)) if self._rolling is None:
                if self._on_counts is not None:
                    self._on_counts(counts, problems)
            case Progress(_, _, counts, problems):
                if self._rolling is not None and self._on_progress is not None:
                    try:
                        self._on_progress(counts, problems)
                    except Exception as error:  # the caller's, and not the initiator's, who must not end by it
                        _resolve(self._rolling[2], error)
            case Settled(rollout, seq):
                if self._rolling is not None and self._rolling[:2] == (rollout, seq):
                    _resolve(self._rolling[2], news)
            case Gathered(call, entries, last):
                if (order := self._orders.get(call)) is not None:
                    order[0].extend(entries)
                    if last:
                        _resolve(order[1], None)
            case Claimed():
                if self._starting is not None:
                    _resolve(self._starting, None)
            case Fenced():
                self._end(news)
            case Exception():
                if self._starting is not None:
                    _resolve(self._starting, news)

    def _end(self, error: Exception) -> None:
        """It does nothing any more: whoever waits for it hears why."""
        self.over = error
        waiting = [self._starting, self._rolling and self._rolling[2], *(ended for _, ended in self._orders.values())]
        for one in waiting:
            if one is not None:
                _resolve(one, error)

    # --- InitiatorHome --------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        return self._bus.address

    def send(self, to: str, message: AnyDeployMessage) -> None:
        self._bus.send(to, message)

    async def tree(self, directory: str) -> Tree:
        """Whatever its charge calls it, a top has one directory: the one that it was made with."""
        return self._tree

    def log(self, level: str, text: str) -> None:
        if self._say is not None:
            self._say(level, text)
        else:
            log.log(_LEVELS[level], "%s", text)

    def failed(self, path: str, reason: str) -> None:
        self._end(InitiatorFailed(f"the top initiator ended by a bug, see the log: {reason}"))


def _resolve(future: asyncio.Future[Any], result: object) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
