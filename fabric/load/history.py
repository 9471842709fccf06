"""The history: every request of the load, every attempt at it, every answer, with times. JSON lines, one an entry.

A *request* is what a user wants: a deployment made, scaled, deleted. An *attempt* is one HTTP exchange for it; a
request that was refused with 503, or lost its answer, is tried again with the same idempotency key. An *end* is what
became of it: the deployment is at rest, or was not by the time that the follower gave up.

Times are seconds since the run began (`Clock`), of the one process that makes all requests: they are comparable.

A request that is sent late, because its sender was busy or too many were open, was *due* before: for its user it lasts
from then on. Times that are measured from the sending leave out just those that waited (coordinated omission).
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

import msgspec

Kind = Literal["create", "scale", "delete"]
NO_ANSWER = 0
MAX_ENTRIES = 2_000_000
"""Attempts and ends of one run: a day at 10 requests a second."""


class Attempt(msgspec.Struct, frozen=True, tag="attempt"):
    """`request`: its number. `deployment`: "" while unknown. `count`: what was asked for, 0 of a delete.
    `status`: the HTTP status, NO_ANSWER when none came. `retry_after`: the answer said when to come back.
    `generation`: of the deployment that was answered with. `due_s`: when the request was due, if that is known."""

    request: int
    kind: Kind
    deployment: str
    count: int
    sent_s: float
    answered_s: float
    status: int
    retry_after: bool = False
    generation: int = 0
    detail: str = ""
    due_s: float | None = None

    @property
    def accepted(self) -> bool:
        return self.status == 202

    @property
    def again(self) -> bool:
        """It says nothing about the request: to be tried again."""
        return self.status in (NO_ANSWER, 503)


class End(msgspec.Struct, frozen=True, tag="end"):
    """What became of an accepted request. `state`: "" when the deployment was not at rest in time."""

    request: int
    kind: Kind
    deployment: str
    at_s: float
    state: str
    placed: int = 0
    reason: str = ""


Entry = Attempt | End


class Clock:
    """Seconds since the run began; monotonic."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def now(self) -> float:
        return time.monotonic() - self.began


@dataclass
class History:
    """Appended to by the load's thread, read by others. `path`: also written there, line by line."""

    path: Path | None = None
    _attempts: list[Attempt] = field(default_factory=list)
    _ends: list[End] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _file: IO[bytes] | None = None

    def note(self, entry: Entry) -> None:
        with self._lock:
            if len(self._attempts) + len(self._ends) >= MAX_ENTRIES:
                raise OverflowError(f"the history has {MAX_ENTRIES} entries: run for less long, or with less load")
            if isinstance(entry, Attempt):
                self._attempts.append(entry)
            else:
                self._ends.append(entry)
            if self.path is not None:
                if self._file is None:
                    self._file = self.path.open("wb")
                self._file.write(msgspec.json.encode(entry) + b"\n")
                self._file.flush()

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        with self._lock:
            return tuple(self._attempts)

    @property
    def ends(self) -> tuple[End, ...]:
        with self._lock:
            return tuple(self._ends)


class Asked(msgspec.Struct, frozen=True):
    """One request with all that is known of it."""

    number: int
    kind: Kind
    attempts: tuple[Attempt, ...]
    end: End | None

    @property
    def sent_s(self) -> float:
        return self.attempts[0].sent_s

    @property
    def due_s(self) -> float:
        """When it should have been sent; what its user waits for is counted from here."""
        due_s = self.attempts[0].due_s
        return self.sent_s if due_s is None else due_s

    @property
    def last(self) -> Attempt:
        return self.attempts[-1]

    @property
    def deployment(self) -> str:
        return self.last.deployment

    @property
    def waited_s(self) -> float:
        """From the first attempt to the last answer."""
        return self.last.answered_s - self.sent_s


def requests(attempts: tuple[Attempt, ...], ends: tuple[End, ...]) -> tuple[Asked, ...]:
    """By number."""
    tries: dict[int, list[Attempt]] = {}
    for attempt in attempts:
        tries.setdefault(attempt.request, []).append(attempt)
    ended = {end.request: end for end in ends}
    return tuple(
        Asked(number, tried[0].kind, tuple(tried), ended.get(number)) for number, tried in sorted(tries.items())
    )
