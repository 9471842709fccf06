"""Copies that a storage leader has ordered, followed until they are whole or have failed.

An order is a `Replicate` to the target, by way of its rack's leader; repeated, it asks how the copy is, soon at first
(a small image takes a moment) and then every `repair_poll_s`. A copy has failed when the target says so, when ZooKeeper
counts the target, or its whole rack, out, when nothing was heard of it for `repair_grace_s` (its rack's leader may be
changing), or when it is not whole after `repair_wait_s`: the order may still be carried out then, which does no harm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fabric.commands import Replicate, Replicating, Unable
from fabric.messages import NodeCommand
from fabric.roles.calls import Gathered, RackCalls
from fabric.roles.leaders import LeaderDirectory
from fabric.roles.redundancy import Store
from fabric.roles.settings import Settings

FIRST_POLL_S = 0.1


@dataclass(slots=True)
class _Copy:
    """`ask_at`: None while an answer is waited for. `heard`: when the target last answered."""

    digest: str
    target: Store
    sources: tuple[str, ...]
    deadline: float
    heard: float
    ask_at: float | None = None
    pause_s: float = FIRST_POLL_S


class Copies:
    """Embed it, and tick it. `ended(now, digest, target, reason)`: the reason is empty when the copy is whole; it is
    called from inside the ticks of `calls`, at the earliest with the tick after `begin`."""

    def __init__(
        self,
        settings: Settings,
        directory: LeaderDirectory,
        calls: RackCalls,
        ended: Callable[[float, str, Store, str], None],
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._calls = calls
        self._ended = ended
        self._open: dict[str, _Copy] = {}
        self._held = False

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, digest: str) -> bool:
        return digest in self._open

    def targets_with(self, count: int) -> set[str]:
        """Nodes that `count` copies, or more, are going to."""
        targets = Counter(copy.target.node for copy in self._open.values())
        return {node for node, copies in targets.items() if copies >= count}

    def begin(self, now: float, digest: str, target: Store, sources: tuple[str, ...]) -> None:
        copy = _Copy(digest, target, sources, now + self._settings.repair_wait_s, now)
        self._open[digest] = copy
        self._ask(now, copy)

    def stop(self) -> None:
        self._open.clear()
        self._held = False

    def hold(self) -> None:
        self._held = True

    def release(self, now: float) -> None:
        self._held = False
        for copy in self._open.values():
            copy.heard = copy.ask_at = now

    def tick(self, now: float) -> None:
        for copy in list(self._open.values()):
            if copy.ask_at is not None and now >= copy.ask_at:
                self._ask(now, copy)

    @property
    def next_deadline(self) -> float | None:
        return min((copy.ask_at for copy in self._open.values() if copy.ask_at is not None), default=None)

    def _ask(self, now: float, copy: _Copy) -> None:
        copy.ask_at = None
        command = NodeCommand(copy.target.node, Replicate(copy.digest, copy.sources))
        done = partial(self._on_answer, copy)
        self._calls.gather(
            now, copy.digest, self._settings.command_wait_s, done, commands={copy.target.rack: (command,)}
        )

    def _on_answer(self, copy: _Copy, now: float, gathered: Gathered) -> None:
        if self._open.get(copy.digest) is not copy or self._held:
            return
        answer = next((answer for reply in gathered.replies for _, answer in reply.results), None)
        absent = any(copy.target.node in reply.absent for reply in gathered.replies)
        absent = absent or copy.target.rack not in self._directory.leaders  # it was its rack's last, or only, agent
        if isinstance(answer, Replicating) and answer.done:
            self._end(now, copy, "")
        elif isinstance(answer, Replicating | Unable) and answer.reason:
            self._end(now, copy, answer.reason)
        elif absent or (answer is None and now - copy.heard > self._settings.repair_grace_s):
            self._end(now, copy, "it is gone")
        elif now >= copy.deadline:
            self._end(now, copy, f"not whole after {self._settings.repair_wait_s:g} s")
        else:
            copy.heard = now if answer is not None else copy.heard
            copy.ask_at = now + copy.pause_s
            copy.pause_s = min(2 * copy.pause_s, self._settings.repair_poll_s)

    def _end(self, now: float, copy: _Copy, reason: str) -> None:
        del self._open[copy.digest]
        self._ended(now, copy.digest, copy.target, reason)
