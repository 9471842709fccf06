"""What people see while a local fabric comes up, and of the demo: live bars on a terminal, plain lines elsewhere.

All on standard error: standard output is for what was asked for.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from fabric.local.state import Report

LINE_EVERY_S = 1.0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Stages:
    """A context manager. Each stage has so much done of so much; when it is complete, the seconds since the start of
    all are written behind it. Without a terminal: a line when a stage is complete, and now and then before."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._complete: set[str] = set()
        self._tasks: dict[str, TaskID] = {}
        self._line_at = 0.0
        console = Console(stderr=True, highlight=False)
        name, at = TextColumn("{task.description:<18}"), TextColumn("{task.fields[at]}")
        columns = (name, BarColumn(24), MofNCompleteColumn(), at)
        self._bars = Progress(*columns, console=console) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def report(self, report: Report) -> None:
        """How far a fabric that comes up is."""
        if report.phase != "leaving":
            self.show("ZooKeeper", int(report.zookeeper), 1)
            self.show("agents registered", report.registered, report.nodes)
            self.show("leaders elected", report.elected, report.leaders)
            self.show("API", int(report.api), 1)

    def show(self, stage: str, done: int, of: int) -> None:
        if stage in self._complete:
            return
        now = time.monotonic()
        complete = done >= of
        at = f"{now - self._began:5.1f} s" if complete else ""
        if complete:
            self._complete.add(stage)
        if self._bars:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=of, at="")
            self._bars.update(self._tasks[stage], completed=done, total=of, at=at)
        elif complete:
            say(f"{at}  {stage}: {done}/{of}")
        elif done and now >= self._line_at:
            say(f"         {stage}: {done}/{of}")
            self._line_at = now + LINE_EVERY_S
