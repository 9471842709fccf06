"""The chunk server of a storage agent: a thread with a ROUTER socket over a chunk store.

    every turn:  take what came (at most `_TAKE_AT_ONCE`), answer what is quick, send chunks as far as credit goes

Reading is paid by credit: a chunk that was handed to ZeroMQ counts until it was given to the kernel, at most
`PEER_CHUNKS` for one peer and `ALL_CHUNKS` in all. That bounds the memory of the process whatever the peers ask for,
and a peer that reads slowly waits for itself alone. Peers are served in turn, a chunk each. What a peer asks beyond
`PEER_REQUESTS` waiting requests is rejected.

What takes long runs in a few worker threads: `Commit` waits for the disk, `Replicate` fetches from another holder.
While one runs, a repeat of it is answered with `Underway`, so the asker can tell slow from dead.

Frames that are not of the protocol are counted and change nothing. A peer that doesn't answer ZeroMQ's heartbeats is
forgotten with all that was queued for it.

A push comes over one connection, from its `Begin` to its end. So when there is nobody any more to be told what became
of a chunk, the push is aborted; one whose sender vanished while it owed nothing is, when it has been idle for the
store's `push_idle_s`.
"""

from __future__ import annotations

import logging
import socket as sockets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Protocol

import zmq

from fabric.images.credit import ChunkQueue
from fabric.images.errors import (
    BadChunk,
    ChunkCorrupt,
    EndpointError,
    FetchCancelled,
    FetchFailed,
    ImageError,
    ManifestError,
    NotHeld,
    PushIncomplete,
    StoreBusy,
    StoreFull,
    UnknownPush,
)
from fabric.images.manifest import Buffer
from fabric.images.protocol import (
    MAX_DATA_BYTES,
    Abort,
    Answer,
    Begin,
    Code,
    Commit,
    Data,
    Done,
    GetChunk,
    GetManifest,
    ProtocolError,
    Put,
    Refused,
    Replicate,
    Request,
    Underway,
    decode_request,
    encode,
    refused,
)
from fabric.images.replicate import replicate
from fabric.images.store import ChunkStore

MAX_JOBS = 32
"""Commits and replications running or waiting for a worker."""
WORKERS = 2
SWEEP_S = 1.0
"""How often idle pushes are looked for."""
HEARTBEAT_MS = 3_000
HEARTBEAT_TIMEOUT_MS = 15_000
_RECEIVED_MESSAGES = 8
"""High-water mark for what one peer sends: a push sends chunks of 1 MiB."""
_SENT_MESSAGES = 256
_TAKE_AT_ONCE = 32
_SEND_AT_ONCE = 8
_CREDIT_POLL_S = 0.002
_STOP_WAIT_S = 30.0

_CODES: dict[type[ImageError], Code] = {
    NotHeld: "not_found",
    ChunkCorrupt: "corrupt",
    StoreFull: "full",
    StoreBusy: "busy",
    UnknownPush: "unknown_push",
    BadChunk: "refused",
    ManifestError: "refused",
    PushIncomplete: "refused",
    FetchFailed: "failed",
    FetchCancelled: "failed",
}

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


@dataclass(slots=True)
class _Job:
    peer: bytes
    request: Commit | Replicate
    done: int = 0
    total: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)

    def progress(self, done: int, total: int) -> None:
        self.done, self.total = done, total


class Watcher(Protocol):
    """Sees what is fetched, on the server's thread."""

    def before(self, request: GetManifest | GetChunk) -> None:
        """It came, and is not answered yet."""

    def after(self, request: GetManifest | GetChunk) -> None:
        """Its answer was handed to ZeroMQ."""


