"""A Tree on real servers: what waits, what is in flight, and what the session's changes do to both.

Theory of operation. A link (zk.link) keeps a connection and a session, and tells what happens to them; this tree says
what may be sent when. All of it happens on one event loop, in the order in which the servers said it.

At most `window` calls are in flight, so that a lost connection leaves few calls in doubt, and the link's buffers stay
short. The others wait in a bounded queue here: for the window, for a connection (after SUSPENDED they are sent on), or
for a session to be ready. LOST refuses all that wait with SessionExpired: no operation crosses from one session into
the next.

Each new session first looks for the chroot and the roots of zk.paths and makes what is missing; calls wait until then.

A session that goes on after a lost connection may do so at another server, which may lag behind. Calls wait until that
server has caught up with all that was under way (ZooKeeper's sync): so whoever was told ConnectionLost and looks finds
what happened, and does not take what is not there yet for what was not done.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter, deque
from collections.abc import Callable
from functools import partial

from zk import checks, connect, paths
from zk.client import make_missing
from zk.connect import Unreachable
from zk.link import Link
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


class SessionTree:
    """zk.tree.Tree on the servers of `hosts` ("h1:2181,h2:2181/chroot"; ValueError when it is malformed). Make and use
    it on one event loop; `open` before the first `submit`, `close` in the end.

    `session_timeout_s` is asked for; the server may grant another (`session_timeout_s` of the open tree). `window`:
    calls in flight, at most. `max_waiting`: calls waiting, at most; more get Overloaded."""

    def __init__(
        self, hosts: str, *, session_timeout_s: float = 10.0, window: int = 128, max_waiting: int = 4096
    ) -> None:
        self._where = connect.parse(hosts)
        self._link = Link(self, self._where, session_timeout_s)
        self._window = window
        self._max_waiting = max_waiting
        self._listeners: list[Callable[[TreeEvent], None]] = []
        self._operations: Counter[str] = Counter()
        self._state = SessionState.LOST
        self._session_id = 0
        self._session_timeout_s = session_timeout_s
        self._prepared = False
        """The session has found the chroot and the roots, or made them."""
        self._ready = False
        """Calls may be sent."""
        self._opened: asyncio.Future[None] | None = None
        self._closed = False
        self._waiting: deque[tuple[Op, Callable[[Outcome], None]]] = deque()
        self._flying = 0
        self._preparing: asyncio.Task[None] | None = None

    # --- the port -------------------------------------------------------------------------------------------------

    def submit(self, op: Op, done: Callable[[Outcome], None]) -> None:
        problem = self._problem(op)
        if problem is None:
            self._waiting.append((op, done))
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
    def session_timeout_s(self) -> float:
        """What the server granted, once connected; before that, what will be asked for."""
        return self._session_timeout_s

    async def open(self, wait_s: float, on_wait: Callable[[str], None] | None = None) -> None:
        """Connect, and make the chroot and the roots. Raises Unreachable when no server has answered after `wait_s`
        (infinity: never); until then `on_wait` gets a message every 2 s. Listeners that are there already hear the
        first CONNECTED."""
        self._loop = asyncio.get_running_loop()
        self._opened = self._loop.create_future()
        self._link.start()
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

    def flush(self) -> None:
        """Write what was submitted in this turn of the loop, as far as it may be sent, now and not at its end."""
        self._link.flush()

    async def close(self) -> None:
        """End the session, so that its ephemerals vanish at once. Returns within CLOSE_WAIT_S, server or none. Each
        call not answered by then gets its outcome: SessionExpired if it was never sent, else ConnectionLost."""
        if self._closed or self._opened is None:
            return
        self._closed = True
        if self._preparing is not None:
            self._preparing.cancel()
        for op, done in self._take_waiting():
            self._answer(done, SessionExpired(checks.where(op), "the tree was closed"))
        await self._link.stop(CLOSE_WAIT_S)

    # --- calls ----------------------------------------------------------------------------------------------------

    def _problem(self, op: Op) -> TreeError | None:
        if self._closed:
            return SessionExpired(checks.where(op), "the tree is closed")
        if len(self._waiting) >= self._max_waiting:
            return Overloaded(checks.where(op), f"{self._max_waiting} calls are waiting")
        return checks.refusal(op)

    def _pump(self) -> None:
        """Send what waits, as far as window, session and connection allow."""
        while self._waiting and self._ready and self._flying < self._window and self._link.takes:
            op, done = self._waiting.popleft()
            self._send(op, self._where.chroot, done)

    def _send(self, op: Op, root: str, done: Callable[[Outcome], None]) -> None:
        self._flying += 1
        self._operations[_KINDS[type(op)]] += 1
        self._link.send(op, root, partial(self._completed, done))

    def _completed(self, done: Callable[[Outcome], None], outcome: Outcome) -> None:
        self._flying -= 1
        self._answer(done, outcome)
        self._pump()

    def _answer(self, done: Callable[[Outcome], None], outcome: Outcome) -> None:
        try:
            done(outcome)
        except Exception as error:
            self._report(done, error)

    def _take_waiting(self) -> list[tuple[Op, Callable[[Outcome], None]]]:
        calls = list(self._waiting)
        self._waiting.clear()
        return calls

    # --- what the link says (zk.link.Owner) ---------------------------------------------------------------------

    def linked(self, session_id: int, timeout_s: float) -> None:
        if self._closed:
            return
        if session_id != self._session_id:
            self._prepared = False
        self._state = SessionState.CONNECTED
        self._session_id = session_id
        if abs(timeout_s - self._session_timeout_s) > 0.001:
            _log.info(
                "ZooKeeper grants a session of %g s, and not of %g s: see its minSessionTimeout and maxSessionTimeout "
                "(2 and 20 ticks)", timeout_s, self._session_timeout_s,
            )  # fmt: skip
        self._session_timeout_s = timeout_s
        self._emit(SessionChanged(self._state, session_id, timeout_s))
        self._preparing = self._loop.create_task(self._catch_up() if self._prepared else self._prepare())

    def unlinked(self) -> None:
        self._ready = False
        if self._preparing is not None:
            self._preparing.cancel()
        self._state = SessionState.SUSPENDED
        self._emit(SessionChanged(self._state, self._session_id))

    def expired(self) -> None:
        self._state = SessionState.LOST
        refused = self._take_waiting()
        self._emit(SessionChanged(self._state, self._session_id))
        for op, done in refused:
            self._answer(done, SessionExpired(checks.where(op)))

    def fired(self, path: str) -> None:
        self._emit(WatchFired(path))

    def drained(self) -> None:
        self._pump()

    # --- the session ----------------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        """Make chroot and roots where they are missing. A lost connection cancels it; the next begins it again."""
        assert self._opened is not None
        chroot = self._where.chroot
        trouble = await make_missing(self._direct, [chroot + root for root in paths.ROOTS])
        if isinstance(trouble, ConnectionLost | SessionExpired):
            return self._link.drop(f"the server said {trouble}")
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
        """Have the server that the session goes on at catch up. A lost connection cancels it, as above."""
        answer: asyncio.Future[TreeError | None] = self._loop.create_future()
        self._link.sync(lambda trouble: None if answer.done() else answer.set_result(trouble))
        trouble = await answer
        if isinstance(trouble, ConnectionLost | SessionExpired):
            return self._link.drop(f"the server said {trouble}")
        if trouble is not None:
            _log.error("the server can't be asked to catch up: %s", trouble)
        self._ready = True
        self._pump()

    def _direct(self, op: Op) -> asyncio.Future[Outcome]:
        """Past the waiting calls, and with an absolute path."""
        answer: asyncio.Future[Outcome] = self._loop.create_future()
        if self._link.takes:
            self._send(op, "", lambda outcome: None if answer.done() else answer.set_result(outcome))
        else:
            answer.set_result(ConnectionLost(checks.where(op)))
        return answer

    def _emit(self, event: TreeEvent) -> None:
        if self._closed:
            return
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception as error:
                self._report(listener, error)

    def _report(self, callback: object, error: Exception) -> None:
        """As the loop does for its own callbacks."""
        self._loop.call_exception_handler({"message": f"exception in {callback!r}", "exception": error})
