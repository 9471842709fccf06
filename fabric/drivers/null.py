"""The driver that starts nothing: for load tests of the control plane.

Theory of operation. Its table is in memory and nothing is on disk, so an instance "runs" for as long as the agent does:
after a restart `open` answers with nothing, and the agent starts what it ought to run, under new attempts or old ones.
Instances never end by themselves; a stop reports an end by TERM, as a real one that does not mind the signal would.
`real` is False, and `Running.pid` is 0: whatever shows an instance of this driver says so.
"""

from __future__ import annotations

import signal
import time

from fabric.drivers.base import DriverError, Exited, Launch, OnExit, Running, StartFailed, checked_launch


class NullDriver:
    name = "null"
    real = False

    def __init__(self, on_exit: OnExit) -> None:
        self._on_exit = on_exit
        self._table: dict[str, Running | Exited] = {}

    async def open(self) -> list[Running | Exited]:
        return []

    async def start(self, launch: Launch) -> Running:
        checked_launch(launch)
        known = self._table.get(launch.instance)
        if known and known.attempt >= launch.attempt:
            if isinstance(known, Running):
                return known
            self._on_exit(known)
            return Running(launch.instance, known.attempt, 0, 0.0, "")
        if isinstance(known, Running):
            raise StartFailed(f"attempt {known.attempt} has not ended: stop it first", "node")
        running = Running(launch.instance, launch.attempt, 0, time.time(), "")
        self._table[launch.instance] = running
        return running

    async def stop(self, instance: str, grace_s: float) -> None:
        known = self._table.get(instance)
        if isinstance(known, Running):
            ended = Exited(instance, known.attempt, None, int(signal.SIGTERM), False, "")
            self._table[instance] = ended
            self._on_exit(ended)

    async def remove(self, instance: str) -> None:
        if isinstance(self._table.get(instance), Running):
            raise DriverError(f"{instance} has not ended: stop it first")
        self._table.pop(instance, None)

    def log(self, instance: str, max_bytes: int) -> bytes:
        return b""

    async def close(self) -> None:
        self._table.clear()
