"""The chunk server: a thread with a ROUTER socket over whatever has chunks (`Source`): the store of a storage agent, or
the pieces of a node that fetches.

    every turn:  take what came (at most `_TAKE_AT_ONCE`), answer what is quick, send chunks as far as credit goes

Reading is paid by credit: a chunk that was handed to ZeroMQ counts until it was given to the kernel, at most
`PEER_CHUNKS` for one peer and `ALL_CHUNKS` in all. That bounds the memory of the process whatever the peers ask for,
and a peer that reads slowly waits for itself alone. Peers are served in turn, a chunk each. What a peer asks beyond
`PEER_REQUESTS` waiting requests is rejected.

A chunk that is not here yet, but will be (`NotYet`), is waited for: the request is parked (`fabric.images.parking`),
and tried again when the source says that the chunk has come. Meanwhile the asker is told `Underway` every `SWEEP_S`, so
that it can tell waiting from dead.

Who asks for mates is put in touch with the others of its rack (`fabric.images.mates`). What only a storage agent is
asked (pushes, copies) is the affair of `fabric.images.intake`, if there is one.

Frames that are not of the protocol are counted and change nothing. A peer that doesn't answer ZeroMQ's heartbeats is
forgotten with all that was queued for it.
"""

from __future__ import annotations

import logging
import socket as sockets
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

import zmq

from fabric.images import heap
from fabric.images.credit import ChunkQueue
from fabric.images.errors import EndpointError, ImageError, NotYet
from fabric.images.frames import receive, send
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
    Intake,
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

SWEEP_S = 1.0
"""How often idle pushes are looked for, and those who wait are told that they are not forgotten."""
HEARTBEAT_MS = 3_000
HEARTBEAT_TIMEOUT_MS = 15_000
_RECEIVED_MESSAGES = 8
"""High-water mark for what one peer sends: a push sends chunks of 1 MiB."""
_SENT_MESSAGES = 256
_TAKE_AT_ONCE = 32
_SEND_AT_ONCE = 8
_CREDIT_POLL_S = 0.002
_STOP_WAIT_S = 30.0

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counters:
    """Since the start, but for `peers` (with requests or chunks under way), `jobs` and `pushes`, which are of now."""

    chunks_out: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    rejected: int = 0
    refused: int = 0
    peers: int = 0
    jobs: int = 0
    pushes: int = 0


class Source(Protocol):
    """What has chunks. Methods raise `ImageError`s; called on the server's thread."""

    def manifest_bytes(self, digest: str) -> bytes: ...

    def have(self, digest: str) -> bytes:
        """One bit a chunk."""

    def read_chunk(self, chunk: bytes) -> Buffer:
        """Its bytes, which have this hash. `NotYet` is only for a source that calls `ChunkServer.changed`."""


class TakesIn(Protocol):
    """Who does what is asked of storage agents alone (`fabric.images.intake`); called on the server's thread."""

    def open(self, desk: Desk) -> None: ...

    def handle(self, peer: bytes, request: Intake, data: memoryview) -> None: ...

    def look(self) -> None:
        """Somebody has called `Desk.wake`."""

    def sweep(self) -> None: ...

    def count(self) -> tuple[int, int]:
        """Jobs and pushes."""

    def close(self) -> None:
        """Once the server's thread has ended."""


class Desk(Protocol):
    """What the server does for who takes in."""

    def answer(self, peer: bytes, answer: Answer) -> bool:
        """False: the peer is gone."""

    def wake(self) -> None:
        """From any thread: call `look` soon."""


class Watcher(Protocol):
    """Sees what is fetched, on the server's thread."""

    def before(self, request: GetManifest | GetChunk) -> None:
        """It came, and is not answered yet."""

    def after(self, request: GetManifest | GetChunk) -> None:
        """Its answer was handed to ZeroMQ."""


