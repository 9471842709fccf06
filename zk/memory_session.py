"""One session's Tree on servers in memory: what zk.session_tree and zk.link are on real ones, and the faults of both.

Theory of operation. Calls go out in order, at most `window` in flight, over one connection (zk.memory_wire); replies
and events come back in order, so the n-th reply is that of the n-th call. The others wait: for the window, for a
connection (SUSPENDED), for a session. When the connection is lost, those in flight get ConnectionLost, the state is
SUSPENDED, and every armed watch fires ("look again") and is disarmed, which is what zk.link does; when it can, the tree
connects again, after `retry` seconds. Only then it learns whether its session is over: LOST, SessionExpired for all
that waits, and a new session.

The tree knows the armed watches as zk.connection does: from the reply of the read that armed them, until they fire.

Faults are methods, for whoever simulates them:

    disconnect(), reconnect()   the network to the servers is cut. The client may notice late (`noticed_after_s`): until
                                then it is CONNECTED for all it knows, and what it asks for never arrives; and the
                                servers may have heard of it last a while ago (`unheard_s`, a ping ago)
    drop()                      the connection breaks, and is made again; noticed late or not
    lose_reply()                the next write is carried out, and the connection breaks before its reply
    pause(), resume()           the process is stopped: it sends and sees nothing, and its session may expire. Resumed,
                                it first sees what had come meanwhile, then that its connection is gone
    crash()                     the process is dead: nothing is called any more; the servers find out by the timeout

What waits while a process is stopped is bounded by the window and its armed watches.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from functools import partial

from zk import checks
from zk.memory import Ensemble
from zk.memory_wire import Connection, Event, Farewell, Welcome
from zk.tree import (
    Children,
    ConnectionLost,
    Create,
    Delete,
    Existed,
    Exists,
    Get,
    Got,
    Listed,
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

_KINDS: dict[type[Op], str] = {
    Create: "create",
    Get: "get",
    Exists: "exists",
    Children: "children",
    Set: "set",
    Delete: "delete",
    Multi: "multi",
}

Call = tuple[Op, Callable[[Outcome], None]]


class MemoryTree:
    """zk.tree.Tree on an Ensemble. `delay()`: how long the next item takes to the servers or back, in seconds; drawn by
    the caller, as `retry()`: how long after it could the tree connects again. `open` it before the first `submit`."""

    def __init__(
        self,
        ensemble: Ensemble,
        *,
        delay: Callable[[], float],
        retry: Callable[[], float] | None = None,
        session_timeout_s: float = 10.0,
        window: int = 128,
        max_waiting: int = 4096,
    ) -> None:
        self.session_timeout_s = session_timeout_s
        self.loses_reply = False
        self._loss_noticed_after_s = 0.0
        self.delay = delay
        self._retry = retry or delay
        self._ensemble = ensemble
        self._window = window
        self._max_waiting = max_waiting
        self._listeners: list[Callable[[TreeEvent], None]] = []
        self._operations: Counter[str] = Counter()
        self._state = SessionState.LOST
        self._session_id = 0
        self._connection: Connection | None = None
        self._linked = False
        """The connection carries the session; false before the owner is told that it does not."""
        self._reachable = True
        self._dialing = False
        self._waiting: deque[Call] = deque()
        self._flying: deque[Call] = deque()
        self._data_watches: dict[str, None] = {}
        self._child_watches: dict[str, None] = {}
        self._closed = False
        self._ended: Callable[[], None] | None = None
        self._dead = False
        self._paused = False
        self._held: list[Callable[[], None]] = []

    # --- the port -------------------------------------------------------------------------------------------------

    def submit(self, op: Op, done: Callable[[Outcome], None]) -> None:
        problem = self._problem(op)
        if problem is not None:
            self._ensemble.schedule(0.0, partial(self._when_running, partial(done, problem)))
        else:
            self._waiting.append((op, done))
            self._pump()

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

    def open(self) -> None:
        """Begin to connect. Listeners that are there already hear the first CONNECTED."""
        self._ensemble.meet(self)
        self._dial_later()

    def close(self, ended: Callable[[], None] = lambda: None) -> None:
        """End the session, so that its ephemerals vanish at once if the servers can be reached; `ended` is called when
        that has happened, or can't. What is in flight is answered; what waits gets SessionExpired; no event comes any
        more."""
        if self._closed:
            return
        self._closed = True
        self._ended = ended
        waiting = self._take_waiting()
        if self._connection is not None:
            self._connection.ask(Farewell())  # behind what is in flight
        else:
            self._end()
        for op, done in waiting:
            done(SessionExpired(checks.where(op), "the tree was closed"))

    # --- faults ---------------------------------------------------------------------------------------------------

    @property
    def is_silent(self) -> bool:
        return self._paused or self._dead

    def disconnect(self, noticed_after_s: float = 0.0, unheard_s: float = 0.0) -> None:
        self._reachable = False
        self.drop(noticed_after_s, unheard_s)

    def reconnect(self) -> None:
        self._reachable = True
        self._dial_later()

    def drop(self, noticed_after_s: float = 0.0, unheard_s: float = 0.0) -> None:
        connection = self._connection
        if connection is None:
            return
        if not connection.cut:
            connection.sever()
            self._ensemble.unheard(connection, unheard_s)
            self._ensemble.release(connection)
        self._ensemble.schedule(noticed_after_s, partial(self._when_running, partial(self._lost, connection)))

    def lose_reply(self, noticed_after_s: float = 0.0) -> None:
        self.loses_reply = True
        self._loss_noticed_after_s = noticed_after_s

    def reply_lost(self) -> None:
        self.loses_reply = False
        self.drop(self._loss_noticed_after_s)

    def pause(self) -> None:
        if not self._paused:
            self._paused = True
            if self._connection is not None:
                self._ensemble.unheard(self._connection)

    def resume(self) -> None:
        if not self._paused:
            return
        self._paused = False
        if self._connection is not None and not self._dead:
            self._ensemble.heard(self._connection)
        held, self._held = self._held, []
        for callback in held:
            self._ensemble.schedule(0.0, partial(self._when_running, callback))

    def crash(self) -> None:
        """What it had sent still arrives."""
        self._dead = True
        if self._connection is not None:
            self._ensemble.unheard(self._connection)
        self._ensemble.forget(self)

    # --- calls ----------------------------------------------------------------------------------------------------

    def _problem(self, op: Op) -> TreeError | None:
        if self._closed:
            return SessionExpired(checks.where(op), "the tree is closed")
        if len(self._waiting) >= self._max_waiting:
            return Overloaded(checks.where(op), f"{self._max_waiting} calls are waiting")
        return checks.refusal(op)

    def _pump(self) -> None:
        waiting, flying = self._waiting, self._flying
        while waiting and self._linked and len(flying) < self._window:
            assert self._connection is not None
            call = waiting.popleft()
            flying.append(call)
            self._operations[_KINDS[type(call[0])]] += 1
            self._connection.ask(call[0])

    def _take_waiting(self) -> list[Call]:
        calls = list(self._waiting)
        self._waiting.clear()
        return calls

    # --- what arrives ---------------------------------------------------------------------------------------------

    def _when_running(self, callback: Callable[[], None]) -> None:
        """Everything that this process does passes here: not while it is stopped, and not when it is dead."""
        if self._paused:
            self._held.append(callback)
        elif not self._dead:
            callback()

    def take(self, connection: Connection) -> None:
        if self._paused or self._dead:
            self._when_running(partial(self.take, connection))
            return
        if not connection.down:  # it was cut while this process was stopped
            return
        item = connection.down.popleft()
        if connection is not self._connection:
            return
        if isinstance(item, Event):
            self._fired(item)
        elif isinstance(item, Welcome):
            self._welcome(item.session_id)
        elif isinstance(item, Farewell):
            self._lost(connection)
        else:
            self._replied(item)

    def _replied(self, outcome: Outcome) -> None:
        op, done = self._flying.popleft()
        if isinstance(op, Get | Exists | Children) and op.watch:
            if isinstance(outcome, Listed):
                self._child_watches[op.path] = None
            elif isinstance(outcome, Got | Existed):
                self._data_watches[op.path] = None
        done(outcome)
        self._pump()

    def _fired(self, event: Event) -> None:
        armed = self._child_watches if event.of_children else self._data_watches
        del armed[event.path]
        self._emit(WatchFired(event.path))

    def _welcome(self, session_id: int) -> None:
        assert self._connection is not None
        if session_id == 0:
            self._connection = None
            self._expired()
            self._go_on()
            return
        self._linked = True
        self._state = SessionState.CONNECTED
        self._session_id = session_id
        self._emit(SessionChanged(self._state, session_id, self.session_timeout_s))
        self._pump()

    def _lost(self, connection: Connection) -> None:
        """The connection is gone, the session may live on."""
        if connection is not self._connection:
            return
        self._connection = None
        was_linked, self._linked = self._linked, False
        flying, self._flying = self._flying, deque()
        for op, done in flying:
            done(ConnectionLost(checks.where(op)))
        if was_linked:
            self._state = SessionState.SUSPENDED
            self._emit(SessionChanged(self._state, self._session_id))
            armed = [*self._child_watches, *self._data_watches]
            self._child_watches.clear()
            self._data_watches.clear()
            for path in armed:
                self._emit(WatchFired(path))
        self._go_on()

    def _expired(self) -> None:
        self._state = SessionState.LOST
        refused = self._take_waiting()
        self._emit(SessionChanged(self._state, self._session_id))
        for op, done in refused:
            done(SessionExpired(checks.where(op)))

    def _emit(self, event: TreeEvent) -> None:
        if not self._closed:
            for listener in tuple(self._listeners):
                listener(event)

    # --- connecting -----------------------------------------------------------------------------------------------

    def _can_dial(self) -> bool:
        return (
            self._reachable
            and not self._closed
            and not self._dead
            and not self._ensemble.is_out
            and self._connection is None
        )

    def come_back(self) -> None:
        self._dial_later()

    def _go_on(self) -> None:
        """Without a connection."""
        if self._closed:
            self._end()
        else:
            self._dial_later()

    def _dial_later(self) -> None:
        if not self._dialing and self._can_dial():
            self._dialing = True
            self._ensemble.schedule(self._retry(), partial(self._when_running, self._dial))

    def _dial(self) -> None:
        self._dialing = False
        if self._can_dial():
            wanted = 0 if self._state is SessionState.LOST else self._session_id
            self._connection = self._ensemble.connect(self, wanted)

    def _end(self) -> None:
        self._ensemble.forget(self)
        ended, self._ended = self._ended, None
        if ended is not None:
            self._ensemble.schedule(0.0, ended)
