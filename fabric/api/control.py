"""The API's hands in the fabric: performs the effects of the `Client` role, and offers its requests as coroutines.

Theory of operation. One ZooKeeper session and one bus socket, all on the loop. What they bring goes into the role
(`Client.handle`), what the role asks for is performed at once and in order, and one timer stands at the role's next
deadline. A request is a future that the role's `done` resolves; the role ends every request by its deadline, so a
future here can't hang while the loop runs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, TypeVar

import zmq

from fabric.api.latest import Latest
from fabric.api.noting import NodeNotes
from fabric.api.problems import unavailable
from fabric.api.reading import Versioned
from fabric.api.settings import ApiConfig
from fabric.api.stepped import SteppedTree
from fabric.api.store import Store
from fabric.api.watches import Watches
from fabric.commands import Answer, Command
from fabric.effects import CallTree, Effect, Input, Note, Received, Send, TreeDone
from fabric.messages import AnyMessage, Holders, NodeCommand, RecordNews
from fabric.records import Deployment, LayerName
from fabric.roles.calls import Gathered
from fabric.roles.client import Client, Statuses
from fabric.roles.client_asks import Answered
from fabric.roles.leaders import Seen
from fabric.runtime.bus import Bus, SocketContext
from fabric.runtime.newer import NewerCodec
from fabric.runtime.stepping import Stepping
from fabric.wire import Codec
from zk.client import TreeClient
from zk.session_tree import SessionTree
from zk.tree import Outcome, SessionState, TreeEvent

T = TypeVar("T")
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_log = logging.getLogger("fabric.api")
API = "api"
"""Its name among those that can have faults."""
CONTEXT_WAIT_S = 2.0
MARGIN_S = 0.5
"""For a role's answer beyond its own deadline, so that no future waits for ever should the role be wrong."""


