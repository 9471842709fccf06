"""The chunk server: a thread that listens for TCP connections, over whatever has chunks (`Source`): the store of a
storage agent, or the pieces of a node that fetches.

    every turn, for each connection that has something:   take what came, answer what is quick, send chunks

The kernel sends chunks from their files (`fabric.images.stretch`), so that these take no memory whatever the peers
ask for, and hardly any time. A connection has one chunk under way, and then the next one's turn comes: a peer that
reads slowly waits for itself alone. Of a peer that owes us the reading of `PEER_REQUESTS` answers nothing more is read,
so that TCP makes it wait.

A chunk that is not here yet, but will be (`NotYet`), is waited for: the request is parked (`fabric.images.parking`),
and tried again when the source says that the chunk has come. Meanwhile the asker is told `Underway` every `SWEEP_S`, so
that it can tell waiting from dead.

Who asks for mates is put in touch with the others of its rack (`fabric.images.mates`). What only a storage agent is
asked (pushes, copies) is the affair of `fabric.images.intake`, if there is one.

A connection over which something comes that is not of the protocol is closed, and so is one that neither takes what it
asked for, nor sends the rest of what it began, for `SILENT_S`. One over which nothing is asked stays open, until others
have no room beside it. All of these are counted.
"""

from __future__ import annotations

import errno
import logging
import select
import socket as sockets
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace

from fabric.images.callers import Caller
from fabric.images.desk import Counters, Source, TakesIn, Watcher
from fabric.images.errors import EndpointError, ImageError, NotYet
from fabric.images.manifest import Buffer
from fabric.images.mates import MateTable
from fabric.images.parking import Parked, Turn
from fabric.images.protocol import (
    MAX_DATA_BYTES,
    Answer,
    Data,
    GetChunk,
    GetHave,
    GetManifest,
    GetMates,
    Have,
    Mates,
    ProtocolError,
    Refused,
    Request,
    Underway,
    decode_request,
    encode,
    encode_mates,
    refused,
)
from fabric.images.refusals import refusal
from fabric.images.stretch import Stretch
from fabric.images.wire import Buffers, Closed, address_of, set_up

SWEEP_S = 1.0
"""How often idle pushes and silent peers are looked for, and those who wait are told that they are not forgotten."""
SILENT_S = 15.0
MAX_CALLERS = 1024
"""Beyond, who has asked for nothing for longest makes room."""
MAX_BODIES = 64
"""Chunks that may be on their way in at a time, each in memory: as many as pushes may be open."""
_BACKLOG = 256
_TAKE_AT_ONCE = 16
_ACCEPT_AT_ONCE = 16
_STOP_WAIT_S = 30.0

log = logging.getLogger(__name__)


