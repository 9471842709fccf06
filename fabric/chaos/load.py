"""The load: requests at a rate, as users make them, each followed to its end.

Theory of operation. An event loop on a thread of its own. Every 1/rate seconds a request is begun, whatever became of
those before (an open loop: a slow fabric gets no fewer requests), while fewer than `most` are open; one that is not
begun for that is counted. A request is a task: an attempt, again after what Retry-After says or RETRY_S as long as the
answer is 503 or missing, always with the same idempotency key; then, if it was accepted, a long poll until the
deployment is at rest.

What is asked: a deployment is made while fewer than `keep` stand; else one that stands is deleted, or scaled. A
deployment has at most one open request, so what users want of it is what was accepted last.

`stop` begins no more requests; `drain` waits for those that are open. Only what is open then is cut off, and stays in
the history as what it is: a request without an answer or an end.
"""

from __future__ import annotations

import asyncio
import random
import threading
from dataclasses import dataclass, field

import httpx
import msgspec

from fabric.chaos.history import NO_ANSWER, Attempt, Clock, End, History, Kind
from fabric.chaos.script import Load

RETRY_S = 0.5
RETRY_MOST_S = 2.0
CONNECT_S = 2.0
ANSWER_S = 20.0
POLL_S = 10.0
STOP_WAIT_S = 5.0
MAX_DETAIL = 200
STOP_GRACE_S = 5
"""What the API wants between `stop_after_s` and `lost_after_s`."""
FINAL_GOOD = "running"


class _View(msgspec.Struct, frozen=True):
    """Of the API's answer."""

    id: str
    state: str
    final: bool
    generation: int
    settled: int
    placed: int
    index: int
    reason: str = ""


@dataclass(slots=True)
class _Standing:
    """A deployment that users have."""

    id: str
    count: int
    busy: bool = False


@dataclass
class LoadCounters:
    """`begun` requests; `skipped`: not begun, as too many were open, or nothing could be asked; `open` now."""

    begun: int = 0
    skipped: int = 0
    open: int = 0