class ControlPlane:
    """Make it on the loop, `open` it, `close` it. `wall_ms` is the only clock that users see."""

    def __init__(self, config: ApiConfig, rng: random.Random | None = None) -> None:
        self.config = config
        self.limits = config.limits
        self.rng = rng or random.Random()
        self.guid = os.urandom(8).hex()
        self.tree = SessionTree(config.zookeeper, session_timeout_s=config.session_timeout_s)
        self._stepping = Stepping(config.faults, API) if config.faults is not None else None
        self._newer = self._stepping is not None and self._stepping.fault.newer
        client = TreeClient(SteppedTree(self.tree, self._stepping, self._newer) if self._stepping else self.tree)
        self.store = Store(client, config.limits, self.rng)
        self.notes = NodeNotes(client, config.limits, self.rng)
        self.client = Client(self.guid, config.settings, self.rng)
        self.watches = Watches(config.limits.max_watchers)
        self.latest = Latest(self.watches.signal)
        self.bus: Bus[AnyMessage] | None = None
        self._context: SocketContext | None = None
        self._timer: asyncio.Handle | None = None
        self._timer_at: float | None = None
        self._background: set[asyncio.Task[None]] = set()

    async def open(self, on_wait: Callable[[str], None] | None = None) -> None:
        """Raises zk.connect.Unreachable, fabric.runtime.bus.BindFailed."""
        self._loop = asyncio.get_running_loop()
        self._context = zmq.Context()
        try:
            codec = (NewerCodec if self._newer else Codec)(self.config.cluster_key)
            self.bus = Bus(
                self._context,
                codec,
                self.guid,
                self.config.peer_bind,
                on_message=self._on_message,
                advertise_host=self.config.peer_advertise,
            )
            self.tree.listen(self._on_tree_event)
            self._perform(self.client.start(self._loop.time()))
            await self.tree.open(self.limits.connect_wait_s, on_wait)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        self.watches.close()
        for task in tuple(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
        await self.tree.close()
        if self.bus is not None:
            self.bus.close()
        if self._context is not None:
            await _end(self._context)
            self._context = None

    @property
    def context(self) -> SocketContext:
        """For the sockets of image pushes."""
        assert self._context is not None, "not open"
        return self._context

    # --- requests ------------------------------------------------------------------------------------------------

    def leaders(self, layer: LayerName) -> dict[str, Seen]:
        """Rack -> leader."""
        return self.client.leaders(layer)

    async def require_leaders(self, *layers: LayerName) -> None:
        """503 when nobody leads in one of the layers, or the session is not connected, nor soon is."""
        await self.store.require_session()
        for layer in layers:
            if not self.leaders(layer):
                raise unavailable(
                    f"No {layer} rack has a leader: is a {layer} agent running, and registered at the same ZooKeeper?"
                )

    def submit(self, deployment: str, wrote: Versioned[Deployment] | None = None) -> None:
        """Steps 1 to 3, in the background, and again when the coordinator dies before the end. `wrote`: the record as
        this process has written it."""
        now = self._loop.time()
        seen = self.latest.wrote(now, wrote) if wrote is not None else None
        self._perform(self.client.submit(now, deployment, wall_ms(), seen))

    async def call_racks(
        self, layer: LayerName, everyone: Command, racks: tuple[str, ...] | None = None, wait_s: float | None = None
    ) -> Gathered:
        """Pass a command to all agents of `racks` (None: all racks of the layer)."""
        wait = self.limits.rack_wait_s if wait_s is None else wait_s
        return await self._request(
            wait, lambda now, done: self.client.call(now, layer, wait, done, everyone, racks)
        )

    async def call_nodes(
        self, layer: LayerName, commands: dict[str, tuple[NodeCommand, ...]], wait_s: float | None = None
    ) -> Gathered:
        """Pass commands to the nodes named, by rack."""
        wait = self.limits.rack_wait_s if wait_s is None else wait_s
        return await self._request(
            wait, lambda now, done: self.client.call(now, layer, wait, done, commands=commands)
        )

    async def call_node(
        self, layer: LayerName, rack: str, node: str, command: Command, wait_s: float | None = None
    ) -> Answer | None:
        """None: it did not answer, or is not there."""
        gathered = await self.call_nodes(layer, {rack: (NodeCommand(node, command),)}, wait_s)
        for reply in gathered.replies:
            for name, answer in reply.results:
                if name == node:
                    return answer
        return None

    async def rack_status(
        self, layer: LayerName, racks: Iterable[str] | None = None, wait_s: float | None = None
    ) -> Statuses:
        wait = self.limits.rack_wait_s if wait_s is None else wait_s
        wanted = None if racks is None else tuple(racks)
        return await self._request(wait, lambda now, done: self.client.rack_status(now, layer, wait, done, wanted))

    async def find_holders(self, digest: str, want: int, wait_s: float | None = None) -> Holders:
        """503 when no storage leader answers."""
        wait = self.limits.rack_wait_s if wait_s is None else wait_s
        answered: Answered = await self._request(
            wait, lambda now, done: self.client.find_holders(now, digest, want, wait, done)
        )
        return _holders(answered)

    async def pick_stores(self, size: int, want: int, salt: str, wait_s: float | None = None) -> Holders:
        """503 when no storage leader answers."""
        wait = self.limits.rack_wait_s if wait_s is None else wait_s
        answered: Answered = await self._request(
            wait, lambda now, done: self.client.pick_stores(now, size, want, wait, done, salt)
        )
        return _holders(answered)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run `work` beside the requests; trouble in it is logged, and `close` ends it."""

        async def run() -> None:
            try:
                await work
            except Exception as error:
                _log.warning("%s: %s", name, error)

        task = self._loop.create_task(run(), name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # --- the loop of the role ------------------------------------------------------------------------------------

    async def _request(
        self, wait_s: float, begin: Callable[[float, Callable[[float, T], None]], list[Effect]]
    ) -> T:
        answer: asyncio.Future[T] = self._loop.create_future()

        def done(_now: float, value: T) -> None:
            if not answer.done():
                answer.set_result(value)

        self._perform(begin(self._loop.time(), done))
        async with asyncio.timeout(wait_s + MARGIN_S):
            return await answer

    def _on_message(self, sender: str, message: AnyMessage) -> None:
        if isinstance(message, RecordNews):
            self.latest.tell(self._loop.time(), message)
        self._take(Received(sender, message))

    def _on_tree_event(self, event: TreeEvent) -> None:
        self.watches.on_event(event)
        self._take(event)

    def _take(self, event: Input) -> None:
        if self._stepping is not None:
            self._stepping.before(event)
        self._perform(self.client.handle(self._loop.time(), event))
        if self._stepping is not None:
            self._stepping.after(event)

    def _tick(self) -> None:
        self._timer = None
        self._perform(self.client.tick(self._loop.time()))

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if self._stepping is not None:
                self._stepping.before(effect)
            match effect:
                case Send(to, message):
                    assert self.bus is not None
                    self.bus.send(to, message)
                case CallTree(token, op):
                    self.tree.submit(op, partial(self._on_outcome, token))
                case Note(level, text):
                    _log.log(_LEVELS[level], "%s", text)
                case _:
                    raise TypeError(f"expected an effect of a client, found {effect}")
            if self._stepping is not None:
                self.tree.flush()
                self._stepping.after(effect)
        self._set_timer()

    def _on_outcome(self, token: str, outcome: Outcome) -> None:
        self._take(TreeDone(token, outcome))

    def _set_timer(self) -> None:
        deadline = self.client.next_deadline()
        if self._timer is not None:
            if deadline == self._timer_at:
                return
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = None if deadline is None else self._loop.call_at(deadline, self._tick)

    @property
    def state(self) -> SessionState:
        return self.tree.state


async def _end(context: SocketContext) -> None:
    """Bounded: a push that is being aborted may still have a socket open."""
    thread = threading.Thread(target=context.term, name="zmq-term", daemon=True)
    thread.start()
    await asyncio.to_thread(thread.join, CONTEXT_WAIT_S)


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _holders(answered: Answered) -> Holders:
    if isinstance(answered.answer, Holders):
        return answered.answer
    raise unavailable(f"No storage leader answered: {answered.reason}.")
