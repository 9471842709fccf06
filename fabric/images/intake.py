"""What a storage agent alone is asked, at its chunk server: pushes, and copies from other holders.

What takes long runs in a few worker threads: `Commit` waits for the disk, `Replicate` fetches from another holder.
While one runs, a repeat of it is answered with `Underway`, so the asker can tell slow from dead.

A push comes over one connection, from its `Begin` to its end, and is aborted when that is closed before. One whose
sender is there and does nothing is aborted when it has been idle for the store's `push_idle_s`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from fabric.images import protocol
from fabric.images.desk import Desk
from fabric.images.protocol import Abort, Answer, Begin, Commit, Done, Put, Replicate, Underway, refused
from fabric.images.refusals import refusal
from fabric.images.replicate import replicate
from fabric.images.store import ChunkStore

MAX_JOBS = 32
"""Commits and replications running or waiting for a worker."""
WORKERS = 2

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Job:
    peer: int
    request: Commit | Replicate
    done: int = 0
    total: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)

    def progress(self, done: int, total: int) -> None:
        self.done, self.total = done, total


class Intake:
    """Given to a `ChunkServer`, which calls it on its thread."""

    def __init__(self, store: ChunkStore) -> None:
        self._store = store
        self._pushes: dict[str, int] = {}
        """Over which connection each came that has not ended."""
        self._jobs: dict[str, _Job] = {}
        self._finished: SimpleQueue[tuple[str, Answer]] = SimpleQueue()
        self._desk: Desk
        self._workers: ThreadPoolExecutor

    def open(self, desk: Desk) -> None:
        self._desk = desk
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="images-job")

    def handle(self, peer: int, request: protocol.Intake, data: memoryview) -> None:
        if isinstance(request, Commit):
            self._pushes.pop(request.push, None)
            manifest = bytes(data)
            self._start_job(f"commit {request.push}", _Job(peer, request), lambda job: self._commit(job, manifest))
        elif isinstance(request, Replicate):
            self._start_job(f"replicate {request.digest}", _Job(peer, request), self._replicate)
        else:
            self._desk.answer(peer, _outcome(request.id, lambda: self._change(peer, request, data)))

    def gone(self, peer: int) -> None:
        for push in [one for one, came in self._pushes.items() if came == peer]:
            del self._pushes[push]
            try:
                self._store.abort(push)
            except OSError:  # the disk refuses to remove something: no affair of the other pushes and connections
                log.exception("push %s is aborted, but not all that it brought could be removed", push)

    def look(self) -> None:
        while True:
            try:
                key, answer = self._finished.get_nowait()
            except Empty:
                return
            self._desk.answer(self._jobs.pop(key).peer, answer)

    def sweep(self) -> None:
        for push in self._store.abort_idle():
            self._pushes.pop(push, None)

    def count(self) -> tuple[int, int]:
        return len(self._jobs), self._store.pushes()

    def close(self) -> None:
        for job in list(self._jobs.values()):
            job.cancelled.set()
        self._workers.shutdown(wait=True, cancel_futures=True)

    def _change(self, peer: int, request: Begin | Put | Abort, data: memoryview) -> None:
        if isinstance(request, Begin):
            self._store.begin(request.push)
            self._pushes[request.push] = peer
        elif isinstance(request, Put):
            self._store.put(request.push, request.hash, data)
        else:
            self._pushes.pop(request.push, None)
            self._store.abort(request.push)

    def _start_job(self, key: str, job: _Job, work: Callable[[_Job], None]) -> None:
        running = self._jobs.get(key)
        if running is not None:
            self._desk.answer(job.peer, Underway(id=job.request.id, done=running.done, total=running.total))
        elif len(self._jobs) >= MAX_JOBS:
            answer = refused(job.request.id, "busy", f"{MAX_JOBS} jobs are under way: try again later")
            self._desk.answer(job.peer, answer)
        else:
            self._jobs[key] = job
            self._workers.submit(self._work, key, job, work)

    def _work(self, key: str, job: _Job, work: Callable[[_Job], None]) -> None:
        self._finished.put((key, _outcome(job.request.id, lambda: work(job))))
        self._desk.wake()

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
                cancelled=job.cancelled,
                progress=job.progress,
            )


def _outcome(request_id: int, work: Callable[[], None]) -> Answer:
    try:
        work()
    except Exception as error:
        return refusal(request_id, error)
    return Done(id=request_id)
