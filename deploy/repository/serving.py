"""HTTP/1.1 connections of a server, over h11: bounds, keep-alive, bodies from memory and from files.

Theory of operation. One asyncio.Protocol a connection. Bytes go into h11, a whole request goes to the handler, its
answer goes out in one write when it is small; the next request of the same connection waits until then. A handler
answers at once, or with an awaitable when it must wait for something. A file is sent in pieces, as fast as the other
side takes them. A request that comes in one piece with a head that was read before goes past h11 (heads).

Bounds: `Limits`. A sweep each second closes connections that were idle, or that did not finish their request or take
their answer, for too long; when there are as many connections as may be, the one that is idle for longest makes room.
Closing a server lets answers under way be finished for `stop_s`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import h11

from deploy.repository.files import Held, read_all
from deploy.repository.heads import Heads, is_simple, parted

log = logging.getLogger(__name__)

Headers = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Limits:
    connections: int = 4_000
    header_bytes: int = 8_192
    body_bytes: int = 4_096
    idle_s: float = 60.0
    """Between two requests."""
    request_s: float = 10.0
    """From a request's first byte to its last."""
    stalled_s: float = 60.0
    """Without the other side taking anything of an answer."""
    stop_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Asked:
    """`path`: without query."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """`file`: sent instead of `body`, `size` bytes of it."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    file: Held | None = None
    size: int = 0


@dataclass(frozen=True, slots=True)
class _Head:
    """Of a request that was read before."""

    method: str
    path: str
    headers: dict[str, str]
    length: int


_Said = tuple[int, tuple[tuple[str, str], ...], int]
"""What an answer's head is made from: status, headers, length."""

Handler = Callable[[Asked], Answer | Awaitable[Answer]]
Refuse = Callable[[int, str], Answer]
"""An answer for what never reached the handler: (status, why)."""


class HttpServer:
    """Made on the loop. `handler` must not raise; if it does, that is logged and answered with 500."""

    def __init__(self, handler: Handler, refuse: Refuse, limits: Limits | None = None) -> None:
        self.handler, self.refuse = handler, refuse
        self.limits = limits or Limits()
        self.connections: dict[Connection, None] = {}
        self.requests = 0
        self.closing = False
        self.heads: Heads[bytes, _Head] = Heads()
        self.written: Heads[_Said, bytes] = Heads()
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def listen(self, listener: socket.socket) -> None:
        """`listener` is bound, and closed by `close`."""
        self._server = await self._loop.create_server(lambda: Connection(self), sock=listener, backlog=1_024)
        self._sweep()

    async def close(self) -> None:
        self.closing = True
        if self._server is not None:
            self._server.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        deadline = self._loop.time() + self.limits.stop_s
        for connection in list(self.connections):
            connection.close_if_idle()
        while self.connections and self._loop.time() < deadline:
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            connection.abort()

    def joined(self, connection: Connection) -> None:
        self.connections[connection] = None
        if len(self.connections) > self.limits.connections:
            idle = next((one for one in self.connections if one.idle and one is not connection), connection)
            idle.abort()

    def left(self, connection: Connection) -> None:
        self.connections.pop(connection, None)

    def used(self, connection: Connection) -> None:
        """The least recently used come first."""
        self.connections.pop(connection, None)
        self.connections[connection] = None

    def _sweep(self) -> None:
        now = self._loop.time()
        for connection in list(self.connections):
            connection.check(now)
        limits = self.limits
        every_s = min(1.0, limits.idle_s, limits.request_s, limits.stalled_s)
        self._sweeper = self._loop.call_later(every_s, self._sweep)


