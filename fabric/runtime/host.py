"""The host: one agent in the real world.

Theory of operation. Bus, tree, journal, driver, store and cache bring inputs; the role turns each into effects; the
gate performs these in order, none before what stands before it in the journal is on the disk. That is all: the host
decides nothing. Inputs come on the loop, one at a time, and no effect brings one while it is being performed. One timer
stands at (or before) the role's next deadline, which is asked for once after a burst of inputs: a leader's is a minimum
over all that it has under way.

Life. Open what is on the disk, journal first; write this start's guid into the journal, so that the next start knows
whose member znode it may take over; listen; start the role and tell it what was found (instances adopted, images held);
connect to ZooKeeper. It ends by `Quit` of the role, by a journal that can't be written, by an exception in the role,
which is a bug and no state to go on from, or by `leave`: then the role gives back what it has in ZooKeeper, and the
host goes as soon as that is answered. In every case the session is closed first, so that nobody waits for it to time
out; instances run on.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import socket
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from fabric.drivers.base import DriverError
from fabric.effects import CallTree, Effect, Input, Leave, Note, PeerLost, Quit, Received, Send, TreeDone
from fabric.gate import Gate
from fabric.images.errors import ImageError
from fabric.messages import AnyMessage
from fabric.roles.agent import Agent
from fabric.roles.settings import Identity
from fabric.runtime.bus import BindFailed, Bus, BusCounters, SocketContext
from fabric.runtime.compute import ComputeWorld
from fabric.runtime.journal import Journal, JournalError, Writer
from fabric.runtime.newer import NewerCodec, newer_op
from fabric.runtime.settings import EXIT_BUG, EXIT_FAILED, EXIT_OK, AgentConfig
from fabric.runtime.stepping import Stepping
from fabric.runtime.storage import StorageWorld
from fabric.wire import Codec
from zk.checks import where
from zk.connect import Unreachable
from zk.session_tree import SessionTree
from zk.tree import Outcome, SessionChanged, SessionExpired, SessionState, TreeError, TreeEvent

IDENTITY_KEY = "identity"
KEEP_GUIDS = 8
LEAVE_WAIT_S = 5.0
"""For the role to say Quit after Leave; then the host goes without."""
MIN_PAUSE_S = 0.001
"""Between two ticks, should a role's deadline stay in the past."""

_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_CANNOT = (JournalError, DriverError, BindFailed, ImageError, Unreachable, TreeError, OSError)


@dataclass(slots=True)
class HostCounters:
    """Since the start. `tree`: ZooKeeper operations by kind; `inputs` and `effects` by kind."""

    bus: BusCounters = field(default_factory=BusCounters)
    tree: dict[str, int] = field(default_factory=dict)
    inputs: Counter[str] = field(default_factory=Counter)
    effects: Counter[str] = field(default_factory=Counter)
    cut_journal_bytes: int = 0
    journal_compactions: int = 0
    waiting_effects: int = 0
    bugs: int = 0


@dataclass(frozen=True, slots=True)
class _InSession(CallTree):
    """An operation with the number of sessions that were lost when the role asked for it. The gate may hold it until
    the journal is on the disk, and what was meant for one session must not be done in the next."""

    lost: int


