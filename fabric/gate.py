"""The gate: effects in order, and none before what the agent wrote down earlier is on the disk.

Theory of operation. A role's effects come as a row in which `Persist` stands before whatever depends on it. Each
`Persist` goes to the journal at once; every other effect is performed at once too when no write is under way, else it
waits for the writes before it. So writes do not wait for one another (the journal groups them), the agent goes on
taking inputs meanwhile, and no message says what a crash could make untrue.

A failed write closes the gate for good: `failed` is called, and what waits is never performed.

The runtime and the simulator have the same gate, over journals of their own; so has deployment, for its own effects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Generic, Protocol, TypeVar

from fabric.effects import Persist

E = TypeVar("E")
"""All effects but `Persist`."""

MAX_WAITING = 50_000
"""Effects that wait for the disk."""


class Log(Protocol):
    """What a gate needs of a journal: `done(None)` when all of an append is on the disk, `done(error)` when it is not
    known to be; later, and in order."""

    def append(
        self, puts: Sequence[tuple[str, bytes]], deletes: Sequence[str], done: Callable[[Exception | None], None]
    ) -> None: ...


class Gate(Generic[E]):
    """`perform` is called for every effect but `Persist`; it must not call `put`. `failed(reason)` is called once."""

    def __init__(self, journal: Log, perform: Callable[[E], None], failed: Callable[[str], None]) -> None:
        self._journal = journal
        self._perform = perform
        self._failed = failed
        self._waiting: deque[tuple[int, E]] = deque()
        self._written = 0  # persists handed to the journal
        self._durable = 0  # of these, on the disk
        self._closed = False

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def put(self, effects: Iterable[E | Persist]) -> None:
        for effect in effects:
            if self._closed:
                return
            if isinstance(effect, Persist):
                self._written += 1
                self._journal.append(effect.puts, effect.deletes, partial(self._done, self._written))
            elif self._durable == self._written:
                self._perform(effect)
            elif len(self._waiting) < MAX_WAITING:
                self._waiting.append((self._written, effect))
            else:
                self._fail(f"the disk does not keep up: {MAX_WAITING} effects wait for the journal")

    def close(self) -> None:
        """Perform nothing any more."""
        self._closed = True
        self._waiting.clear()

    def _done(self, number: int, error: Exception | None) -> None:
        if error is not None:
            self._fail(str(error))
            return
        self._durable = number
        while self._waiting and self._waiting[0][0] <= number:
            self._perform(self._waiting.popleft()[1])

    def _fail(self, reason: str) -> None:
        if not self._closed:
            self.close()
            self._failed(reason)