@dataclass
class Generator:
    """`images`: names of published ones. `start`, `stop`, `drain`, `close`, from any one thread."""

    api: str
    load: Load
    images: tuple[str, ...]
    history: History
    clock: Clock
    rng: random.Random
    run: str
    """A text that no other run has: for idempotency keys."""
    counters: LoadCounters = field(default_factory=LoadCounters)
    _standing: dict[str, _Standing] = field(default_factory=dict)
    _stop_after: dict[str, int] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _thread: threading.Thread | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)
    _left: asyncio.Event | None = None

    # --- from outside ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)), name="load", daemon=True)
        self._thread.start()
        ready.wait(STOP_WAIT_S)

    def stop(self) -> None:
        """Begin no more."""
        self._stopping.set()

    @property
    def idle(self) -> bool:
        """Nothing is open."""
        return self.counters.open == 0

    def close(self) -> None:
        """Cut off what is open."""
        self.stop()
        if self._thread is None or self._loop is None or self._left is None:
            return
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._left.set)
            self._thread.join(STOP_WAIT_S)

    def busy(self) -> frozenset[str]:
        """Deployments that an open request changes."""
        return frozenset(one.id for one in tuple(self._standing.values()) if one.busy)

    def wanted(self, deployment: str, ordinal: int) -> bool:
        """By the last request that was accepted; also of a deployment that is not of this load."""
        return ordinal < self._counts.get(deployment, ordinal + 1)

    def stop_after_s(self, deployment: str) -> int:
        return self._stop_after.get(deployment, 0)

    # --- the loop ----------------------------------------------------------------------------------------------------

    async def _main(self, ready: threading.Event) -> None:
        self._loop, self._left = asyncio.get_running_loop(), asyncio.Event()
        ready.set()
        timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S, pool=ANSWER_S)
        limits = httpx.Limits(max_connections=self.load.most + 16, max_keepalive_connections=16)
        async with httpx.AsyncClient(base_url=self.api, timeout=timeout, limits=limits, trust_env=False) as client:
            beat = asyncio.create_task(self._beat(client))
            await self._left.wait()
            beat.cancel()
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(beat, *self._tasks, return_exceptions=True)

    async def _beat(self, client: httpx.AsyncClient) -> None:
        loop = asyncio.get_running_loop()
        if not self.load.per_s:
            return
        at = loop.time()
        while not self._stopping.is_set():
            self._begin(client)
            at += 1 / self.load.per_s
            await asyncio.sleep(max(0.0, at - loop.time()))

    def _begin(self, client: httpx.AsyncClient) -> None:
        if self.counters.open >= self.load.most:
            self.counters.skipped += 1
            return
        free = [one for one in self._standing.values() if not one.busy]
        making = len(self._tasks) - sum(one.busy for one in self._standing.values())
        kind: Kind = "create"
        if free and len(self._standing) + max(0, making) >= self.load.keep:
            kind = "scale" if self.rng.random() < self.load.scale else "delete"
        one = self.rng.choice(free) if kind != "create" else None
        if one is None and len(self._standing) + making >= 2 * self.load.keep:
            self.counters.skipped += 1  # all of them are being changed
            return
        if one is not None:
            one.busy = True
        number = self.counters.begun = self.counters.begun + 1
        self.counters.open += 1
        task = asyncio.get_running_loop().create_task(self._request(client, number, kind, one))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.counters.open -= 1
        if not task.cancelled() and (error := task.exception()):
            raise error  # a fault of ours: the loop prints it

    async def _request(self, client: httpx.AsyncClient, number: int, kind: Kind, one: _Standing | None) -> None:
        count = self.rng.randint(*self.load.count) if kind != "delete" else 0
        body = self._body(count) if kind == "create" else {"count": count}
        while True:
            sent_s = self.clock.now()
            answer, detail = await self._send(client, number, kind, one.id if one else "", body)
            view = _view(answer)
            attempt = Attempt(
                number,
                kind,
                one.id if one else view.id if view else "",
                count,
                sent_s,
                self.clock.now(),
                answer.status_code if answer is not None else NO_ANSWER,
                answer is not None and "retry-after" in answer.headers,
                view.generation if view else 0,
                detail,
            )
            self.history.note(attempt)
            if not attempt.again:
                break
            await asyncio.sleep(_pause_s(answer))
        if not attempt.accepted or view is None:
            if one is not None:
                one.busy = False
                if attempt.status == 404:
                    self._standing.pop(one.id, None)
            return
        if one is None:
            one = self._standing[view.id] = _Standing(view.id, count, True)
            self._stop_after[view.id] = int(self.load.stop_after)
        self._counts[one.id] = count
        await self._follow(client, number, kind, one, view)

    def _body(self, count: int) -> dict[str, object]:
        stubborn = self.rng.random() < self.load.stubborn
        stop_after_s = int(self.load.stop_after)
        return {
            "image": self.rng.choice(self.images),
            "flavor": self.load.flavor,
            "count": count,
            "lost_after_s": max(int(self.load.lost_after), stop_after_s + STOP_GRACE_S if stop_after_s else 0),
            "stop_after_s": stop_after_s,
            "environment": {"STUBBORN": "1"} if stubborn else {},
        }

    async def _send(
        self, client: httpx.AsyncClient, number: int, kind: Kind, deployment: str, body: object
    ) -> tuple[httpx.Response | None, str]:
        """The answer, or None; and what to say about it when it is no success."""
        try:
            if kind == "create":
                key = {"Idempotency-Key": f"{self.run}-{number}"}
                answer = await client.post("/v1/deployments", json=body, headers=key)
            elif kind == "scale":
                answer = await client.patch(f"/v1/deployments/{deployment}", json=body)
            else:
                answer = await client.delete(f"/v1/deployments/{deployment}")
        except httpx.HTTPError as error:
            return None, (str(error) or type(error).__name__)[:MAX_DETAIL]
        return answer, "" if answer.is_success else answer.text[:MAX_DETAIL]

    async def _follow(
        self, client: httpx.AsyncClient, number: int, kind: Kind, one: _Standing, view: _View
    ) -> None:
        """Until it is at rest at the generation that was answered with, or a later one."""
        generation = view.generation
        while not (view.final and view.settled >= generation):
            query: dict[str, str | int] = {"wait": f"{POLL_S:g}s", "index": view.index}
            try:
                answer = await client.get(f"/v1/deployments/{one.id}", params=query)
            except httpx.HTTPError:
                await asyncio.sleep(RETRY_S)
                continue
            if answer.status_code == 404:  # deleted, and its record forgotten
                self._end(number, kind, one, "deleted" if kind == "delete" else "gone", view)
                return
            fresh = _view(answer)
            if fresh is None:
                await asyncio.sleep(_pause_s(answer))
            else:
                view = fresh
        self._end(number, kind, one, view.state, view)

    def _end(self, number: int, kind: Kind, one: _Standing, state: str, view: _View) -> None:
        self.history.note(End(number, kind, one.id, self.clock.now(), state, view.placed, view.reason[:MAX_DETAIL]))
        one.busy = False
        if state != FINAL_GOOD:
            self._standing.pop(one.id, None)
            self._counts[one.id] = 0


def _view(answer: httpx.Response | None) -> _View | None:
    if answer is None or not answer.is_success:
        return None
    try:
        return msgspec.json.decode(answer.content, type=_View)
    except msgspec.DecodeError:
        return None


def _pause_s(answer: httpx.Response | None) -> float:
    said = answer.headers.get("retry-after", "") if answer is not None else ""
    return min(float(said), RETRY_MOST_S) if said.isdecimal() else RETRY_S
