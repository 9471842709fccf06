"""Calls to many racks at once, gathered: one id and one deadline a gather, a repeat for what was lost, and no waiting
for a leader that is gone. Used by coordinators (steps 4 to 6), storage leaders (step 8) and API processes.

A `Gather` sends each rack's leader a `RackCall`. An answer of "I do not lead" and a new leader in the directory lead to
a second try with the one that leads now. A rack that has not answered after half of the wait is asked once more (every
command may be repeated), but not while the caller is out of touch with ZooKeeper (`held`): a repeat is an order too.
At the deadline the gather ends with what it has; racks without an answer are named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fabric.commands import Answer, Command
from fabric.messages import NodeCommand, RackAnswer, RackCall
from fabric.roles.leaders import LeaderDirectory
from fabric.roles.outbox import Outbox


@dataclass(frozen=True, slots=True)
class RackReply:
    """What one rack said. `leader`: the node that was asked last; `answered_ms` after the call; `silent`, `absent`: see
    `messages.RackAnswer`."""

    rack: str
    leader: str
    answered_ms: int
    results: tuple[tuple[str, Answer], ...]
    silent: tuple[str, ...]
    absent: tuple[str, ...]
    messages: int


@dataclass(frozen=True, slots=True)
class Gathered:
    """The end of a gather. `silent_racks` had a leader that did not answer, or no leader at all."""

    key: str
    replies: tuple[RackReply, ...]
    silent_racks: tuple[str, ...]
    sent: int


@dataclass(slots=True)
class _Gather:
    key: str
    calls: dict[str, RackCall]
    began: float
    deadline: float
    repeat_at: float
    done: Callable[[float, Gathered], None]
    asked: dict[str, str] = field(default_factory=dict)
    """Rack -> the address that was asked last."""
    names: dict[str, str] = field(default_factory=dict)
    replies: dict[str, RackReply] = field(default_factory=dict)
    sent: int = 0


class RackCalls:
    """Embed it: feed it `RackAnswer`s and ticks. `done` of a gather is called from inside `on_answer` or `tick`."""

    def __init__(self, out: Outbox, directory: LeaderDirectory, prefix: str, hop_margin_s: float) -> None:
        self._out = out
        self._directory = directory
        self._prefix = prefix
        self._hop_margin_s = hop_margin_s
        self.held = False
        self._next = 0
        self._open: dict[str, _Gather] = {}

    def gather(
        self,
        now: float,
        key: str,
        wait_s: float,
        done: Callable[[float, Gathered], None],
        everyone: Command | None = None,
        racks: tuple[str, ...] | None = None,
        commands: dict[str, tuple[NodeCommand, ...]] | None = None,
    ) -> str:
        """Ask `everyone` in `racks` (None: every rack that has a leader), or the nodes named in `commands` by rack.
        Returns the gather's id. With nobody to ask, `done` comes with the next tick."""
        self._next += 1
        gather_id = f"{self._prefix}{self._next}"
        wait_ms = max(50, int((wait_s - min(self._hop_margin_s, wait_s / 2)) * 1000))
        if commands is not None:
            calls = {rack: RackCall(gather_id, wait_ms, None, command) for rack, command in commands.items()}
        else:
            names = self._directory.leaders if racks is None else racks
            calls = {rack: RackCall(gather_id, wait_ms, everyone) for rack in names}
        gather = _Gather(key, calls, now, now + wait_s, now + wait_s / 2, done)
        self._open[gather_id] = gather
        if not calls:
            gather.deadline = now
        for rack in sorted(calls):
            self._ask(gather, rack)
        return gather_id

    @property
    def racks(self) -> tuple[str, ...]:
        """Those that have a leader."""
        return tuple(sorted(self._directory.leaders))

    def forget(self, gather_id: str) -> None:
        """Nobody waits for this any more."""
        self._open.pop(gather_id, None)

    def on_answer(self, now: float, answer: RackAnswer) -> bool:
        """True when the answer belongs to a gather of this object."""
        gather = self._open.get(answer.call)
        if gather is None or answer.rack not in gather.calls:
            return gather is not None
        if not answer.leads:
            self._directory.doubt(answer.rack)
            return True
        gather.replies.setdefault(
            answer.rack,
            RackReply(
                answer.rack,
                gather.names.get(answer.rack, ""),
                int((now - gather.began) * 1000),
                tuple((result.node, result.answer) for result in answer.results),
                answer.silent,
                answer.absent,
                answer.messages,
            ),
        )
        if len(gather.replies) == len(gather.calls):
            self._end(now, answer.call)
        return True

    def on_leaders_changed(self) -> None:
        """The directory has news: racks that wait for an answer are asked again where another leads now."""
        for gather in self._open.values():
            for rack in sorted(gather.calls):
                seen = self._directory.leaders.get(rack)
                if rack not in gather.replies and seen is not None and gather.asked.get(rack) != seen.leader.address:
                    self._ask(gather, rack)

    def tick(self, now: float) -> None:
        for gather_id, gather in list(self._open.items()):
            if now >= gather.deadline:
                self._end(now, gather_id)
            elif now >= gather.repeat_at:
                gather.repeat_at = gather.deadline
                if self.held:
                    continue
                for rack in sorted(set(gather.calls) - set(gather.replies)):
                    self._directory.doubt(rack)
                    self._ask(gather, rack)

    @property
    def next_deadline(self) -> float | None:
        if not self._open:
            return None
        return min(min(one.deadline, one.repeat_at) for one in self._open.values())

    def _ask(self, gather: _Gather, rack: str) -> None:
        seen = self._directory.leaders.get(rack)
        if seen is not None:
            gather.asked[rack], gather.names[rack] = seen.leader.address, seen.leader.node
            gather.sent += 1
            self._out.send(seen.leader.address, gather.calls[rack])

    def _end(self, now: float, gather_id: str) -> None:
        gather = self._open.pop(gather_id)
        replies = tuple(gather.replies[rack] for rack in sorted(gather.replies))
        silent = tuple(sorted(set(gather.calls) - set(gather.replies)))
        gather.done(now, Gathered(gather.key, replies, silent, gather.sent))
