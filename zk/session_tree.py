"""A Tree over one link to real servers: what waits, what is in flight, and what the session's changes do to both.

Theory of operation. A *link* (zk.kazoo_tree has the one there is) keeps a connection and a session, most likely on a
thread of its own, and puts what happens into an inbox; this tree drains it on the event loop. So outcomes, watches
and changes of the session are seen on the loop, in the order in which they happened, and nothing here needs a lock.

At most `window` calls are in flight, so that a link's own queues stay short and a lost connection leaves few calls in
doubt. The others wait in a bounded queue here: for the window, for a connection (after SUSPENDED they are sent on),
or for a session to be ready. LOST refuses all that wait with SessionExpired: no operation crosses from one session
into the next, which the link ensures for its part (`Link.send`), because it learns of a lost session before the loop
does.

Each new session first looks for the chroot and the roots of zk.paths and makes what is missing; calls wait until then.

A session that goes on after a lost connection may do so at another server, which may lag behind. Calls wait until that
server has caught up with all that was under way (ZooKeeper's sync): so whoever was told ConnectionLost and looks finds
what happened, and does not take what is not there yet for what was not done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from zk import checks, paths
from zk.client import make_missing
from zk.connect import ConnectString, Unreachable
from zk.inbox import Inbox, guarded
from zk.tree import (
    Children,
    ConnectionLost,
    Create,
    Delete,
    Exists,
    Get,
    Multi,
    Op,
    Outcome,
    Overloaded,
    SessionChanged,
    SessionExpired,
    SessionState,
    Set,
    TreeError,
    TreeEvent,
    WatchFired,
)

WAIT_MESSAGE_EVERY_S = 2.0
CLOSE_WAIT_S = 3.0
RESTART_DELAY_S = 1.0

_KINDS: dict[type[Op], str] = {
    Create: "create",
    Get: "get",
    Exists: "exists",
    Children: "children",
    Set: "set",
    Delete: "delete",
    Multi: "multi",
}
_log = logging.getLogger("fabric.zk")


class Link(Protocol):
    """A connection with a session, that connects again by itself, and opens a new session when one is over.

    It calls the `SessionTree` it was made for on the loop: `linked`, `unlinked`, `expired`, `fired`. A call that was in
    flight when the connection was lost is answered with ConnectionLost, and each call once at least."""

    def start(self) -> None:
        """Begin to connect. Does not block."""

    def send(self, op: Op, root: str, done: Callable[[Outcome], None]) -> bool:
        """Send `op`, its paths below `root`; `done` is called on the loop. Does not block. False: not sent, because the
        session has changed and the loop does not know it yet; it will be told in a moment."""

    def sync(self, done: Callable[[TreeError | None], None]) -> bool:
        """As `send`: have the server catch up with all that was committed or under way before."""

    def stop(self) -> None:
        """End the session and free everything. Called on a thread of its own: it may block."""


@dataclass(eq=False, slots=True)
class _Call:
    op: Op
    done: Callable[[Outcome], None]
    root: str
    session_id: int = 0
    answered: bool = False

    @property
    def path(self) -> str:
        return checks.where(self.op)


class SessionTree:
    """zk.tree.Tree over `make_link(tree, inbox)`. Make and use it on one event loop; `open` before the first `submit`,
    `close` in the end. `window`: calls in flight, at most. `max_waiting`: calls waiting, at most; more get
    Overloaded."""

    def __init__(
        self,
        where: ConnectString,
        make_link: Callable[[SessionTree, Inbox], Link],
        *,
        session_timeout_s: float,
        window: int,
        max_waiting: int,
    ) -> None:
        self._where = where
        self._make_link = make_link
        self._window = window
        self._max_waiting = max_waiting
        self._listeners: list[Callable[[TreeEvent], None]] = []
        self._operations: Counter[str] = Counter()
        self._link: Link | None = None
        self._state = SessionState.LOST
        self._session_id = 0
        self._session_timeout_s = session_timeout_s
        self._suspended_since: float | None = None
        self._prepared = False
        """The session has found the chroot and the roots, or made them."""
        self._ready = False
        """Calls may be sent."""
        self._closed = False
        self._waiting: deque[_Call] = deque()
        self._flying: set[_Call] = set()
        self._preparing: asyncio.Task[None] | None = None

    # --- the port -------------------------------------------------------------------------------------------------

    def submit(self, op: Op, done: Callable[[Outcome], None]) -> None:
        problem = self._problem(op)
        if problem is None:
            self._waiting.append(_Call(op, done, self._where.chroot))
            self._pump()
        else:
            asyncio.get_running_loop().call_soon(done, problem)

    def listen(self, listener: Callable[[TreeEvent], None]) -> None:
        self._listeners.append(listener)

    @property
    def state(self) -> SessionState:
        """LOST until the first session is there."""
        return self._state

    @property
    def session_id(self) -> int:
        """Of the session that is, or was last, connected; 0 before the first."""
        return self._session_id

    @property
    def operations(self) -> dict[str, int]:
        return dict(self._operations)

    # --- beyond the port ------------------------------------------------------------------------------------------

    @property
    def suspended_since(self) -> float | None:
        """Loop time at which the connection was seen to be lost; None while connected. A link says LOST only when a
        server answers again: with no server to say so, this clock tells when the session may be over."""
        return self._suspended_since

    @property
    def session_timeout_s(self) -> float:
        """What the server granted, once connected; before that, what will be asked for."""
        return self._session_timeout_s

    async def open(self, wait_s: float, on_wait: Callable[[str], None] | None = None) -> None:
        """Connect, and make the chroot and the roots. Raises Unreachable when no server has answered after `wait_s`
        (infinity: never); until then `on_wait` gets a message every 2 s. Listeners that are there already hear the
        first CONNECTED."""
        self._loop = asyncio.get_running_loop()
        self._inbox = Inbox(self._loop)
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._start()
        began = self._loop.time()
        try:
            while True:
                left_s = began + wait_s - self._loop.time()
                done, _ = await asyncio.wait([self._opened], timeout=max(0.0, min(WAIT_MESSAGE_EVERY_S, left_s)))
                if done:
                    return self._opened.result()
                waited_s = self._loop.time() - began
                if waited_s >= wait_s:
                    raise Unreachable(self._where.hosts, wait_s)
                if on_wait is not None:
                    most = f" of {wait_s:.0f}" if math.isfinite(wait_s) else ""
                    on_wait(f"waiting for ZooKeeper at {self._where.hosts} ({waited_s:.0f}{most} s)")
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End the session, so that its ephemerals vanish at once. Returns within CLOSE_WAIT_S, server or none. Each
        call not answered by then gets its outcome: SessionExpired if it was never sent, else ConnectionLost."""
        if self._closed or self._link is None:
            return
        self._closed = True
        if self._preparing is not None:
            self._preparing.cancel()
        for call in self._take_waiting():
            self._answer(call, SessionExpired(call.path, "the tree was closed"))
        stopped = asyncio.Event()
        # No executor: the loop's end would wait for its threads, however long they take.
        threading.Thread(target=self._stop, args=(self._link, stopped), name="zk-close", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), CLOSE_WAIT_S)
        for call in tuple(self._flying):
            self._answer(call, ConnectionLost(call.path, "the tree was closed"))

    # --- calls ----------------------------------------------------------------------------------------------------

    def _problem(self, op: Op) -> TreeError | None:
        if self._closed:
            return SessionExpired(checks.where(op), "the tree is closed")
        if len(self._waiting) >= self._max_waiting:
            return Overloaded(checks.where(op), f"{self._max_waiting} calls are waiting")
        return checks.refusal(op)

    def _pump(self) -> None:
        """Send what waits, as far as window and session allow."""
        while self._waiting and self._ready and len(self._flying) < self._window and self._send(self._waiting[0]):
            self._waiting.popleft()

    def _send(self, call: _Call) -> bool:
        if self._link is None or self._state is not SessionState.CONNECTED:
            return False
        if not self._link.send(call.op, call.root, partial(self._completed, call)):
            return False
        call.session_id = self._session_id
        self._flying.add(call)
        self._operations[_KINDS[type(call.op)]] += 1
        return True

    def _completed(self, call: _Call, outcome: Outcome) -> None:
        self._answer(call, outcome)
        self._pump()

    def _answer(self, call: _Call, outcome: Outcome) -> None:
        self._flying.discard(call)
        if not call.answered:
            call.answered = True
            guarded(self._loop, partial(call.done, outcome))

    def _take_waiting(self) -> list[_Call]:
        calls = list(self._waiting)
        self._waiting.clear()
        return calls

    # --- what the link says ---------------------------------------------------------------------------------------

    def linked(self, link: Link, session_id: int, timeout_s: float) -> None:
        """Connected: with the session as before, or with a new one."""
        if self._closed or link is not self._link:
            return
        self._ready = False
        if session_id != self._session_id:
            self._prepared = False
        self._state = SessionState.CONNECTED
        self._session_id = session_id
        self._session_timeout_s = timeout_s
        self._suspended_since = None
        for call in tuple(self._flying):
            if call.session_id != session_id:  # the link owes it an answer that will not come any more
                self._answer(call, ConnectionLost(call.path))
        self._emit(SessionChanged(self._state, session_id))
        if self._preparing is not None:
            self._preparing.cancel()
        self._preparing = self._loop.create_task(self._catch_up() if self._prepared else self._prepare())

    def unlinked(self, link: Link) -> None:
        """The connection is lost, the session may live on."""
        if self._closed or link is not self._link:
            return
        self._state = SessionState.SUSPENDED
        self._suspended_since = self._loop.time()
        self._emit(SessionChanged(self._state, self._session_id))

    def expired(self, link: Link, ended: bool) -> None:
        """The session is over. `ended`: the link is too, and opens no new one."""
        if self._closed or link is not self._link:
            return
        self._state = SessionState.LOST
        self._ready = False
        refused = self._take_waiting()
        self._emit(SessionChanged(self._state, self._session_id))
        for call in refused:
            self._answer(call, SessionExpired(call.path))
        if ended:
            self._loop.call_later(RESTART_DELAY_S, self._restart, link)

    def fired(self, path: str) -> None:
        self._emit(WatchFired(path))

    # --- the session ----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._link = self._make_link(self, self._inbox)
        self._link.start()

    def _restart(self, ended: Link) -> None:
        if not self._closed:
            ended.stop()  # does not block: its thread is no more
            self._start()

    def _stop(self, link: Link, stopped: asyncio.Event) -> None:
        link.stop()
        self._inbox.put(stopped.set)

    async def _prepare(self) -> None:
        """Make chroot and roots where they are missing. Trouble with the connection ends it; the next CONNECTED begins
        it again."""
        chroot = self._where.chroot
        trouble = await make_missing(self._direct, [chroot + root for root in paths.ROOTS])
        if isinstance(trouble, ConnectionLost | SessionExpired):
            return
        if self._opened.done():
            if trouble is not None:
                _log.error("the znodes that all others are below can't be made: %s", trouble)
        elif trouble is not None:
            self._opened.set_exception(trouble)
        else:
            self._opened.set_result(None)
        self._prepared = self._ready = True
        self._pump()

    async def _catch_up(self) -> None:
        """Have the server that the session goes on at catch up. Trouble with the connection ends it, as above."""
        answer: asyncio.Future[TreeError | None] = self._loop.create_future()
        if self._link is None or not self._link.sync(lambda t: None if answer.done() else answer.set_result(t)):
            return
        trouble = await answer
        if isinstance(trouble, ConnectionLost | SessionExpired):
            return
        if trouble is not None:
            _log.error("the server can't be asked to catch up: %s", trouble)
        self._ready = True
        self._pump()

    def _direct(self, op: Op) -> asyncio.Future[Outcome]:
        """Past the waiting calls, and with an absolute path."""
        answer: asyncio.Future[Outcome] = self._loop.create_future()
        call = _Call(op, lambda outcome: None if answer.done() else answer.set_result(outcome), root="")
        if not self._send(call):
            answer.set_result(ConnectionLost(call.path))
        return answer

    def _emit(self, event: TreeEvent) -> None:
        if not self._closed:
            for listener in tuple(self._listeners):
                guarded(self._loop, partial(listener, event))
