"""What the tests of driver `process` share: a place for an agent's state and an image, and waiting beside the loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from fabric.drivers.base import Exited, Launch, Limits
from fabric.drivers.process import ProcessDriver
from fabric.drivers.procfs import process_stat
from tests.waiting import wait_until

LIMITS = Limits(memory_mib=512, disk_mib=64, open_files=64)

class World:
    """A state directory, an image root, and a lifeline that takes everything down when the test is over."""

    def __init__(self, directory: Path) -> None:
        self.state, self.root = directory / "state", directory / "image"
        self.root.mkdir()
        self.lifeline, self._keeper = os.pipe()
        self.exits: list[Exited] = []

    def cut_lifeline(self) -> None:
        if self._keeper >= 0:
            os.close(self._keeper)
        self._keeper = -1

    def driver(self, **options: int | float | None) -> ProcessDriver:
        return ProcessDriver(self.state, self.exits.append, **{"lifeline_fd": self.lifeline, **options})  # type: ignore[arg-type]

    @contextlib.asynccontextmanager
    async def agent(self, **options: int | float | None) -> AsyncIterator[ProcessDriver]:
        """An agent's life, with nothing to adopt."""
        driver = self.driver(**options)
        assert await driver.open() == []
        try:
            yield driver
        finally:
            await driver.close()

    def script(self, text: str, name: str = "run", mode: int = 0o755) -> Path:
        """An entry point: a shell script, or anything else that brings its own first line."""
        path = self.root / name
        path.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        path.chmod(mode)
        return path

    def python(self, text: str, name: str = "run") -> Path:
        return self.script(f"#!{sys.executable} -IS\n{text}\n", name)

    def launch(self, entry: Path, instance: str = "d-1.0", attempt: int = 0, limits: Limits = LIMITS) -> Launch:
        return Launch(instance, attempt, entry, self.root, {"FABRIC_INSTANCE": instance}, limits)

    @property
    def supervisor(self) -> int:
        return int((self.state / "supervisor.lock").read_text())

    async def next_exit(self) -> Exited:
        await until(lambda: self.exits, "an exit")
        return self.exits.pop(0)


@contextlib.contextmanager
def made_world(directory: Path) -> Iterator[World]:
    """And unmade: everything it started is gone when this returns."""
    made = World(directory)
    try:
        yield made
    finally:
        made.cut_lifeline()
        if (made.state / "supervisor.lock").exists():
            wait_until(lambda: gone(made.supervisor), 10, "the supervisor to leave")
        os.close(made.lifeline)


async def until(probe: Callable[[], object], what: str, timeout_s: float = 10.0) -> None:
    await asyncio.to_thread(wait_until, probe, timeout_s, what, 0.005)


def gone(pid: int) -> bool:
    """No process, or a dead one that its new parent has not reaped."""
    return process_stat(pid)[0] in ("", "Z")


def read_pid(path: Path) -> int:
    return int(wait_until(lambda: path.exists() and path.read_text().strip(), 10, f"a pid in {path}"))
