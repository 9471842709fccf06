"""HTTP/1.1 as a client, over h11 on the loop: kept connections, bounds, half answers told from whole ones.

Theory of operation. `HttpClient.ask` sends one request on a connection to the place and gives the answer; a large body
goes piece by piece into a sink instead. Connections that ended well are kept for the next request to the same place,
for less time than servers keep them; one that turns out to be closed before it answered anything is replaced, as all
requests made here may be repeated. An answer that comes in one piece with a head that was read before goes past h11
(heads), and so does a request whose head was written before.

An answer is whole when its length was told (Content-Length, chunks) and came, and nothing came after it; one that
just ends with its connection is no answer, since half of it looks the same. Everything has a bound: connections in all
and to one place, time to connect, time without a byte, time in all, bytes of head and body.

Redirects are not followed here but by `fetch`: at most `MAX_REDIRECTS`, none twice, to http and https alone, and never
from https to http. Requests carry no credentials, and URLs that do are refused.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import SupportsIndex
from urllib.parse import urljoin, urlsplit

import h11

from deploy.repository.heads import Heads, is_simple, parted
from deploy.resolved import Unresolved

MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_READ_BYTES = 1 << 16
_ASIDE_BYTES = 1 << 16
"""Of an answer that is none (404, 500, …): what it says of itself."""

Sink = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Limits:
    connections: int = 64
    connections_to_one: int = 8
    """Requests beyond these wait for their turn."""
    connect_s: float = 5.0
    stall_s: float = 15.0
    """Without a byte of the answer."""
    whole_s: float = 600.0
    """From the beginning to the end of one answer, however steadily it comes."""
    idle_s: float = 20.0
    """A connection is kept so long."""
    head_bytes: int = 16_384


@dataclass(frozen=True, slots=True)
class Place:
    secure: bool
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Answer:
    """`url`: whose answer it is, after redirects. `headers`: names in lower case. `body`: empty when it went into a
    sink."""

    url: str
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    url: str
    place: Place
    target: bytes
    headers: tuple[tuple[str, str], ...]
    body: bytes
    sink: Sink | None
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class _Head:
    """Of an answer that was read before; its status was 200."""

    headers: dict[str, str]
    length: int


_Asked = tuple[str, Place, bytes, tuple[tuple[str, str], ...], int]
"""What a request's head is made from: method, place, target, headers, length."""


class _Reader(asyncio.StreamReader):
    """Notes what comes while nothing was asked: it would be taken for the answer to the next request."""

    resting = False
    spoilt = False

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        self.spoilt = self.spoilt or self.resting
        super().feed_data(data)


@dataclass(slots=True)
class _Kept:
    reader: _Reader
    writer: asyncio.StreamWriter
    http: h11.Connection
    until: float = 0.0


class _Closed(Exception):
    """The other side closed the connection before it answered."""


@dataclass(slots=True)
class _Line:
    """Connections to one place."""

    slots: asyncio.Semaphore
    kept: list[_Kept] = field(default_factory=list)
    users: int = 0


