"""The simulated network: what fabric.runtime.bus and ZeroMQ are to real agents, under virtual time and any weather.

Theory of operation. A `SimBus` listens at an endpoint, "tcp://host:port", and opens a link to each endpoint it sends
to. A link is a connection: messages go forth to whoever listens there *when they arrive*, answers go back on it to the
one bus that opened it. As with ZeroMQ, what was sent to an endpoint where nobody listens waits for whoever will, within
the link's bound; so a successor gets what was meant for the dead, and drops it by the guid in the frame ("stale"). When
either end closes, the link is gone for both, and its route with it; what was under way still arrives where it can.

Each message is encoded when it is sent and decoded when it arrives, by the real codec, once; and costs one event.

What happens on the way is the `Policy`'s: it is asked once a message and answers with the copies that arrive, each with
its delay, and whether it stays behind earlier messages of its link (as on a real connection) or may overtake them.
`Weather` is the policy by rates. ZeroMQ by itself never repeats and never reorders; agents have to bear both.

A `Stranger` sends whatever bytes it likes. `recent` has what travelled last, for those who replay it.

Not simulated: idle connections that are closed, connections evicted by too many others, heartbeats of a connection.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from fabric.messages import AnyMessage
from fabric.sim.clock import Clock
from fabric.traffic import OWN_ROUTE, ROUTE, BindFailed, BusCounters, OnMessage, PortInUse, parse_address
from fabric.wire import MAX_FRAME_BYTES, BadFrame, Codec

QUEUE_MESSAGES = 1_000
"""On one link in one direction, as fabric.runtime.sockets has it."""
RECENT_FRAMES = 256
LOST_S = 0.001
"""From the end of a connection to when its other end knows."""

Frame = bytes | tuple[bytes, ...]
"""A tuple: a stranger's message in several parts."""


class Policy(Protocol):
    def copies(self, sender: str, to: str) -> Sequence[tuple[float, bool]]:
        """What becomes of a message from one host to another: (delay in seconds, in its turn) for each copy that
        arrives."""


@dataclass(slots=True)
class Weather:
    """Rates of faults, as parts of all messages; they may change at any time. `cuts`: (from, to), hosts between which
    nothing passes in this direction."""

    rng: random.Random
    delay_s: float = 0.000_2
    spread_s: float = 0.000_5
    loss: float = 0.0
    repeat: float = 0.0
    """A second copy comes, up to `late_s` later."""
    overtaken: float = 0.0
    """It comes up to `late_s` later, and holds up nothing behind it."""
    late_s: float = 1.0
    cuts: set[tuple[str, str]] = field(default_factory=set)

    def copies(self, sender: str, to: str) -> Sequence[tuple[float, bool]]:
        if self.cuts and (sender, to) in self.cuts:
            return ()
        draw = self.rng.random
        delay_s = self.delay_s + draw() * self.spread_s
        if self.loss and draw() < self.loss:
            return ()
        if self.overtaken and draw() < self.overtaken:
            return ((delay_s + draw() * self.late_s, False),)
        if self.repeat and draw() < self.repeat:
            return (delay_s, True), (delay_s + draw() * self.late_s, False)
        return ((delay_s, True),)