class ChunkServer:
    def __init__(
        self,
        source: Source,
        bind: str = "tcp://127.0.0.1:*",
        *,
        intake: TakesIn | None = None,
        advertise: str | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        """`bind`: where to listen, `*` for any free port. `advertise`: the host that peers connect to, if not that
        one.
        """
        self._watcher = watcher
        self._source = source
        self._intake = intake
        self._bind = bind
        self._advertise = advertise
        self._counters = Counters()
        self._buffers = Buffers(MAX_BODIES)
        self._callers: dict[int, Caller] = {}  # by file descriptor
        self._peers: dict[int, Caller] = {}
        self._last_peer = 0
        self._ready: dict[int, Caller] = {}
        """By peer: those to be looked at again without being told of by the kernel."""
        self._mates = MateTable()
        self._parked = Parked()
        self._news: deque[bytes | None] = deque()
        """Chunks that came; None: any may have come, or never will."""
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._listener: sockets.socket
        self._epoll: select.epoll
        self._wake_out: sockets.socket
        self._wake_in: sockets.socket

    # -- for other threads ---------------------------------------------------------------------------------------------

    def start(self) -> str:
        """Listens and serves; answers with the endpoint for peers. Raises `EndpointError` if it can't listen there."""
        with ExitStack() as opened:
            try:
                family, address = address_of(self._bind, listen=True)
                both = family == sockets.AF_INET6 and sockets.has_dualstack_ipv6()
                listener = sockets.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=both)
                self._listener = opened.enter_context(listener)
                self._wake_out, self._wake_in = (opened.enter_context(one) for one in sockets.socketpair())
                self._epoll = opened.enter_context(select.epoll())
            except (OSError, ValueError) as error:
                in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
                hint = ": the port is in use; stop who has it, or choose another" if in_use else f": {error}"
                raise EndpointError(f"can't serve chunks at {self._bind}{hint}") from None
            opened.pop_all()
        for one in (self._listener, self._wake_out, self._wake_in):
            one.setblocking(False)
        host, port = self._listener.getsockname()[:2]
        self._epoll.register(self._listener, select.EPOLLIN)
        self._epoll.register(self._wake_in, select.EPOLLIN)
        if self._intake is not None:
            self._intake.open(self)
        self._thread = threading.Thread(target=self._run, name="images-server", daemon=True)
        self._thread.start()
        told = self._advertise if self._advertise is not None else f"[{host}]" if ":" in host else host
        return f"tcp://{told}:{port}"

    def stop(self) -> None:
        """Stops serving; what is under way is cut off. A repeat does nothing. The source stays open."""
        if self._thread is None:
            return
        self._stopping.set()
        self.wake()
        self._thread.join(_STOP_WAIT_S)
        self._thread = None
        if self._intake is not None:
            self._intake.close()
        self._wake_out.close()
        self._wake_in.close()

    def counters(self) -> Counters:
        """A copy of the figures as they are now."""
        jobs, pushes = self._intake.count() if self._intake is not None else (0, 0)
        peers = sum(caller.busy for caller in tuple(self._callers.values()))
        return replace(self._counters, peers=peers, jobs=jobs, pushes=pushes)

    def changed(self, chunk: bytes | None) -> None:
        """Of the source: this chunk was not there yet, and may be; None: any."""
        if self._parked.awaits(chunk):
            self._news.append(chunk)
            self.wake()

    def wake(self) -> None:
        """Something has happened: look at it soon."""
        try:
            self._wake_out.send(b"w")
        except OSError:
            return  # full, so it will wake anyway; or closed, so nobody listens

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        sweep_at = time.monotonic() + SWEEP_S
        while not self._stopping.is_set():
            timeout_s = 0.0 if self._ready else max(0.0, sweep_at - time.monotonic())
            try:
                self._turn(self._epoll.poll(timeout_s))
                if time.monotonic() >= sweep_at:
                    sweep_at = time.monotonic() + SWEEP_S
                    self._sweep()
            except Exception:
                log.exception("the chunk server goes on after an error of its own")
        for caller in list(self._callers.values()):
            self._drop(caller)
        self._listener.close()
        self._epoll.close()

    def _turn(self, events: list[tuple[int, int]]) -> None:
        knocks = False
        for fd, what in events:
            if fd == self._listener.fileno():
                knocks = True
            elif fd == self._wake_in.fileno():
                self._look()
            elif (caller := self._callers.get(fd)) is None:
                continue
            elif what & (select.EPOLLHUP | select.EPOLLERR):  # told whether we want to know or not, and for ever
                self._drop(caller)
            else:
                self._ready[caller.peer] = caller
        ready, self._ready = self._ready, {}
        for caller in ready.values():
            if self._peers.get(caller.peer) is caller:
                self._attend(caller)
        if knocks:  # last: who comes may have the file descriptor of one who went
            self._accept()

    def _accept(self) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                socket, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # such as too many open files: those who knock wait until the next sweep
                log.warning("connections can't be taken at %s: %s", self._bind, error)
                self._epoll.modify(self._listener, 0)
                return
            if len(self._callers) >= MAX_CALLERS and not self._part_with_one():
                self._counters.rejected += 1
                socket.close()
                continue
            try:
                set_up(socket)
                self._epoll.register(socket, select.EPOLLIN)
            except OSError as error:
                log.warning("a connection can't be taken at %s: %s", self._bind, error)
                socket.close()
                continue
            self._last_peer += 1
            most = MAX_DATA_BYTES if self._intake is not None else 0
            caller = Caller(self._last_peer, socket, self._buffers, most)
            self._callers[caller.fd] = self._peers[caller.peer] = caller

    def _part_with_one(self) -> bool:
        """Closes the connection over which nothing has been asked for longest, if that is `SILENT_S` at least."""
        idle = min(self._callers.values(), key=lambda caller: caller.busy_until)
        if idle.busy or time.monotonic() - idle.busy_until < SILENT_S:
            return False
        self._counters.rejected += 1
        self._drop(idle)
        return True

    def _attend(self, caller: Caller) -> None:
        """Takes what has come over a connection, and sends what it is owed, as far as that goes without waiting."""
        try:
            more = self._take(caller)
            full = not caller.may_ask
            more = self._send(caller) or more
            more = more or (full and caller.may_ask)  # what it asks next may be here, and not with the kernel
        except ProtocolError as error:
            log.debug("a connection is closed: %s", error)
            self._counters.rejected += 1
            self._drop(caller)
        except (Closed, OSError, EOFError) as error:
            if isinstance(error, EOFError) or getattr(error, "errno", None) == errno.EIO:
                log.warning("a connection is closed in the middle of a chunk, which can't be read: %s", error)
            self._drop(caller)
        except Exception:
            log.exception("a connection is closed after an error of our own")
            self._drop(caller)
        else:
            if more:
                self._ready[caller.peer] = caller
            wanted = (select.EPOLLOUT if len(caller.outgoing) else 0) | (select.EPOLLIN if caller.may_ask else 0)
            if wanted != caller.interest:
                caller.interest = wanted
                self._epoll.modify(caller.fd, wanted)

    def _drop(self, caller: Caller) -> None:
        del self._callers[caller.fd], self._peers[caller.peer]
        self._epoll.unregister(caller.fd)
        hungry = caller.incoming.holds_buffer
        caller.close()
        self._parked.gone(caller.peer)
        if self._intake is not None:
            self._intake.gone(caller.peer)
        if hungry:
            self._feed_hungry()

    def _feed_hungry(self) -> None:
        """A buffer is free."""
        for caller in self._callers.values():
            if caller.incoming.hungry:
                caller.incoming.hungry = False
                self._ready[caller.peer] = caller

    def _look(self) -> None:
        with suppress(BlockingIOError):
            self._wake_in.recv(4096)
        if self._intake is not None:
            self._intake.look()
        while self._news:
            for peer, request in self._parked.take(self._news.popleft()):
                caller = self._peers[peer]
                caller.parked -= 1
                caller.waiting.append(request)
                self._ready[peer] = caller

    def _sweep(self) -> None:
        if self._intake is not None:
            self._intake.sweep()
        for peer, request in self._parked.one_each():
            self.answer(peer, Underway(id=request.id, done=0, total=0))
        now = time.monotonic()
        for caller in list(self._callers.values()):
            caller.rest(now)
            if now - caller.moved_at(now) >= SILENT_S:
                self._counters.rejected += 1
                self._drop(caller)
        if not any(caller.busy for caller in self._callers.values()):
            self._buffers.free()
        self._epoll.modify(self._listener, select.EPOLLIN)

    # -- what comes ----------------------------------------------------------------------------------------------------

    def _take(self, caller: Caller) -> bool:
        """True: there may be more."""
        for _ in range(_TAKE_AT_ONCE):
            if not caller.may_ask:
                return False
            message = caller.incoming.next()
            if message is None:
                return False
            request = decode_request(message.header, None if message.data is None else len(message.data))
            caller.busy = True
            self._handle(caller, request, message.data if message.data is not None else memoryview(b""))
            if message.data is not None:
                caller.incoming.done()
                self._feed_hungry()
        return True

    def _handle(self, caller: Caller, request: Request, data: memoryview) -> None:
        self._counters.bytes_in += len(data)
        if self._watcher is not None and isinstance(request, GetManifest | GetChunk):
            self._watcher.before(request)
        match request:
            case GetChunk():
                caller.waiting.append(request)
            case GetManifest():
                self._tell(caller, request, lambda: self._source.manifest_bytes(request.digest))
            case GetHave():
                self._tell(caller, request, lambda: self._source.have(request.digest))
            case GetMates():
                version, mates = self._mates.introduce(time.monotonic(), caller.peer, request.digest, request.mate)
                self._say(caller, Mates(id=request.id, version=version), encode_mates(mates))
            case _:
                if self._intake is not None:
                    self._intake.handle(caller.peer, request, data)
                else:
                    self._say(caller, refused(request.id, "refused", "this node holds no images for others"))

    def _tell(self, caller: Caller, request: GetManifest | GetHave, read: Callable[[], bytes]) -> None:
        try:
            data = read()
        except ImageError as error:
            self._say(caller, refusal(request.id, error))
            return
        self._say(caller, Data(id=request.id) if isinstance(request, GetManifest) else Have(id=request.id), data)
        if self._watcher is not None and isinstance(request, GetManifest) and caller.outgoing.flush():
            self._watcher.after(request)

    def answer(self, peer: int, answer: Answer) -> None:
        caller = self._peers.get(peer)
        if caller is not None:
            self._say(caller, answer)
            self._ready[peer] = caller

    def _say(self, caller: Caller, answer: Answer, data: Buffer | None = None) -> None:
        caller.outgoing.add(encode(answer), data)
        self._counters.bytes_out += len(data) if data is not None else 0
        self._counters.refused += isinstance(answer, Refused)

    # -- what goes -----------------------------------------------------------------------------------------------------

    def _send(self, caller: Caller) -> bool:
        """True: there is more, and the kernel would take it."""
        if not caller.outgoing.flush():
            return False
        self._sent(caller)
        if not caller.waiting:
            return False
        request = caller.waiting.popleft()
        chunk = self._open(caller, (caller.peer, request))
        if isinstance(chunk, Refused):
            self._say(caller, chunk)
        elif chunk is not None:
            caller.sending = (request, chunk.size)
            caller.outgoing.add(encode(Data(id=request.id, mates=self._mates.version(caller.peer))), chunk)
        if not caller.outgoing.flush():
            return False
        self._sent(caller)
        return bool(caller.waiting)

    def _sent(self, caller: Caller) -> None:
        """The chunk that was under way was taken by the kernel."""
        if caller.sending is not None:
            request, size = caller.sending
            caller.sending = None
            self._counters.chunks_out += 1
            self._counters.bytes_out += size
            if self._watcher is not None:
                self._watcher.after(request)

    def _open(self, caller: Caller, turn: Turn) -> Stretch | Refused | None:
        """The chunk that is asked for; None: it has not come yet, and the request is parked."""
        request = turn[1]
        try:
            try:
                return self._source.open_chunk(request.hash)
            except NotYet:
                self._parked.add(turn)
            try:
                found = self._source.open_chunk(request.hash)  # what came just before it was parked has woken nobody
            except NotYet:
                caller.parked += 1
                return None
            except Exception:
                self._parked.forget(turn)
                raise
            self._parked.forget(turn)
            return found
        except Exception as error:
            return refusal(request.id, error)