class Connection(asyncio.Protocol):
    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._limits = server.limits
        self._loop = asyncio.get_running_loop()
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.header_bytes)
        self._transport: asyncio.Transport
        self._request: h11.Request | None = None
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._since = self._loop.time()
        self._refused = False
        self._ended = False
        self._whole = b""  # what came while nothing was under way: a whole request, if it is looked at again
        self.idle = True

    # --- what asyncio calls ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.joined(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.left(self)
        self._writable.set()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._since = self._loop.time()
        self._writable.set()
        self._transport.resume_reading()
        self._read()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._whole = b""
        if self.idle:
            if self._quick(data):
                return
            self.idle, self._whole = False, data
            self._since = self._loop.time()
        self._http.receive_data(data)
        self._read()
        if len(self._http.trailing_data[0]) > self._limits.header_bytes:
            self._transport.pause_reading()  # requests far ahead of their answers

    def eof_received(self) -> bool:
        self._ended = True
        return self._task is not None  # an answer under way is still sent

    # --- requests ----------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """As many requests as are there and can be answered at once."""
        while self._task is None and self._writable.is_set() and not (self._refused or self._transport.is_closing()):
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                self._refuse(error.error_status_hint, f"expected an HTTP/1.1 request: {error}")
                return
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return
            if isinstance(event, h11.Request):
                # h11 bounds what is incomplete, not what came whole in one piece
                size = len(event.target) + sum(len(name) + len(value) for name, value in event.headers)
                if size > self._limits.header_bytes:
                    self._refuse(431, f"expected at most {self._limits.header_bytes:,} bytes of headers, found more")
                    return
                self._request = event
                if self._http.they_are_waiting_for_100_continue:
                    self._send(h11.InformationalResponse(status_code=100, headers=[]))
            elif isinstance(event, h11.Data):
                self._body.append(bytes(event.data))
                self._body_bytes += len(event.data)
                if self._body_bytes > self._limits.body_bytes:
                    self._refuse(413, f"expected at most {self._limits.body_bytes:,} bytes, found more")
                    return
            elif isinstance(event, h11.EndOfMessage):
                self._ask()
            else:
                self._transport.close()
                return

    def _quick(self, data: bytes) -> bool:
        """Answered, if it is a whole request with a known head, and so is the answer's."""
        head, body = parted(data)
        known = self._server.heads.get(head)
        closing = self._server.closing or self._ended or self._transport.is_closing()
        if known is None or known.length != len(body) or closing or not self._writable.is_set():
            return False
        self._server.requests += 1
        asked = Asked(known.method, known.path, known.headers, body)
        answer = self._handled(asked)
        if isinstance(answer, Answer) and answer.file is None:
            written = self._server.written.get((answer.status, answer.headers, len(answer.body)))
            if written is not None:
                self._transport.write(written + answer.body)
                self._since = self._loop.time()
                self._server.used(self)
                return True
        self.idle = False
        self._since = self._loop.time()
        self._http.receive_data(data)
        while not isinstance(self._http.next_event(), h11.EndOfMessage):
            pass
        self._answer_soon(asked, answer)
        return True

    def _ask(self) -> None:
        request, self._request = self._request, None
        assert request is not None
        body = b"".join(self._body)
        self._body, self._body_bytes = [], 0
        self._server.requests += 1
        self._since = self._loop.time()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
        asked = Asked(
            request.method.decode("latin-1"), request.target.decode("latin-1").partition("?")[0], headers, body
        )
        self._answer_soon(asked, self._handled(asked))

    def _handled(self, asked: Asked) -> Answer | Awaitable[Answer]:
        try:
            return self._server.handler(asked)
        except Exception:
            log.exception("%s %s", asked.method, asked.path)
            return self._server.refuse(500, "a fault of this server; its log says more")

    def _answer_soon(self, asked: Asked, answer: Answer | Awaitable[Answer]) -> None:
        if isinstance(answer, Answer) and answer.file is None:
            self._answer(asked, answer)
        else:
            self._task = self._loop.create_task(self._answer_later(asked, answer))

    def _refuse(self, status: int, why: str) -> None:
        """No more requests on this connection: nobody knows where the next one would begin. What the other side still
        sends is let pass until it has read the answer and closes, or `check` does: closed at once, the system would
        tell it "connection reset" instead of the answer."""
        self._refused = True
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._write_whole(self._server.refuse(status, why), "", close=True)
        self._transport.write_eof()

    # --- answers -----------------------------------------------------------------------------------------------------

    def _answer(self, asked: Asked, answer: Answer) -> None:
        head = self._write_whole(answer, asked.method, close=self._server.closing)
        if self._is_done() and asked.method != "HEAD" and answer.status == 200 and is_simple(asked.headers):
            self._remember(asked, answer, head)
        self._next()

    def _remember(self, asked: Asked, answer: Answer, written: bytes) -> None:
        head, body = parted(self._whole)
        if self._whole and body == asked.body:
            self._server.heads.keep(head, _Head(asked.method, asked.path, asked.headers, len(body)))
            self._server.written.keep((answer.status, answer.headers, len(answer.body)), written)

    def _is_done(self) -> bool:
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _answer_later(self, asked: Asked, answer: Answer | Awaitable[Answer]) -> None:
        try:
            try:
                found = answer if isinstance(answer, Answer) else await answer
            except Exception:
                log.exception("%s %s", asked.method, asked.path)
                found = self._server.refuse(500, "a fault of this server; its log says more")
            if found.file is None:
                self._write_whole(found, asked.method, close=self._server.closing)
            else:
                await self._write_file(found, found.file, asked.method)
        except (h11.LocalProtocolError, OSError) as error:
            log.warning("%s %s: answered by half: %s", asked.method, asked.path, error)
            self._transport.abort()
        finally:
            self._task = None
        if not self._transport.is_closing():
            self._next()
            self._transport.resume_reading()
            self._read()

    def _next(self) -> None:
        if not self._is_done() or self._ended or self._server.closing:
            self._transport.close()
            return
        self._whole = b""
        self._http.start_next_cycle()
        self._since = self._loop.time()
        self.idle = not self._http.trailing_data[0]
        self._server.used(self)

    def _head(self, answer: Answer, size: int, close: bool) -> h11.Response:
        headers = list(answer.headers)
        if answer.status != 304:
            headers.append(("content-length", str(size)))
        if close:
            headers.append(("connection", "close"))
        return h11.Response(status_code=answer.status, headers=headers)

    def _write_whole(self, answer: Answer, method: str, close: bool) -> bytes:
        """The head that was written."""
        head = self._http.send(self._head(answer, len(answer.body), close)) or b""
        pieces = [head]
        if method != "HEAD" and answer.status != 304:
            pieces.append(self._http.send(h11.Data(data=answer.body)) or b"")
        pieces.append(self._http.send(h11.EndOfMessage()) or b"")
        self._transport.write(b"".join(pieces))
        return head

    async def _write_file(self, answer: Answer, file: Held, method: str) -> None:
        self._send(self._head(answer, answer.size, self._server.closing))
        if method != "HEAD":
            for chunk in read_all(file.fd, answer.size):
                self._send(h11.Data(data=chunk))
                await self._writable.wait()
        self._send(h11.EndOfMessage())

    def _send(self, event: h11.Response | h11.InformationalResponse | h11.Data | h11.EndOfMessage) -> None:
        self._transport.write(self._http.send(event) or b"")

    # --- ends --------------------------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        limits = self._limits
        if self.idle:
            allowed_s = limits.idle_s
        elif self._task is None and self._writable.is_set():
            allowed_s = limits.request_s
        else:
            allowed_s = limits.stalled_s
        if now - self._since > allowed_s:
            self.abort()

    def close_if_idle(self) -> None:
        if self.idle:
            self._transport.close()

    def abort(self) -> None:
        self._transport.abort()