class AgentHost:
    """Make it on the loop; `run` it once. `context` and `writer` are the process's."""

    def __init__(
        self, config: AgentConfig, context: SocketContext, writer: Writer, rng: random.Random | None = None
    ) -> None:
        self.config = config
        self.agent: Agent | None = None
        self._context = context
        self._writer = writer
        self._rng = rng or random.Random()
        self._loop = asyncio.get_running_loop()
        self._log = logging.getLogger(f"fabric.agent.{config.node}")
        self._counters = HostCounters()
        self._ended: asyncio.Future[tuple[int, str]] = self._loop.create_future()
        self._leaving = False
        self._asked = 0  # tree operations without an answer
        self._lost = 0  # sessions
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0
        self._timer_due = False
        """`_set_timer` is on the loop."""
        self._bus: Bus[AnyMessage] | None = None
        self._tree: SessionTree | None = None
        self._journal: Journal | None = None
        self._gate: Gate[Effect] | None = None
        self._stepping = Stepping(config.faults, config.node) if config.faults is not None else None
        self._newer = self._stepping is not None and self._stepping.fault.newer
        self._world: ComputeWorld | StorageWorld = (
            ComputeWorld(config, self._take)
            if config.layer == "compute"
            else StorageWorld(config, self._take, self._stepping)
        )

    async def run(self) -> int:
        """Until the agent ends; returns the exit code, and has logged why if it is not EXIT_OK."""
        code, reason = EXIT_OK, ""
        try:
            async with AsyncExitStack() as stack:
                await self._open(stack)
                code, reason = await self._ended
        except _CANNOT as error:
            code, reason = EXIT_FAILED, str(error)
        if reason:
            self._log.error("%s", reason)
        self._log.debug("counters: %s", self.counters())
        return code

    def leave(self) -> None:
        """Give everything back and end, within LEAVE_WAIT_S and what closing takes."""
        if self._leaving or self._ended.done():
            return
        self._leaving = True
        if self.agent is None:
            self._end(EXIT_OK, "")
            return
        self._loop.call_later(LEAVE_WAIT_S, self._end, EXIT_OK, "")
        self._take(Leave())
        self._gone_if_answered()

    def counters(self) -> HostCounters:
        """A snapshot."""
        now = self._counters
        if self._bus is not None:
            now.bus = self._bus.counters
        if self._tree is not None:
            now.tree = self._tree.operations
        if self._journal is not None:
            now.cut_journal_bytes = self._journal.cut_bytes
            now.journal_compactions = self._journal.compactions
        now.waiting_effects = self._gate.waiting if self._gate is not None else 0
        return now

    @property
    def address(self) -> str:
        """Empty before it listens."""
        return self._bus.address if self._bus is not None else ""

    # --- the way up and down -----------------------------------------------------------------------------------------

    async def _open(self, stack: AsyncExitStack) -> None:
        config = self.config
        config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._journal = journal = Journal(config.state_dir / "journal", self._writer)
        stack.callback(journal.close)
        known = journal.load()
        if journal.cut_bytes:
            self._log.warning("%s: cut off %d bytes of a write that was not finished", journal.path, journal.cut_bytes)
        guid, previous = await self._name_this_start(journal, known)
        await self._world.open()
        stack.push_async_callback(self._world.close)
        bus = self._bus = Bus(
            self._context,
            (NewerCodec if self._newer else Codec)(config.cluster_key),
            guid,
            f"tcp://{config.listen}",
            on_message=self._on_message,
            on_lost=self._on_lost,
            advertise_host=config.advertise,
        )
        stack.callback(bus.close)
        identity = Identity(
            node=config.node,
            rack=config.rack,
            layer=config.layer,
            guid=guid,
            address=bus.address,
            total=config.total,
            driver=config.driver if config.layer == "compute" else "none",
            host=socket.gethostname(),
            pid=os.getpid(),
            data_endpoint=self._world.data_endpoint,
            previous=previous,
            managent=config.managent,
        )
        tree = self._tree = SessionTree(config.zookeeper, session_timeout_s=config.settings.session_timeout_s)
        stack.push_async_callback(tree.close)
        stack.callback(self._stop)
        self._gate = Gate(journal, self._perform, partial(self._end, EXIT_FAILED))
        known.pop(IDENTITY_KEY, None)
        self._log.info("agent of node %s, rack %s, layer %s at %s", config.node, config.rack, config.layer, bus.address)
        self._start(identity, known)
        tree.listen(self._on_tree_event)
        await self._connect(tree, first=not previous)

    async def _name_this_start(self, journal: Journal, known: dict[str, bytes]) -> tuple[str, tuple[str, ...]]:
        """(the guid of this start, those of earlier ones, the latest first); on the disk when this returns."""
        previous = msgspec.json.decode(known.get(IDENTITY_KEY, b"[]"), type=tuple[str, ...])[:KEEP_GUIDS]
        guid = os.urandom(8).hex()
        written: asyncio.Future[JournalError | None] = self._loop.create_future()
        journal.append([(IDENTITY_KEY, msgspec.json.encode([guid, *previous]))], (), written.set_result)
        error = await written
        if error is not None:
            raise error
        return guid, previous

    def _start(self, identity: Identity, known: dict[str, bytes]) -> None:
        assert self._gate is not None
        try:
            self.agent = Agent(identity, self.config.settings, self._rng, known)
            self._gate.put(self._stamped(self.agent.start(self._loop.time())))
            self._set_timer()
        except Exception as error:
            self._crash(error)
            return
        for found in self._world.first():
            self._take(found)

    async def _connect(self, tree: SessionTree, first: bool) -> None:
        """Returns when the session is there, or the agent has ended. At a node's `first` start the wait has an end, as
        the connect string may be wrong; later this is an outage, however long: the node's instances are looked after,
        and it goes on when ZooKeeper is back. Raises Unreachable, TreeError."""
        wait_s = self.config.zookeeper_wait_s if first else math.inf
        opening = self._loop.create_task(tree.open(wait_s, partial(self._log.warning, "%s")))
        either: list[asyncio.Future[Any]] = [opening, self._ended]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            opening.result()
        else:
            opening.cancel()
            with suppress(asyncio.CancelledError):
                await opening

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._gate is not None:
            self._gate.close()

    def _end(self, code: int, reason: str) -> None:
        if not self._ended.done():
            self._ended.set_result((code, reason))
            self._stop()

    def _crash(self, error: Exception) -> None:
        self._counters.bugs += 1
        self._log.error("a bug: the agent can't go on from here", exc_info=error)
        self._end(EXIT_BUG, f"ended by a bug ({type(error).__name__}: {error}); its traceback is above")

    # --- inputs ------------------------------------------------------------------------------------------------------

    def _take(self, news: Input) -> None:
        if self._ended.done() or self.agent is None or self._gate is None:
            return
        self._counters.inputs[type(news).__name__] += 1
        try:
            if self._stepping is not None:
                self._stepping.before(news)
            self._gate.put(self._stamped(self.agent.handle(self._loop.time(), self._wall_ms(), news)))
            if not self._timer_due:
                self._timer_due = True
                self._loop.call_soon(self._set_timer)
            if self._stepping is not None:
                self._stepping.after(news)
        except Exception as error:
            self._crash(error)

    def _tick(self) -> None:
        self._timer = None
        if self._ended.done() or self.agent is None or self._gate is None:
            return
        try:
            now = self._loop.time()
            deadline = self.agent.next_deadline()
            if deadline is not None and deadline <= now:
                self._gate.put(self._stamped(self.agent.tick(now, self._wall_ms())))
        except Exception as error:
            self._crash(error)
        self._set_timer()

    def _set_timer(self) -> None:
        """At the deadline, or where the timer stands, if that is sooner: looking in vain is cheaper than moving it."""
        self._timer_due = False
        if self._ended.done() or self.agent is None:
            return
        try:
            deadline = self.agent.next_deadline()
        except Exception as error:
            self._crash(error)
            return
        if deadline is None:
            return
        if self._timer is not None:
            if self._timer_at <= deadline:
                return
            self._timer.cancel()
        self._timer_at = max(deadline, self._loop.time() + MIN_PAUSE_S)
        self._timer = self._loop.call_at(self._timer_at, self._tick)

    def _on_message(self, sender: str, message: AnyMessage) -> None:
        self._take(Received(sender, message))

    def _on_lost(self, endpoint: str) -> None:
        self._take(PeerLost(endpoint))

    def _on_tree_event(self, event: TreeEvent) -> None:
        self._lost += isinstance(event, SessionChanged) and event.state is SessionState.LOST
        self._take(event)

    def _on_outcome(self, token: str, outcome: Outcome) -> None:
        self._asked -= 1
        self._take(TreeDone(token, outcome))
        self._gone_if_answered()

    def _gone_if_answered(self) -> None:
        """After Leave: what was to be given back is given back, so nothing is left to wait for."""
        if self._leaving and not self._asked and self._gate is not None and not self._gate.waiting:
            self._end(EXIT_OK, "")

    # --- effects -----------------------------------------------------------------------------------------------------

    def _stamped(self, effects: list[Effect]) -> list[Effect]:
        for index, one in enumerate(effects):
            if type(one) is CallTree:
                effects[index] = _InSession(one.token, one.op, self._lost)
        return effects

    def _perform(self, effect: Effect) -> None:
        if self._ended.done():
            return
        self._counters.effects[type(effect).__name__] += 1
        try:
            if self._stepping is not None:
                self._stepping.before(effect)
            match effect:
                case Send(to, message):
                    assert self._bus is not None
                    self._bus.send(to, message)
                case _InSession(token, op, lost):
                    assert self._tree is not None
                    self._asked += 1
                    if lost == self._lost:
                        self._tree.submit(newer_op(op) if self._newer else op, partial(self._on_outcome, token))
                    else:
                        self._loop.call_soon(self._on_outcome, token, SessionExpired(where(op)))
                case Note(level, text):
                    self._log.log(_LEVELS[level], "%s", text)
                case Quit(reason):
                    self._end(EXIT_FAILED if reason else EXIT_OK, reason)
                case _:
                    self._world.perform(effect)
            if self._stepping is not None:
                if self._tree is not None:
                    self._tree.flush()
                self._stepping.after(effect)
        except Exception as error:
            self._crash(error)

    def _wall_ms(self) -> int:
        now_ms = time.time_ns() // 1_000_000
        return now_ms if self._stepping is None else now_ms + self._stepping.fault.wall_offset_ms
