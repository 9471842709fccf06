"""Threads for methods of Python classes, which may block and must not take the boot stub with them.

Theory of operation. Calls wait in one queue; a thread takes them one by one, and hands results back in batches: while
the loop has not looked yet, more results are added to what it will find. So ten thousand quick calls need one thread
and few wake-ups. A second thread, and more up to `threads`, are only started when a call has been waiting for
`PATIENCE_S`, that is, when one blocks. A call that exceeds its limit is given up: its caller hears so, and its thread,
which nobody can stop, no longer counts as one of the pool; after `MAX_STUCK` of these nothing is run any more.
The threads are daemons: they do not keep the process from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PATIENCE_S = 0.05
THREADS = 8
MAX_STUCK = 64
MAX_WAITING = 20_000


class PoolError(Exception):
    """The call was not run, or did not return in time."""


@dataclass(slots=True, eq=False)
class _Call:
    run: Callable[[], Any]
    done: asyncio.Future[Any]
    limit_s: float
    asked: float
    thread: _Thread | None = None
    error: BaseException | None = None
    value: Any = None
    began: float = 0.0


class _Thread(threading.Thread):
    given_up = False


class Pool:
    """One a process. Made on the loop."""

    def __init__(self, threads: int = THREADS) -> None:
        self._loop = asyncio.get_running_loop()
        self._most = threads
        self._wake = threading.Condition()
        self._waiting: deque[_Call] = deque()
        self._running: set[_Call] = set()
        self._results: deque[_Call] = deque()
        self._told = False  # the loop will look at the results
        self._threads = 0
        self._idle = 0
        self._stuck = 0
        self._closed = False
        self._look: asyncio.TimerHandle | None = None

    async def call(self, run: Callable[[], Any], limit_s: float) -> Any:
        """What `run()` returns; raises what it raises, or PoolError."""
        if self._stuck >= MAX_STUCK:
            raise PoolError(f"{self._stuck} methods of classes never returned: restart the boot stub")
        if len(self._waiting) >= MAX_WAITING or self._closed:
            raise PoolError(f"{len(self._waiting)} methods of classes wait to be run")
        call = _Call(run, self._loop.create_future(), limit_s, self._loop.time())
        with self._wake:
            self._waiting.append(call)
            if self._idle:
                self._wake.notify()
            elif not self._threads:
                self._start()
        if self._look is None:
            self._look = self._loop.call_later(PATIENCE_S, self._watch)
        return await call.done

    def close(self) -> None:
        """Run nothing any more; what runs is left to itself."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        if self._look is not None:
            self._look.cancel()

    # --- on the loop -----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._threads += 1
        _Thread(target=self._work, name="managent classes", daemon=True).start()

    def _watch(self) -> None:
        """Is somebody waiting too long, or running too long?"""
        self._look = None
        now = self._loop.time()
        with self._wake:
            for call in [one for one in self._running if now - one.began > one.limit_s]:
                self._running.discard(call)
                assert call.thread is not None
                call.thread.given_up = True
                self._threads -= 1
                self._stuck += 1
                if not call.done.done():
                    call.done.set_exception(PoolError(f"did not return within {call.limit_s:g} s"))
            late = self._waiting and now - self._waiting[0].asked > PATIENCE_S
            if late and not self._idle and self._threads < self._most and not self._closed:
                self._start()
            busy = bool(self._waiting or self._running)
        if busy and not self._closed:
            self._look = self._loop.call_later(PATIENCE_S, self._watch)

    def _deliver(self) -> None:
        self._told = False
        while self._results:
            call = self._results.popleft()
            if call.done.done():
                continue
            if call.error is not None:
                call.done.set_exception(call.error)
            else:
                call.done.set_result(call.value)

    # --- on a thread -----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        me = threading.current_thread()
        assert isinstance(me, _Thread)
        while True:
            with self._wake:
                while not self._waiting and not self._closed:
                    self._idle += 1
                    self._wake.wait()
                    self._idle -= 1
                if self._closed:
                    return
                call = self._waiting.popleft()
                call.began, call.thread = self._loop.time(), me
                self._running.add(call)
            try:
                call.value = call.run()
            except BaseException as error:  # SystemExit of user code too; a future can't hold a StopIteration
                plain = isinstance(error, Exception) and not isinstance(error, StopIteration)
                call.error = error if plain else RuntimeError(f"raised {error!r}")
            with self._wake:
                self._running.discard(call)
                if me.given_up:
                    self._stuck -= 1
                    return
            self._results.append(call)
            if not self._told:
                self._told = True
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon_threadsafe(self._deliver)