class ChunkServer:
    def __init__(
        self,
        source: Source,
        bind: str = "tcp://127.0.0.1:*",
        *,
        intake: TakesIn | None = None,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
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
        self._context = context or zmq.Context.instance()
        self._counters = Counters()
        self._chunks = ChunkQueue()
        self._mates = MateTable()
        self._parked = Parked()
        self._news: deque[bytes | None] = deque()
        """Chunks that came; None: any may have come, or never will."""
        self._roomy = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._router: zmq.Socket[bytes]
        self._wake_out: sockets.socket
        self._wake_in: sockets.socket

    # -- for other threads ---------------------------------------------------------------------------------------------

    def start(self) -> str:
        """Listens and serves; answers with the endpoint for peers. Raises `EndpointError` if it can't listen there."""
        router = self._context.socket(zmq.ROUTER)
        router.linger = 0
        router.rcvhwm = _RECEIVED_MESSAGES
        router.sndhwm = _SENT_MESSAGES
        router.setsockopt(zmq.MAXMSGSIZE, MAX_DATA_BYTES)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        router.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        try:
            router.bind(self._bind)
        except zmq.ZMQError as error:
            router.close()
            hint = ": the port is in use; stop who has it, or choose another" if error.errno == zmq.EADDRINUSE else ""
            raise EndpointError(f"can't serve chunks at {self._bind}{hint or f': {error}'}") from None
        bound = router.get_string(zmq.LAST_ENDPOINT)
        self._router = router
        self._wake_out, self._wake_in = sockets.socketpair()
        self._wake_out.setblocking(False)
        self._wake_in.setblocking(False)
        if self._intake is not None:
            self._intake.open(self)
        self._thread = threading.Thread(target=self._run, name="images-server", daemon=True)
        self._thread.start()
        return bound if self._advertise is None else f"tcp://{self._advertise}:{bound.rpartition(':')[2]}"

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
        return replace(self._counters, peers=len(self._chunks), jobs=jobs, pushes=pushes)

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
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._wake_in, zmq.POLLIN)
        sweep_at = time.monotonic() + SWEEP_S
        sendable = False
        while not self._stopping.is_set():
            waiting = self._chunks.waiting
            timeout_s = 0.0 if sendable else _CREDIT_POLL_S if waiting else max(0.0, sweep_at - time.monotonic())
            ready = {who for who, _ in poller.poll(round(timeout_s * 1000 + 0.5))}
            try:
                if self._wake_in.fileno() in ready:
                    self._look()
                self._take()
                sendable = self._send_chunks()
                if time.monotonic() >= sweep_at:
                    sweep_at = time.monotonic() + SWEEP_S
                    self._sweep()
            except Exception:
                log.exception("the chunk server goes on after an error of its own")
        self._router.close(linger=0)
        if self._roomy:
            heap.leave()

    def _keep_room(self) -> None:
        """Memory for chunks stays as long as there are peers."""
        if self._roomy != bool(len(self._chunks)):
            self._roomy = not self._roomy
            if self._roomy:
                heap.enter()
            else:
                heap.leave()

    def _look(self) -> None:
        with suppress(BlockingIOError):
            self._wake_in.recv(4096)
        if self._intake is not None:
            self._intake.look()
        while self._news:
            for peer, request in self._parked.take(self._news.popleft()):
                self._queue(peer, request)

    def _sweep(self) -> None:
        if self._intake is not None:
            self._intake.sweep()
        self._chunks.tidy()
        self._keep_room()
        for peer, request in self._parked.one_each():
            if not self.answer(peer, Underway(id=request.id, done=0, total=0)):
                self._parked.gone(peer)

    def _take(self) -> None:
        for _ in range(_TAKE_AT_ONCE):
            frames = receive(self._router, 2)
            if frames is None:
                return
            first, rest = frames
            try:
                if len(first) < 2 or len(rest) > 1:
                    raise ProtocolError(f"expected 1 or 2 frames, found {len(first) - 1 + len(rest)}")
                peer, header = first
                data = rest[0] if rest else None
                request = decode_request(header, None if data is None else len(data))
            except ProtocolError:
                self._counters.rejected += 1
                continue
            self._handle(peer, request, data if data is not None else memoryview(b""))

    def _handle(self, peer: bytes, request: Request, data: memoryview) -> None:
        self._counters.bytes_in += len(data)
        if self._watcher is not None and isinstance(request, GetManifest | GetChunk):
            self._watcher.before(request)
        match request:
            case GetChunk():
                self._queue(peer, request)
            case GetManifest():
                self._tell(peer, request, lambda: self._source.manifest_bytes(request.digest))
                if self._watcher is not None:
                    self._watcher.after(request)
            case GetHave():
                self._tell(peer, request, lambda: self._source.have(request.digest))
            case GetMates():
                version, mates = self._mates.introduce(time.monotonic(), peer, request.digest, request.mate)
                self._send_if_there(peer, Mates(id=request.id, version=version), encode_mates(mates))
            case _:
                if self._intake is not None:
                    self._intake.handle(peer, request, data)
                else:
                    self.answer(peer, refused(request.id, "refused", "this node holds no images for others"))

    def _tell(self, peer: bytes, request: GetManifest | GetHave, read: Callable[[], bytes]) -> None:
        try:
            data = read()
        except ImageError as error:
            self.answer(peer, refusal(request.id, error))
            return
        answer = Data(id=request.id) if isinstance(request, GetManifest) else Have(id=request.id)
        self._send_if_there(peer, answer, data)

    def answer(self, peer: bytes, answer: Answer) -> bool:
        """Sends an answer without data. False if the peer is gone; one that doesn't read will ask again, or not."""
        try:
            self._send(peer, answer)
        except zmq.ZMQError as error:
            return error.errno != zmq.EHOSTUNREACH
        return True

    def _send_if_there(self, peer: bytes, answer: Answer, data: Buffer) -> zmq.MessageTracker | None:
        """Sends an answer if the peer is there and takes it; then, the tracker of when it was sent."""
        try:
            return self._send(peer, answer, data)
        except zmq.ZMQError:
            return None

    def _send(self, peer: bytes, answer: Answer, data: Buffer | None = None) -> zmq.MessageTracker | None:
        tracker = send(self._router, (peer, encode(answer)), data, track=data is not None)
        if data is not None:
            self._counters.bytes_out += len(data)
        self._counters.refused += isinstance(answer, Refused)
        return tracker

    # -- chunks --------------------------------------------------------------------------------------------------------

    def _queue(self, peer: bytes, request: GetChunk) -> None:
        self._counters.rejected += not self._chunks.add(peer, request)

    def _send_chunks(self) -> bool:
        """Sends some of the chunks that are waited for; True if more could be sent at once."""
        for _ in range(_SEND_AT_ONCE):
            turn = self._chunks.next()
            if turn is None:
                return False
            peer, request = turn
            try:
                data = self._read(turn)
            except Exception as error:
                self.answer(peer, refusal(request.id, error))
                continue
            if data is None:
                continue
            flight = self._send_if_there(peer, Data(id=request.id, mates=self._mates.version(peer)), data)
            if flight is None:
                self._chunks.gone(peer)  # what else it asked for has no reader
                continue
            self._counters.chunks_out += 1
            self._keep_room()
            self._chunks.sent(peer, flight)
            if self._watcher is not None:
                self._watcher.after(request)
        return True

    def _read(self, turn: Turn) -> Buffer | None:
        """The chunk that is asked for; None: it has not come yet, and the request is parked."""
        chunk = turn[1].hash
        try:
            return self._source.read_chunk(chunk)
        except NotYet:
            self._parked.add(turn)
        try:
            data = self._source.read_chunk(chunk)  # once more: what came just before it was parked has woken nobody
        except NotYet:
            return None
        except Exception:
            self._parked.forget(turn)
            raise
        self._parked.forget(turn)
        return data
