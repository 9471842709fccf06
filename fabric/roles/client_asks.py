"""Questions to one leader: the leader of a named rack, or any leader of a layer.

Theory of operation. An ask has an id, a question and a deadline. It is sent to a leader and, if that one does not
answer in `attempt_s`, says that it does not lead, or refuses, to another (for a named rack: to whoever leads it then).
Between refusals there is a growing pause, so that a fabric in trouble is not asked faster than it can answer. Answers
to earlier attempts of the same ask count too: they are as good. Every ask ends exactly once, with an answer or with the
reason why there is none.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from fabric.messages import AnyMessage, Holders, RackStatus, Submitted
from fabric.records import LayerName
from fabric.roles.leaders import LeaderDirectory, Seen, pick
from fabric.roles.outbox import Outbox
from fabric.roles.settings import Settings

LeaderAnswer = Holders | RackStatus | Submitted


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a question may say about the attempt it is sent in: its id, whom it goes to,
    and how many leaders there were to choose from."""

    call: str
    leader: Seen
    considered: int


@dataclass(frozen=True, slots=True)
class Answered:
    """The end of an ask. `answer` is None when there was none by the deadline; `reason` says what happened last."""

    answer: LeaderAnswer | None
    reason: str


@dataclass(slots=True)
class _Ask:
    layer: LayerName
    rack: str | None
    question: Callable[[Attempt], AnyMessage]
    deadline: float
    done: Callable[[float, Answered], None]
    pause_s: float
    again_at: float
    asked: Seen | None = None
    failed: set[str] = field(default_factory=set)
    attempts: int = 0
    reason: str = "no leader is known"


class LeaderAsks:
    """Embed it: feed it answers, news of leaders, and ticks. `done` of an ask is called from inside these, never from
    inside `ask`."""

    def __init__(
        self,
        out: Outbox,
        directories: dict[LayerName, LeaderDirectory],
        settings: Settings,
        rng: random.Random,
        prefix: str,
        attempt_s: float,
    ) -> None:
        self._out = out
        self._directories = directories
        self._settings = settings
        self._rng = rng
        self._prefix = prefix
        self._attempt_s = attempt_s
        self._open: dict[str, _Ask] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._open)

    def ask(
        self,
        now: float,
        layer: LayerName,
        rack: str | None,
        wait_s: float,
        question: Callable[[Attempt], AnyMessage],
        done: Callable[[float, Answered], None],
    ) -> str:
        """Ask the leader of `rack` (None: any leader of `layer`). Returns the ask's id, for `forget`."""
        self._serial += 1
        ask_id = f"{self._prefix}{self._serial}"
        one = _Ask(layer, rack, question, now + wait_s, done, self._settings.retry_min_s, now)
        self._open[ask_id] = one
        self._send(now, ask_id, one)
        return ask_id

    def forget(self, ask_id: str) -> None:
        """Nobody waits for this any more."""
        self._open.pop(ask_id, None)

    def on_answer(self, now: float, answer: LeaderAnswer) -> bool:
        """True when the answer belongs to an ask of this object."""
        one = self._open.get(answer.call)
        if one is None:
            return False
        if isinstance(answer, Submitted):
            good, reason = answer.taken, answer.reason or "refused without a reason"
        else:
            good, reason = answer.leads, "it does not lead any more"
        if good:
            self._end(now, answer.call, Answered(answer, ""))
            return True
        if one.asked is not None:
            self._fail(one, f"the leader of rack {one.asked.leader.rack}: {reason}")
            one.again_at = now + one.pause_s * (0.5 + self._rng.random())
            one.pause_s = min(one.pause_s * 2, self._settings.retry_max_s)
        return True

    def on_leaders_changed(self, now: float) -> None:
        """The directory has news: asks without a leader, or whose leader was replaced, go on at once."""
        for ask_id, one in list(self._open.items()):
            leaders = self._directories[one.layer].leaders
            if one.asked is None:
                if not one.attempts:
                    self._send(now, ask_id, one)
                continue
            current = leaders.get(one.asked.leader.rack)
            if current is not None and current.epoch != one.asked.epoch:
                self._send(now, ask_id, one)

    def tick(self, now: float) -> None:
        for ask_id, one in list(self._open.items()):
            if ask_id not in self._open:
                continue  # ended by the `done` of another
            if now >= one.deadline:
                if one.asked is not None:
                    self._fail(one, f"the leader of rack {one.asked.leader.rack} did not answer")
                self._end(now, ask_id, Answered(None, one.reason))
            elif now >= one.again_at:
                if one.asked is not None:
                    self._fail(one, f"the leader of rack {one.asked.leader.rack} did not answer")
                self._send(now, ask_id, one)

    @property
    def next_deadline(self) -> float | None:
        return min((min(one.deadline, one.again_at) for one in self._open.values()), default=None)

    def _send(self, now: float, ask_id: str, one: _Ask) -> None:
        leaders = self._directories[one.layer].leaders
        seen = leaders.get(one.rack) if one.rack is not None else pick(leaders, self._rng, frozenset(one.failed))
        one.asked = seen
        if seen is None:
            where = "no rack" if one.rack is None else f"rack {one.rack}"
            one.reason = f"{where} has {'a' if one.rack is None else 'no'} {one.layer} leader now"
            one.again_at = now + one.pause_s
            one.pause_s = min(one.pause_s * 2, self._settings.retry_max_s)
            return
        one.attempts += 1
        wait_s = min(self._attempt_s, max(0.05, one.deadline - now))
        one.again_at = now + wait_s
        self._out.send(seen.leader.address, one.question(Attempt(ask_id, seen, len(leaders))))

    def _fail(self, one: _Ask, reason: str) -> None:
        assert one.asked is not None
        one.reason = reason
        one.failed.add(one.asked.leader.address)
        self._directories[one.layer].doubt(one.asked.leader.rack)
        one.asked = None

    def _end(self, now: float, ask_id: str, answered: Answered) -> None:
        one = self._open.pop(ask_id)
        one.done(now, answered)