def place_of(url: str) -> tuple[Place, bytes]:
    """Where to connect, and what to ask for there. Raises Unresolved."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise Unresolved(f"expected an http or https URL, found {url[:200]!r}", again=False)
    if parts.username is not None or parts.password is not None:
        raise Unresolved(f"expected a URL without user and password, found one for {parts.hostname}", again=False)
    secure = parts.scheme == "https"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Place(secure, parts.hostname, port or (443 if secure else 80)), target.encode("ascii")


class HttpClient:
    """Made and used on one loop. Whatever goes wrong is an Unresolved."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.connections_made = 0
        self._slots = asyncio.Semaphore(self.limits.connections)
        self._lines: dict[Place, _Line] = {}
        self._loop = asyncio.get_running_loop()
        self._tls: ssl.SSLContext | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._heads: Heads[bytes, _Head] = Heads()
        self._written: Heads[_Asked, bytes] = Heads()

    async def ask(
        self,
        method: str,
        url: str,
        *,
        headers: tuple[tuple[str, str], ...] = (),
        body: bytes = b"",
        limit_bytes: int,
        sink: Sink | None = None,
    ) -> Answer:
        """One request. The body of an answer with status 200 has at most `limit_bytes`, and goes into `sink` if one is
        given. Raises Unresolved, and what `sink` raises."""
        place, target = place_of(url)
        line = self._lines.get(place)
        if line is None:
            line = self._lines[place] = _Line(asyncio.Semaphore(self.limits.connections_to_one))
        request = _Request(method, url, place, target, headers, body, sink, limit_bytes)
        line.users += 1
        try:
            async with line.slots, self._slots, asyncio.timeout(self.limits.whole_s):
                return await self._ask(line, request)
        except TimeoutError:
            raise Unresolved(f"{url}: expected the answer within {self.limits.whole_s:g} s", again=True) from None
        finally:
            line.users -= 1
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(self.limits.idle_s, self._sweep)

    async def fetch(
        self, url: str, *, headers: tuple[tuple[str, str], ...] = (), limit_bytes: int, sink: Sink | None = None
    ) -> Answer:
        """GET, redirects followed. The answer's status is 200 or 304. Raises Unresolved, and what `sink` raises."""
        seen = [url]
        while True:
            answer = await self.ask("GET", seen[-1], headers=headers, limit_bytes=limit_bytes, sink=sink)
            if answer.status in (200, 304):
                return answer
            if answer.status not in _REDIRECTS:
                raise Unresolved(
                    f"{_chain(seen)}: expected it to be there, found HTTP status {answer.status}",
                    again=answer.status >= 500 or answer.status in (408, 425, 429),
                )
            seen.append(_next_url(seen, answer))

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        kept = [one.writer for line in self._lines.values() for one in line.kept]
        self._lines.clear()
        for writer in kept:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in kept), return_exceptions=True)

    def _sweep(self) -> None:
        """Close what was not used for long; forget places to which nothing is open."""
        now = self._loop.time()
        self._sweeper = None
        for place, line in list(self._lines.items()):
            for one in [one for one in line.kept if one.until <= now]:
                line.kept.remove(one)
                one.writer.transport.abort()
            if not line.kept and not line.users:
                del self._lines[place]
        if self._lines:
            self._sweeper = self._loop.call_later(self.limits.idle_s, self._sweep)

    # --- one request -------------------------------------------------------------------------------------------------

    async def _ask(self, line: _Line, request: _Request) -> Answer:
        while line.kept:
            kept = line.kept.pop()
            kept.reader.resting = False
            if kept.until > self._loop.time() and not kept.reader.at_eof() and not kept.reader.spoilt:
                with suppress(_Closed):
                    return await self._exchange(line, kept, request)
            kept.writer.transport.abort()
        fresh = await self._connect(request)
        try:
            return await self._exchange(line, fresh, request)
        except _Closed:
            raise Unresolved(f"{request.url}: expected an answer, found the connection closed", again=True) from None

    async def _connect(self, request: _Request) -> _Kept:
        place = request.place
        if place.secure and self._tls is None:
            self._tls = ssl.create_default_context()
        try:
            async with asyncio.timeout(self.limits.connect_s):
                reader = _Reader(_READ_BYTES, self._loop)
                transport, protocol = await self._loop.create_connection(
                    lambda: asyncio.StreamReaderProtocol(reader, loop=self._loop),
                    place.host,
                    place.port,
                    ssl=self._tls if place.secure else None,
                )
                writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
        except TimeoutError:
            why = f"no answer within {self.limits.connect_s:g} s"
        except (OSError, UnicodeError) as error:
            why = str(error)
        else:
            self.connections_made += 1
            return _Kept(reader, writer, h11.Connection(h11.CLIENT, max_incomplete_event_size=self.limits.head_bytes))
        raise Unresolved(f"{request.url}: expected to connect to {place}, found: {why}", again=True)

    async def _exchange(self, line: _Line, kept: _Kept, request: _Request) -> Answer:
        http = kept.http
        whole = False
        try:
            kept.writer.write(self._encoded(request))
            data = await self._read(kept, request, closed_is_no_answer=True)
            answer = self._known(data, request)
            if answer is not None:
                whole = True
                return answer
            for event in _events(request):
                http.send(event)
            http.receive_data(data)
            head = await self._head(kept, request)
            body = await self._body(kept, request, head.status_code)
            whole = http.our_state is h11.DONE and http.their_state is h11.DONE
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
            if whole:
                http.start_next_cycle()
                self._remember(data, head.status_code, headers, body)
            return Answer(request.url, head.status_code, headers, body)
        except h11.RemoteProtocolError as error:
            raise Unresolved(f"{request.url}: expected a whole HTTP/1.1 answer, found: {error}", again=True) from None
        except OSError as error:
            raise Unresolved(f"{request.url}: expected a whole answer, found: {error}", again=True) from None
        finally:
            if whole:
                kept.until = self._loop.time() + self.limits.idle_s
                kept.reader.resting = True
                line.kept.append(kept)
            else:
                kept.writer.transport.abort()  # what TLS says on leaving is not worth waiting for

    def _encoded(self, request: _Request) -> bytes:
        key = (request.method, request.place, request.target, request.headers, len(request.body))
        head = self._written.get(key)
        if head is None:
            head = h11.Connection(h11.CLIENT).send(_events(request)[0]) or b""
            self._written.keep(key, head)
        return head + request.body

    def _known(self, data: bytes, request: _Request) -> Answer | None:
        head, body = parted(data)
        known = self._heads.get(head)
        if known is None or known.length != len(body) or known.length > request.limit_bytes:
            return None
        if request.sink is None:
            return Answer(request.url, 200, known.headers, body)
        request.sink(body)
        return Answer(request.url, 200, known.headers, b"")

    def _remember(self, data: bytes, status: int, headers: dict[str, str], body: bytes) -> None:
        head, rest = parted(data)
        if status == 200 and rest == body and is_simple(headers):
            self._heads.keep(head, _Head(headers, len(body)))

    async def _head(self, kept: _Kept, request: _Request) -> h11.Response:
        while True:
            event = kept.http.next_event()
            if event is h11.NEED_DATA:
                data = await self._read(kept, request, closed_is_no_answer=not kept.http.trailing_data[0])
                kept.http.receive_data(data)
            elif isinstance(event, h11.Response):
                break
            elif not isinstance(event, h11.InformationalResponse):
                raise _Closed
        names = {name for name, _ in event.headers}
        length = next((value for name, value in event.headers if name == b"content-length"), b"")
        if event.status_code == 200 and not length and b"transfer-encoding" not in names:
            expected = "Content-Length or chunks, as else half an answer looks like a whole one"
            raise Unresolved(f"{request.url}: expected {expected}, found neither", again=False)
        if event.status_code == 200 and length and int(length) > request.limit_bytes:
            expected = f"at most {request.limit_bytes:,} bytes"
            raise Unresolved(f"{request.url}: expected {expected}, found {int(length):,} announced", again=False)
        return event

    async def _body(self, kept: _Kept, request: _Request, status: int) -> bytes:
        good = status == 200
        limit = request.limit_bytes if good else _ASIDE_BYTES
        pieces: list[bytes] = []
        sink = request.sink if good and request.sink is not None else pieces.append
        taken = 0
        while not isinstance(event := kept.http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                kept.http.receive_data(await self._read(kept, request, closed_is_no_answer=False))
            elif isinstance(event, h11.Data):
                taken += len(event.data)
                if taken > limit:
                    raise Unresolved(f"{request.url}: expected at most {limit:,} bytes, found more", again=False)
                sink(bytes(event.data))
            else:
                raise Unresolved(f"{request.url}: expected a whole answer, found {type(event).__name__}", again=True)
        if kept.http.trailing_data[0]:
            raise Unresolved(f"{request.url}: expected {taken:,} bytes as announced, found more", again=True)
        return b"".join(pieces)

    async def _read(self, kept: _Kept, request: _Request, *, closed_is_no_answer: bool) -> bytes:
        """Empty at the end of the connection. Raises _Closed, Unresolved, OSError."""
        try:
            async with asyncio.timeout(self.limits.stall_s):
                data = await kept.reader.read(_READ_BYTES)
        except TimeoutError:
            found = f"nothing for {self.limits.stall_s:g} s"
            raise Unresolved(f"{request.url}: expected an answer, found {found}", again=True) from None
        except ConnectionError:
            if closed_is_no_answer:
                raise _Closed from None
            raise
        if not data and closed_is_no_answer:
            raise _Closed
        return data


def _events(request: _Request) -> list[h11.Event]:
    headers = [("host", str(request.place)), *request.headers]
    if request.body:
        headers.append(("content-length", str(len(request.body))))
    head = h11.Request(method=request.method, target=request.target, headers=headers)
    body = [h11.Data(data=request.body)] if request.body else []
    return [head, *body, h11.EndOfMessage()]


def _next_url(seen: list[str], answer: Answer) -> str:
    """Where a redirect leads. Raises Unresolved."""
    to = answer.headers.get("location", "")
    url = urljoin(seen[-1], to).partition("#")[0]
    chain = _chain(seen)
    if not to or not url.isascii() or not url.isprintable() or " " in url:
        raise Unresolved(f"{chain}: expected a URL to be redirected to, found {to[:200]!r}", again=False)
    if not url.startswith(("http://", "https://")) or (seen[-1].startswith("https:") and not url.startswith("https:")):
        raise Unresolved(f"{chain}: expected no redirect to something less safe, found one to {url[:200]}", again=False)
    if url in seen:
        raise Unresolved(f"{chain}: expected no redirects in a circle, found one back to {url[:200]}", again=False)
    if len(seen) > MAX_REDIRECTS:
        raise Unresolved(f"{chain}: expected at most {MAX_REDIRECTS} redirects, found more", again=False)
    return url


def _chain(seen: list[str]) -> str:
    return " -> ".join(url[:200] for url in seen)
