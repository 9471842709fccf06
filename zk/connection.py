"""One connection to one ZooKeeper server, without its socket: what to send, and what the server's bytes mean.

Theory of operation. A connection begins with a greeting, which asks for a session; the server welcomes it, says that it
is over, or hangs up. Then requests go out, each with the next number (xid), and are answered in their order; between
answers the server tells of watches that fired and of pings that it heard. `receive` takes bytes as they come and gives
back what they mean, in order. Whatever a server says that is no answer to what was asked (bytes that can't be read, an
answer out of its turn, a packet larger than MAX_PACKET_BYTES) is Broken, and nothing is read after that: such a
connection is of no use any more.

A server keeps the watches of a connection as long as that lasts. This side knows them too, from the answer that armed
them until they fire: when the connection is lost, all of them say "look again" and are forgotten (`lose`). So none is
ever missed, and none has to be armed anew. Arming one twice is arming it once, on both sides.

Who owns the connection brings the time: `Pulse` says when a ping is due, and for how long a server may be silent.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from zk import kazoo_wire as wire
from zk.checks import where
from zk.kazoo_wire import Malformed, Session
from zk.tree import Children, ConnectionLost, Existed, Exists, Get, Got, Listed, Op, Outcome, TreeError

MAX_PACKET_BYTES = 16 * 1024 * 1024
"""A server's longest packet: a listing of half a million znodes. What is said to be longer is not from ZooKeeper."""
MAX_XID = 2**31 - 1
PINGS_TOGETHER = 1 / 32
"""Of the time between two pings: those of all sessions of a machine that are due within it go out at one time, so that
a process with several, and their server, wake once for all of them. (With 1,000 sessions a third less CPU.)"""

PING = wire.PING


class Welcomed(NamedTuple):
    """The server carries this session now; `timeout_s` is what it grants."""

    session: Session
    timeout_s: float


class Expired(NamedTuple):
    """The session that was asked for is over."""


class Answered(NamedTuple):
    """To `ask` or `sync`: call `done(outcome)`."""

    done: Callable[[Any], None]
    outcome: Outcome | TreeError | None


class Fired(NamedTuple):
    """A watch fired at `path` (below the chroot)."""

    path: str


class Ended(NamedTuple):
    """The server has ended the session, as it was asked to (`goodbye`)."""


class Broken(NamedTuple):
    """The server is not to be listened to any more, and `why`."""

    why: str


Event = Welcomed | Expired | Answered | Fired | Ended | Broken


class _Asked(NamedTuple):
    """`op` is None for a sync, and `done` for a goodbye."""

    xid: int
    op: Op | None
    root: str
    done: Callable[[Any], None] | None