class Network:
    """All endpoints and what is under way between them. `policy` may be replaced at any time."""

    def __init__(self, clock: Clock, policy: Policy) -> None:
        self.clock = clock
        self.policy = policy
        self.sent = 0
        self.delivered = 0
        self.recent: deque[tuple[str, bytes]] = deque(maxlen=RECENT_FRAMES)
        """(endpoint, frame) of what was sent to addresses."""
        self._listening: dict[str, SimBus] = {}
        self._waiting: dict[str, deque[tuple[_Way, Frame]]] = {}
        self._routes = 0

    def stranger(self, endpoint: str, host: str = "elsewhere") -> Stranger:
        """Somebody who connects there; `endpoint`: "tcp://host:port", or a whole address."""
        address = parse_address(endpoint)
        return Stranger(self, endpoint if address is None else address[0], host)

    # --- for its ends ---------------------------------------------------------------------------------------------

    def listen(self, bus: SimBus, endpoint: str) -> None:
        if endpoint in self._listening:
            raise PortInUse(
                f"{endpoint} is in use: {self._listening[endpoint].address} listens there; stop it or listen on "
                "another port"
            )
        self._listening[endpoint] = bus
        for way, frame in self._waiting.pop(endpoint, ()):
            way.queued -= 1
            self._send(way, frame)

    def unlisten(self, endpoint: str) -> None:
        del self._listening[endpoint]

    def connect(self, source: End, endpoint: str, bound: int) -> Link:
        self._routes += 1
        link = Link(source, endpoint, f"{ROUTE}{self._routes:x}", bound)
        listener = self._listening.get(endpoint)
        if listener is not None:
            listener.accept(link)
        return link

    def disconnected(self, link: Link) -> None:
        """Its source has left: nothing waits for it."""
        waiting = self._waiting.pop(link.endpoint, None)
        if waiting:
            rest = deque(item for item in waiting if item[0].link is not link)
            if rest:
                self._waiting[link.endpoint] = rest

    def carry(self, way: _Way, frame: Frame) -> str | None:
        """None, or why it is dropped."""
        if way.queued >= way.link.bound:
            return "full"
        self.sent += 1
        self._send(way, frame)
        return None

    def _send(self, way: _Way, frame: Frame) -> None:
        clock = self.clock
        for delay_s, in_turn in self.policy.copies(way.sender, way.to):
            when = clock.now + delay_s
            if in_turn:
                if when < way.last:
                    when = way.last
                way.last = when
            way.queued += 1
            clock.at(when, partial(self.deliver, way, frame))

    def deliver(self, way: _Way, frame: Frame) -> None:
        link = way.link
        end: End
        if way is link.back:
            end = link.source
        elif link.endpoint in self._listening:
            end = self._listening[link.endpoint]
            if link.is_open and link.target is not end:
                self._listening[link.endpoint].accept(link)
        else:
            if link.is_open:
                self._waiting.setdefault(link.endpoint, deque()).append((way, frame))
            return
        if end.held is not None:
            end.held.append((way, frame))
            return
        way.queued -= 1
        self.delivered += 1
        end.hear(link.route, frame)


class End(Protocol):
    """Either end of a link."""

    host: str
    held: deque[tuple[_Way | None, Frame]] | None
    """What has come while its process is stopped; None: it runs."""

    def hear(self, sender: str, frame: Frame) -> None: ...

    def left(self, link: Link) -> None:
        """The link is gone."""


class _Way:
    """One direction of a link. `queued`: messages under way; `last`: when the last that keeps its turn arrives."""

    __slots__ = ("last", "link", "queued", "sender", "to")

    def __init__(self, link: Link, sender: str, to: str) -> None:
        self.link = link
        self.sender = sender
        self.to = to
        self.queued = 0
        self.last = 0.0


class Link:
    """A connection. `route` is its name, the same at both ends. `target`: who has accepted it."""

    __slots__ = ("back", "bound", "endpoint", "forth", "is_open", "route", "source", "target")

    def __init__(self, source: End, endpoint: str, route: str, bound: int) -> None:
        self.source = source
        self.target: SimBus | None = None
        self.endpoint = endpoint
        self.route = route
        self.bound = bound
        self.is_open = True
        there = host_of(endpoint)
        self.forth = _Way(self, source.host, there)
        self.back = _Way(self, there, source.host)

    def close(self) -> None:
        self.is_open = False
        self.source.left(self)
        if self.target is not None:
            self.target.left(self)