class ChunkServer:
    def __init__(
        self,
        store: ChunkStore,
        bind: str = "tcp://127.0.0.1:*",
        *,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        advertise: str | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        """`bind`: where to listen, `*` for any free port. `advertise`: the host that peers connect to, if not that
        one.
        """
        self._watcher = watcher
        self._store = store
        self._bind = bind
        self._advertise = advertise
        self._context = context or zmq.Context.instance()
        self._counters = Counters()
        self._chunks = ChunkQueue()
        self._jobs: dict[str, _Job] = {}
        self._finished: SimpleQueue[tuple[str, Answer]] = SimpleQueue()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._router: zmq.Socket[bytes]
        self._wake_out: sockets.socket
        self._wake_in: sockets.socket
        self._workers: ThreadPoolExecutor

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
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="images-job")
        self._thread = threading.Thread(target=self._run, name="images-server", daemon=True)
        self._thread.start()
        return bound if self._advertise is None else f"tcp://{self._advertise}:{bound.rpartition(':')[2]}"

    def stop(self) -> None:
        """Stops serving; what is under way is cut off. A repeat does nothing. The store stays open."""
        if self._thread is None:
            return
        self._stopping.set()
        self._wake()
        self._thread.join(_STOP_WAIT_S)
        self._thread = None
        self._workers.shutdown(wait=True, cancel_futures=True)
        self._wake_out.close()
        self._wake_in.close()

    def counters(self) -> Counters:
        """A copy of the figures as they are now."""
        c = self._counters
        return Counters(
            c.chunks_out,
            c.bytes_out,
            c.bytes_in,
            c.rejected,
            c.refused,
            len(self._chunks),
            len(self._jobs),
            self._store.pushes(),
        )

    def _wake(self) -> None:
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
                    self._finish_jobs()
                self._take()
                sendable = self._send_chunks()
                if time.monotonic() >= sweep_at:
                    sweep_at = time.monotonic() + SWEEP_S
                    self._store.abort_idle()
                    self._chunks.tidy()
            except Exception:
                log.exception("the chunk server goes on after an error of its own")
        for job in list(self._jobs.values()):
            job.cancelled.set()
        self._router.close(linger=0)

    def _take(self) -> None:
        for _ in range(_TAKE_AT_ONCE):
            try:
                frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                if len(frames) not in (2, 3):
                    raise ProtocolError(f"expected 1 or 2 frames, found {len(frames) - 1}")
                data = frames[2].buffer if len(frames) == 3 else None
                request = decode_request(frames[1].buffer, None if data is None else len(data))
            except ProtocolError:
                self._counters.rejected += 1
                continue
            self._handle(frames[0].bytes, request, data if data is not None else memoryview(b""))

    def _handle(self, peer: bytes, request: Request, data: memoryview) -> None:
        self._counters.bytes_in += len(data)
        if self._watcher is not None and isinstance(request, GetManifest | GetChunk):
            self._watcher.before(request)
        if isinstance(request, GetChunk):
            self._counters.rejected += not self._chunks.add(peer, request)
        elif isinstance(request, Commit):
            manifest = bytes(data)
            self._start_job(f"commit {request.push}", _Job(peer, request), lambda job: self._commit(job, manifest))
        elif isinstance(request, Replicate):
            self._start_job(f"replicate {request.digest}", _Job(peer, request), self._replicate)
        elif isinstance(request, GetManifest):
            try:
                self._answer(peer, Data(id=request.id), self._store.manifest_bytes(request.digest))
                if self._watcher is not None:
                    self._watcher.after(request)
            except NotHeld as error:
                self._answer(peer, _refusal(request.id, error))
        else:
            answer = _outcome(request.id, lambda: self._change(request, data))
            try:
                self._send(peer, answer)
            except zmq.ZMQError as error:
                if error.errno == zmq.EHOSTUNREACH:
                    self._store.abort(request.push)

    def _change(self, request: Begin | Put | Abort, data: memoryview) -> None:
        if isinstance(request, Begin):
            self._store.begin(request.push)
        elif isinstance(request, Put):
            self._store.put(request.push, request.hash, data)
        else:
            self._store.abort(request.push)

    def _answer(self, peer: bytes, answer: Answer, data: Buffer | None = None) -> zmq.MessageTracker | None:
        """Sends an answer if the peer is still there and takes it; with data, the tracker of when it was sent."""
        try:
            return self._send(peer, answer, data)
        except zmq.ZMQError:  # gone, or it doesn't read: it will ask again, or not
            return None

    def _send(self, peer: bytes, answer: Answer, data: Buffer | None = None) -> zmq.MessageTracker | None:
        frames: list[Buffer] = [peer, encode(answer)] if data is None else [peer, encode(answer), data]
        tracker = self._router.send_multipart(frames, zmq.NOBLOCK, copy=False, track=data is not None)
        if data is not None:
            self._counters.bytes_out += len(data)
        self._counters.refused += isinstance(answer, Refused)
        return tracker

    # -- chunks --------------------------------------------------------------------------------------------------------

    def _send_chunks(self) -> bool:
        """Sends some of the chunks that are waited for; True if more could be sent at once."""
        for _ in range(_SEND_AT_ONCE):
            turn = self._chunks.next()
            if turn is None:
                return False
            peer, request = turn
            try:
                data = self._store.read_chunk(request.hash)
            except Exception as error:
                self._answer(peer, _refusal(request.id, error))
                continue
            flight = self._answer(peer, Data(id=request.id), data)
            if flight is None:
                self._chunks.gone(peer)  # what else it asked for has no reader
                continue
            self._counters.chunks_out += 1
            self._chunks.sent(peer, flight)
            if self._watcher is not None:
                self._watcher.after(request)
        return True

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def _start_job(self, key: str, job: _Job, work: Callable[[_Job], None]) -> None:
        running = self._jobs.get(key)
        if running is not None:
            self._answer(job.peer, Underway(id=job.request.id, done=running.done, total=running.total))
        elif len(self._jobs) >= MAX_JOBS:
            self._answer(job.peer, refused(job.request.id, "busy", f"{MAX_JOBS} jobs are under way: try again later"))
        else:
            self._jobs[key] = job
            self._workers.submit(self._work, key, job, work)

    def _work(self, key: str, job: _Job, work: Callable[[_Job], None]) -> None:
        self._finished.put((key, _outcome(job.request.id, lambda: work(job))))
        self._wake()

    def _finish_jobs(self) -> None:
        self._wake_in.recv(4096)
        while True:
            try:
                key, answer = self._finished.get_nowait()
            except Empty:
                return
            self._answer(self._jobs.pop(key).peer, answer)

    def _commit(self, job: _Job, manifest: bytes) -> None:
        assert isinstance(job.request, Commit)
        self._store.commit(job.request.push, manifest)

    def _replicate(self, job: _Job) -> None:
        assert isinstance(job.request, Replicate)
        if not self._store.has(job.request.digest):
            replicate(
                self._store,
                job.request.digest,
                job.request.sources,
                context=self._context,
                cancelled=job.cancelled,
                progress=job.progress,
            )


def _outcome(request_id: int, work: Callable[[], None]) -> Answer:
    try:
        work()
    except Exception as error:
        return _refusal(request_id, error)
    return Done(id=request_id)


def _refusal(request_id: int, error: Exception) -> Answer:
    code = _CODES.get(type(error)) if isinstance(error, ImageError) else None
    if code is None:
        log.error("a request failed for a reason of our own", exc_info=error)
        code = "failed"
    return refused(request_id, code, str(error))
