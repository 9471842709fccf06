"""Instances beside the loop: what the role asks of the driver, one thing after the other for each instance.

Theory of operation. A driver's `start` and `stop` take time, so each runs as a task; tasks of one instance form a
chain, so that a stop that follows a start waits for it. At most `STARTS` starts run at a time (each forks a process);
stops, which mostly wait out a grace time, at most `STOPS`.

What a driver can't do comes back as news. A start ends in `InstanceStarted` or `InstanceFailed`. A stop is repeated,
with pauses up to `STOP_PAUSE_MAX_S`, until the instance is gone: as long as it is there it takes its share of the node,
and saying anything else would give that share away twice. For the same reason nobody hears of the end of a stop behind
which a start waits: who has ordered another stop since would take it for the end of that one.

A start that is repeated after its attempt has ended makes the driver report the exit while `start` is still under way;
such an exit is told after `InstanceStarted`, in the order in which things happened.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from fabric.drivers.base import Driver, DriverError, Exited, Launch, Limits, OnExit, Running, StartFailed
from fabric.effects import (
    Adopted,
    Input,
    InstanceExited,
    InstanceFailed,
    InstanceGone,
    InstanceStarted,
    LogFetched,
    StartInstance,
    StopInstance,
)

STARTS = 16
STOPS = 256
STOP_PAUSE_S = 1.0
STOP_PAUSE_MAX_S = 30.0

log = logging.getLogger(__name__)

Unpacked = Callable[[str], tuple[Path, Path]]
"""(root, entry point) of an image in the cache, by digest; raises ImageError."""


class Runner:
    """`emit` takes the news, on the loop, never from inside a method here. Hand `on_exit` to the driver."""

    def __init__(self, make_driver: Callable[[OnExit], Driver], emit: Callable[[Input], None]) -> None:
        self.driver = make_driver(self._on_exit)
        self._emit = emit
        self._loop = asyncio.get_running_loop()
        self._starts = asyncio.Semaphore(STARTS)
        self._stops = asyncio.Semaphore(STOPS)
        self._last: dict[str, asyncio.Task[None]] = {}
        self._stopping: set[str] = set()  # those whose last task is a stop
        self._starting: dict[str, list[Exited]] = {}
        self._known: set[str] = set()
        self._closed = False

    async def adopt(self) -> list[Input]:
        """Open the driver; what it found, as inputs, `Adopted` last. Raises DriverError."""
        news: list[Input] = []
        running, exited = [], []
        for found in await self.driver.open():
            self._known.add(found.instance)
            if isinstance(found, Running):
                running.append(found.instance)
                news.append(_started(found, adopted=True))
            else:
                exited.append(found.instance)
                news.append(_exit(found))
        return [*news, Adopted(tuple(running), tuple(exited))]

    def start(self, effect: StartInstance, unpacked: Unpacked) -> None:
        self._stopping.discard(effect.instance)
        self._chain(effect.instance, lambda: self._start(effect, unpacked))

    def stop(self, effect: StopInstance) -> None:
        if effect.instance not in self._stopping:
            self._stopping.add(effect.instance)
            self._chain(effect.instance, lambda: self._stop(effect))

    def log(self, token: str, instance: str, max_bytes: int) -> None:
        known = instance in self._known
        try:
            data = self.driver.log(instance, max_bytes) if known else b""
        except OSError as error:
            data = f"(the log can't be read: {error})\n".encode()
        self._loop.call_soon(self._news, LogFetched(token, known, data))

    async def close(self) -> None:
        """Leave; instances run on."""
        self._closed = True
        tasks = list(self._last.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.driver.close()

    # --- tasks -------------------------------------------------------------------------------------------------------

    def _chain(self, instance: str, work: Callable[[], Awaitable[None]]) -> None:
        before = self._last.get(instance)

        async def run() -> None:
            if before is not None:
                await asyncio.wait([before])
            await work()

        def ended(task: asyncio.Task[None]) -> None:
            if self._last.get(instance) is task:
                del self._last[instance]
                self._stopping.discard(instance)

        task = self._loop.create_task(run(), name=f"instance {instance}")
        self._last[instance] = task
        task.add_done_callback(ended)

    async def _start(self, effect: StartInstance, unpacked: Unpacked) -> None:
        self._starting[effect.instance] = []
        try:
            async with self._starts:
                running = await self.driver.start(_launch(effect, unpacked))
            news: Input = _started(running, adopted=False)
            self._known.add(effect.instance)
        except StartFailed as error:
            news = InstanceFailed(effect.instance, effect.attempt, error.blame, error.reason)
        except ValueError as error:  # an environment, say, that no process can have
            news = InstanceFailed(effect.instance, effect.attempt, "image", str(error))
        except Exception as error:
            log.exception("starting instance %s", effect.instance)
            news = InstanceFailed(effect.instance, effect.attempt, "node", f"{type(error).__name__}: {error}")
        finally:
            exits = self._starting.pop(effect.instance)
        self._news(news)
        for exited in exits:
            self._news(_exit(exited))

    async def _stop(self, effect: StopInstance) -> None:
        pause_s = STOP_PAUSE_S
        while True:
            try:
                async with self._stops:
                    await self.driver.stop(effect.instance, effect.grace_s)
                    await self.driver.remove(effect.instance)
                break
            except DriverError as error:
                log.warning("instance %s is not gone: %s; again in %g s", effect.instance, error, pause_s)
            except Exception:
                log.exception("instance %s is not gone; again in %g s", effect.instance, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, STOP_PAUSE_MAX_S)
        self._known.discard(effect.instance)
        if self._last.get(effect.instance) is asyncio.current_task():
            self._stopping.discard(effect.instance)
            self._news(InstanceGone(effect.instance))

    def _on_exit(self, exited: Exited) -> None:
        held = self._starting.get(exited.instance)
        if held is not None:
            held.append(exited)
        else:
            self._news(_exit(exited))  # at once: a stop that is under way must not tell InstanceGone before it

    def _news(self, news: Input) -> None:
        if not self._closed:
            self._emit(news)


def _launch(effect: StartInstance, unpacked: Unpacked) -> Launch:
    root, entrypoint = unpacked(effect.digest)
    return Launch(
        instance=effect.instance,
        attempt=effect.attempt,
        entrypoint=entrypoint,
        root=root,
        environment=dict(effect.environment),
        limits=Limits(max(1, effect.resources.memory_mib), max(1, effect.resources.disk_mib)),
    )


def _started(running: Running, *, adopted: bool) -> InstanceStarted:
    return InstanceStarted(
        running.instance, running.attempt, running.pid, int(running.started_at * 1000), running.directory, adopted
    )


def _exit(exited: Exited) -> InstanceExited:
    return InstanceExited(
        exited.instance, exited.attempt, exited.code, exited.signal, exited.lost, exited.log_tail
    )
