"""The disk under an agent's journal: what was synced comes back after a crash, the rest may or may not.

Theory of operation. As `fabric.runtime.journal`: what waits is written as one group, one group at a time, and each
append hears of it when its group is on the disk. A crash keeps what was synced; of the group that was being written,
either all or nothing (a frame is whole or it is cut off), and nothing of what waited behind. A write to a full disk
fails for good: the agent has to leave, and the next one starts from what was synced before.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fabric.sim.clock import Clock

Put = tuple[str, bytes]
Done = Callable[[Exception | None], None]


@dataclass(slots=True)
class Disk:
    """Of one machine. `sync_s`: the mean time of a sync."""

    clock: Clock
    rng: random.Random
    sync_s: float
    full: bool = False
    synced: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Append:
    puts: Sequence[Put]
    deletes: Sequence[str]
    done: Done


class Journal:
    """One agent's, from its start to its end."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._waiting: list[_Append] = []
        self._writing: list[_Append] = []
        self._failed = False
        self._closed = False
        self.appends = 0

    def load(self) -> dict[str, bytes]:
        return dict(self._disk.synced)

    def append(self, puts: Sequence[Put], deletes: Sequence[str], done: Done) -> None:
        self.appends += 1
        self._waiting.append(_Append(puts, deletes, done))
        if not self._writing:
            self._write()

    def _write(self) -> None:
        self._writing, self._waiting = self._waiting, []
        wait_s = self._disk.sync_s * (0.5 + self._disk.rng.random())
        self._disk.clock.after(wait_s, self._written)

    def _written(self) -> None:
        if self._closed:
            return
        group, self._writing = self._writing, []
        self._failed = self._failed or self._disk.full
        if not self._failed:
            self._keep(group)
        error = OSError("journal: a write failed: no space left on device") if self._failed else None
        for one in group:
            one.done(error)
        if self._waiting and not self._writing and not self._closed:
            self._write()

    def _keep(self, group: list[_Append]) -> None:
        for one in group:
            self._disk.synced.update(one.puts)
            for key in one.deletes:
                self._disk.synced.pop(key, None)

    def close(self) -> None:
        """An orderly end: what was appended is written."""
        if not self._closed:
            self._closed = True
            if not self._failed and not self._disk.full:
                self._keep([*self._writing, *self._waiting])

    def crash(self) -> None:
        """The process, or the machine, is gone in this moment."""
        if not self._closed:
            self._closed = True
            if self._writing and not self._failed and not self._disk.full and self._disk.rng.random() < 0.5:
                self._keep(self._writing)
