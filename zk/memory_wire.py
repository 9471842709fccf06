"""A connection of a client to servers in memory: two queues, and what travels in them.

Theory of operation. Requests go one way, replies and events the other, each in order and each item late by what the
client's `delay` says. An item that arrives is the first of its queue, whichever was scheduled for this moment: so the
order never depends on the delays. Of a connection that is `cut` nothing arrives any more, either way, and neither side
is told; a server that has `closed` it reads no more of it, and says Farewell behind what it had said before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from zk.tree import Op, Outcome

if TYPE_CHECKING:
    from zk.memory_server import MemoryServer

Schedule = Callable[[float, Callable[[], None]], object]
"""Call back after so many seconds; never from inside the call."""


class Event(NamedTuple):
    """A watch fired: of the znode's data (or existence), or of its children."""

    path: str
    of_children: bool


class Welcome(NamedTuple):
    """A client asks for this session, or (0) for a new one; a server grants it, or says (0) that it is over."""

    session_id: int


class Farewell(NamedTuple):
    """A client ends its session; or a server has closed the connection: the last item of any."""


Request = Op | Welcome | Farewell
Item = Outcome | Event | Welcome | Farewell


class Client(Protocol):
    """What servers know of a client."""

    session_timeout_s: float
    loses_reply: bool
    """Carry out the next write, and tell `reply_lost` instead of replying."""

    @property
    def is_silent(self) -> bool:
        """Its process is stopped, or dead: it sends no pings."""

    def delay(self) -> float:
        """How long the next item takes, in seconds."""

    def take(self, connection: Connection) -> None:
        """An item has arrived: the first of `connection.down`."""

    def reply_lost(self) -> None:
        """Its connection is to break here."""

    def come_back(self) -> None:
        """There is a quorum again."""


class Connection:
    """`session_id` is 0 until it is welcome. `serve(connection, request)` is called for what arrives."""

    __slots__ = (
        "child_watches",
        "client",
        "closed",
        "cut",
        "data_watches",
        "down",
        "held",
        "schedule",
        "serve",
        "server",
        "session_id",
        "up",
        "writing",
    )

    def __init__(
        self,
        client: Client,
        server: MemoryServer,
        schedule: Schedule,
        serve: Callable[[Connection, Request], None],
    ) -> None:
        self.client = client
        self.server = server
        self.schedule = schedule
        self.serve = serve
        self.session_id = 0
        self.up: deque[Request] = deque()
        self.down: deque[Item] = deque()
        self.cut = False
        self.closed = False
        # The server's:
        self.data_watches: dict[str, None] = {}
        self.child_watches: dict[str, None] = {}
        self.writing = 0
        self.held: deque[Op | Farewell] = deque()

    def ask(self, request: Request) -> None:
        """From the client."""
        if not self.cut:
            self.up.append(request)
            self.schedule(self.client.delay(), self._arrive)

    def tell(self, item: Item) -> None:
        """From the server."""
        if not (self.cut or self.closed):
            self.down.append(item)
            self.schedule(self.client.delay(), self._deliver)

    def sever(self) -> None:
        """Nothing that is under way arrives."""
        self.cut = True
        self.up.clear()
        self.down.clear()

    def _arrive(self) -> None:
        if self.up:
            request = self.up.popleft()
            if not self.closed:
                self.serve(self, request)

    def _deliver(self) -> None:
        if self.down:
            self.client.take(self)