class SimBus:
    """fabric.runtime.bus.Bus for simulated agents: the same methods, counters and rules. `bind`: "tcp://host:port", a
    port of its own. Raises PortInUse, and BindFailed when it is none.

    `pause` and `resume`: its process is stopped; what comes waits, within each link's bound."""

    def __init__(
        self,
        network: Network,
        codec: Codec,
        guid: str,
        bind: str,
        *,
        on_message: OnMessage,
        on_lost: Callable[[str], None] = lambda endpoint: None,
        queue_messages: int = QUEUE_MESSAGES,
    ) -> None:
        self.address = f"{bind}/{guid}"
        self.counters = BusCounters()
        self.host = host_of(bind)
        self.held: deque[tuple[_Way | None, Frame]] | None = None
        self._network = network
        self._codec = codec
        self._guid = guid
        self._endpoint = bind
        self._on_message = on_message
        self._on_lost = on_lost
        self._bound = queue_messages
        self._links: dict[str, Link] = {}  # its own, by endpoint
        self._routes: dict[str, Link] = {}  # all, by name
        self._paths: dict[str, tuple[_Way | None, str]] = {}  # where to -> (by which way, to which incarnation)
        self._to_self = 0
        self._closed = False
        if parse_address(self.address) is None:
            raise BindFailed(f"listen address: expected tcp://host:port and a guid, found {bind!r} and {guid!r}")
        network.listen(self, bind)

    def send(self, to: str, message: AnyMessage) -> None:
        """Send to an address ("tcp://host:port/guid") or to the `sender` of a received message. Never raises for what
        the network or a peer does; what could not be sent is counted."""
        if self._closed:
            return
        path = self._paths.get(to)
        if path is None:
            found = self._find(to)
            if isinstance(found, str):
                self.counters.dropped[found] += 1
                return
            path = self._paths[to] = found
        way, guid = path
        try:
            frame = self._codec.encode(message, guid)
        except ValueError:
            self.counters.dropped["large"] += 1
            return
        except (OverflowError, TypeError):
            self.counters.dropped["encoding"] += 1
            return
        failure = self._loop_back(frame) if way is None else self._network.carry(way, frame)
        if failure is not None:
            self.counters.dropped[failure] += 1
            return
        self.counters.sent[type(message).__name__] += 1
        self.counters.bytes_sent += len(frame)
        if way is not None and guid:
            self._network.recent.append((way.link.endpoint, frame))

    def close(self) -> None:
        """Stop listening and drop every link. May be called twice."""
        if not self._closed:
            self._closed = True
            self.held = None
            self._network.unlisten(self._endpoint)
            for link in tuple(self._routes.values()):
                link.close()

    def pause(self) -> None:
        if self.held is None:
            self.held = deque()

    def resume(self) -> None:
        held, self.held = self.held, None
        for way, frame in held or ():
            if way is None:
                self._network.clock.after(0.0, partial(self._deliver_own, frame))
            else:
                self._network.clock.after(0.0, partial(self._network.deliver, way, frame))

    # --- for the network ------------------------------------------------------------------------------------------

    def accept(self, link: Link) -> None:
        link.target = self
        self._routes[link.route] = link

    def left(self, link: Link) -> None:
        self._routes.pop(link.route, None)
        self._paths.clear()
        if link.source is self:
            self._links.pop(link.endpoint, None)
            self._network.disconnected(link)
            if not self._closed:
                self.counters.lost += 1
                self.counters.peers = len(self._links)
                self._network.clock.after(LOST_S, partial(self._tell_lost, link.endpoint))

    def _tell_lost(self, endpoint: str) -> None:
        if not self._closed:
            self._on_lost(endpoint)

    def hear(self, sender: str, frame: Frame) -> None:
        if self._closed:
            return
        if isinstance(frame, tuple):
            self.counters.bad["parts"] += 1
            return
        if not frame:
            self.counters.bad["empty"] += 1
            return
        try:
            to, message = self._codec.decode(frame)
        except BadFrame as bad:
            self.counters.bad[bad.cause] += 1
            return
        if to and to != self._guid:
            self.counters.stale += 1
            return
        self.counters.received[type(message).__name__] += 1
        self.counters.bytes_received += len(frame)
        self._on_message(sender, message)

    # --- sending --------------------------------------------------------------------------------------------------

    def _find(self, to: str) -> tuple[_Way | None, str] | str:
        """(the way, the incarnation), or why there is none."""
        if to == OWN_ROUTE:
            return None, ""
        if to.startswith(ROUTE):
            link = self._routes.get(to)
            if link is None:
                return "gone"
            return link.forth if link.source is self else link.back, ""
        address = parse_address(to)
        if address is None:
            return "address"
        endpoint, guid = address
        if endpoint == self._endpoint:
            return None, guid
        link = self._links.get(endpoint)
        if link is None:
            link = self._links[endpoint] = self._network.connect(self, endpoint, self._bound)
            self._routes[link.route] = link
            self.counters.peers = len(self._links)
        return link.forth, guid

    def _loop_back(self, frame: bytes) -> str | None:
        if self._to_self >= self._bound:
            return "full"
        self._to_self += 1
        self._network.clock.after(0.0, partial(self._deliver_own, frame))
        return None

    def _deliver_own(self, frame: Frame) -> None:
        if self.held is not None:
            self.held.append((None, frame))
            return
        self._to_self -= 1
        self.hear(OWN_ROUTE, frame)


class Stranger:
    """Somebody with a connection to an agent's port and no manners. `heard`: the frames that came back."""

    def __init__(self, network: Network, endpoint: str, host: str) -> None:
        self.host = host
        self.held: deque[tuple[_Way | None, Frame]] | None = None
        self.heard: list[Frame] = []
        self._network = network
        self._link = network.connect(self, endpoint, QUEUE_MESSAGES)

    def send(self, *parts: bytes) -> None:
        """One message. A part that is too large costs the connection, as libzmq has it."""
        if any(len(part) > MAX_FRAME_BYTES for part in parts):
            self.close()
        elif self._link.is_open:
            self._network.carry(self._link.forth, parts[0] if len(parts) == 1 else parts)

    def close(self) -> None:
        if self._link.is_open:
            self._link.close()

    def hear(self, sender: str, frame: Frame) -> None:
        self.heard.append(frame)

    def left(self, link: Link) -> None:
        self._network.disconnected(link)


def host_of(endpoint: str) -> str:
    """Of "tcp://host:port"."""
    return endpoint.removeprefix("tcp://").rpartition(":")[0]