class Connection:
    """`session`: the one to ask for, or NO_SESSION. `zxid`: the last transaction that it has seen the effects of, so
    that no server is accepted that is behind. `chroot`: what is cut off from the paths of watches."""

    def __init__(self, session: Session, timeout_s: float, zxid: int, chroot: str = "") -> None:
        self._session = session
        self._timeout_s = timeout_s
        self._chroot = chroot
        self._zxid = zxid
        self._welcomed = False
        self._broken = False
        self._xid = 0
        self._asked: deque[_Asked] = deque()
        self._received = bytearray()
        self._data_watches: dict[str, None] = {}
        self._child_watches: dict[str, None] = {}

    @property
    def zxid(self) -> int:
        """The last transaction that an answer has shown."""
        return self._zxid

    @property
    def is_welcome(self) -> bool:
        """Requests may be sent."""
        return self._welcomed and not self._broken

    # --- what to send ---------------------------------------------------------------------------------------------

    def greet(self) -> bytes:
        return wire.greet(self._session, self._timeout_s, self._zxid)

    def ask(self, op: Op, root: str, done: Callable[[Outcome], None]) -> bytes:
        """`op` with its paths below `root`; it must be one that zk.checks lets pass."""
        self._asked.append(_Asked(self._next_xid(), op, root, done))
        return wire.request(self._xid, op, root)

    def sync(self, done: Callable[[TreeError | None], None]) -> bytes:
        """Have the server catch up with all that was committed or under way."""
        self._asked.append(_Asked(self._next_xid(), None, self._chroot, done))
        return wire.sync(self._xid, self._chroot)

    def goodbye(self) -> bytes:
        """End the session, behind all that was asked for."""
        self._asked.append(_Asked(self._next_xid(), None, "", None))
        return wire.goodbye(self._xid)

    def _next_xid(self) -> int:
        self._xid = self._xid % MAX_XID + 1
        return self._xid

    # --- what was said --------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[Event]:
        """What these bytes, and those before that were no whole packet, mean."""
        events: list[Event] = []
        received = self._received
        received += data
        begin = 0
        while not self._broken and len(received) - begin >= 4:
            length = int.from_bytes(received[begin : begin + 4], "big", signed=True)
            if not 0 <= length <= MAX_PACKET_BYTES:
                self._break(events, f"expected a packet of at most {MAX_PACKET_BYTES} bytes, found one of {length}")
                break
            end = begin + 4 + length
            if end > len(received):
                break
            try:
                self._read(bytes(received[begin + 4 : end]), events)
            except Malformed as malformed:
                self._break(events, str(malformed))
            begin = end
        del received[:begin]
        return events

    def lose(self) -> list[Answered | Fired]:
        """The connection is no more: what that means for all that was asked for, and for the watches."""
        self._broken = True
        lost: list[Answered | Fired] = [
            Answered(asked.done, ConnectionLost(where(asked.op) if asked.op is not None else "/"))
            for asked in self._asked
            if asked.done is not None
        ]
        lost += [Fired(self._below(path)) for path in (*self._child_watches, *self._data_watches)]
        self._asked.clear()
        self._child_watches.clear()
        self._data_watches.clear()
        return lost

    def _break(self, events: list[Event], why: str) -> None:
        self._broken = True
        events.append(Broken(why))

    def _read(self, body: bytes, events: list[Event]) -> None:
        if not self._welcomed:
            self._greeted(body, events)
            return
        header = wire.header(body)
        if header.xid == wire.EVENT_XID:
            self._fired(wire.event(body), events)
        elif header.xid != wire.PING_XID:
            self._answered(header, body, events)

    def _greeted(self, body: bytes, events: list[Event]) -> None:
        greeting = wire.greeting(body)
        if greeting.timeout_s <= 0 and self._session.session_id:
            self._broken = True
            events.append(Expired())
        elif greeting.read_only:
            self._break(events, "expected a server that takes writes, found one that offers reads alone")
        elif greeting.timeout_s <= 0 or self._session.session_id not in (0, greeting.session.session_id):
            wanted = f"session {self._session.session_id:#x}" if self._session.session_id else "a new session"
            self._break(events, f"expected {wanted}, found {greeting.session.session_id:#x}")
        else:
            self._welcomed = True
            events.append(Welcomed(greeting.session, greeting.timeout_s))

    def _fired(self, event: wire.Event, events: list[Event]) -> None:
        path = self._below(event.path)
        if event.of_data and event.path in self._data_watches:
            del self._data_watches[event.path]
            events.append(Fired(path))
        if event.of_children and event.path in self._child_watches:
            del self._child_watches[event.path]
            events.append(Fired(path))

    def _answered(self, header: wire.Header, body: bytes, events: list[Event]) -> None:
        if not self._asked or header.xid != self._asked[0].xid:
            wanted = f"the answer to request {self._asked[0].xid}" if self._asked else "no answer"
            raise Malformed(f"expected {wanted}, found that to {header.xid}")
        if header.zxid > self._zxid:
            self._zxid = header.zxid
        asked = self._asked[0]
        if asked.done is None:
            self._asked.popleft()
            self._broken = True
            events.append(Ended())
        elif asked.op is None:
            self._asked.popleft()
            events.append(Answered(asked.done, wire.failure(header.error, "/") if header.error else None))
        else:
            outcome = wire.outcome(asked.op, asked.root, header.error, body)
            self._asked.popleft()  # only now: what can't be read is no answer, and its request is lost
            self._arm(asked.op, asked.root, outcome)
            events.append(Answered(asked.done, outcome))

    def _arm(self, op: Op, root: str, outcome: Outcome) -> None:
        if isinstance(op, Get | Exists | Children) and op.watch:
            path = root or "/" if op.path == "/" else root + op.path
            if isinstance(outcome, Listed):
                self._child_watches[path] = None
            elif isinstance(outcome, Got | Existed):
                self._data_watches[path] = None

    def _below(self, path: str) -> str:
        return path[len(self._chroot) :] or "/"


class Pulse:
    """When to ping, and when a server has been silent for too long; of one connection, whose session may last
    `timeout_s` without a word. All times are the caller's clock, in seconds.

    A ping is due when nothing was sent for a third of that, or a moment sooner. A server is silent when it has said
    nothing for two thirds, and has been asked for something for one: so a third is left to find another server, and a
    caller that was itself stopped for a while does not blame the server."""

    __slots__ = ("_asked_at", "_heard_at", "_sent_at", "_third_s")

    def __init__(self, timeout_s: float, now: float) -> None:
        self._third_s = timeout_s / 3
        self._heard_at = now
        self._sent_at = now
        self._asked_at = math.inf  # the first thing that was sent since the server last said something

    def sent(self, now: float) -> None:
        self._sent_at = now
        if self._asked_at == math.inf:
            self._asked_at = now

    def heard(self, now: float) -> None:
        self._heard_at = now
        self._asked_at = math.inf

    @property
    def ping_at(self) -> float:
        grain_s = self._third_s * PINGS_TOGETHER
        return (self._sent_at + self._third_s) // grain_s * grain_s

    @property
    def silent_at(self) -> float:
        """Infinity when it was not asked for anything."""
        return max(self._asked_at + self._third_s, self._heard_at + 2 * self._third_s)

    @property
    def next_at(self) -> float:
        """When to look at this clock again."""
        return min(self.ping_at, self.silent_at)
