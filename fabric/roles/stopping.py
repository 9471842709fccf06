"""Stopping ordinals on nodes, for scaling down, deleting, giving up, and before an ordinal moves elsewhere.

`Stop` is repeated until every node has said that none of the ordinals is left, or ZooKeeper says that the node is not
present, or `deadline_s` is over. A node that is not present while the plan in the record is without these ordinals
reads that before it registers (`verify`): so they are as good as stopped. What a rack leader calls absent is only a
reason to ask ZooKeeper, whose answer is younger than the plan that this coordinator wrote.

With `stop_after_s` that is not enough, since what was stopped may be placed anew at once, and must not run in two
places at all: such a node is waited for until it is to be replaced, and so has stopped its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fabric.commands import Progress, Stop
from fabric.ordinals import format_ordinals, parse_ordinals
from fabric.roles.calls import Gathered
from fabric.roles.charge import Charge
from fabric.roles.plans import Place


class Stopping:
    """`targets`: where -> the ordinals to stop there; an empty tuple means everything of the deployment.
    `done(now, left)`: the places that had not answered when the deadline came."""

    def __init__(
        self,
        charge: Charge,
        targets: Mapping[Place, tuple[int, ...]],
        deadline_s: float,
        done: Callable[[float, tuple[Place, ...]], None],
    ) -> None:
        self._charge = charge
        self._deadline_s = deadline_s
        self._targets = dict(targets)
        self._done = done
        self._step = 0
        self._deadline = 0.0
        self._ask_at: float | None = None
        self._ended = False
        self.vanished: set[Place] = set()
        """Places that ended by ZooKeeper's word that their node is not present, not by the node's."""

    def begin(self, now: float) -> None:
        self._step = self._charge.next_step()
        self._deadline = now + self._deadline_s
        self._ask(now)

    def _ask(self, now: float) -> None:
        self._ask_at = None
        charge = self._charge
        if not self._targets:
            self._end(now)
            return
        commands = [
            (where, Stop(charge.record.id, charge.epoch, self._step, format_ordinals(ordinals), not ordinals))
            for where, ordinals in sorted(self._targets.items())
        ]
        charge.ask_nodes(now, commands, self._answered)

    def _answered(self, now: float, gathered: Gathered) -> None:
        answers = self._charge.results(now, gathered)
        if answers is None or self._ended:
            return
        self._charge.recorder.gathered(gathered)
        for where, answer in answers:
            if isinstance(answer, Progress):
                self._learn(where, answer)
        absent = {(node, reply.rack) for reply in gathered.replies for node in reply.absent}
        self._charge.ask_gone(absent & set(self._targets))
        self._charge.ask_members(gathered.silent_racks)
        if not self._targets or now >= self._deadline:
            self._end(now)
        else:
            self._ask_at = now + min(0.3, self._charge.settings.poll_interval_s)

    def on_members(self, now: float, rack: str, present: frozenset[str]) -> None:
        """Who is there in a rack whose leader did not answer."""
        for place in [place for place in self._targets if place[1] == rack and place[0] not in present]:
            self.on_gone(now, place)

    def on_gone(self, now: float, place: Place) -> None:
        """ZooKeeper says that this node is not present."""
        if not self._charge.record.gone and self._charge.may_run_on(now, place):
            return
        if self._targets.pop(place, None) is None:
            return
        self.vanished.add(place)
        if not self._targets and self._ask_at is not None:
            self._ask_at = now

    def _learn(self, where: Place, progress: Progress) -> None:
        if where not in self._targets:
            return
        here = {failure.ordinal for failure in progress.failed}
        for text in (progress.running, progress.waiting, progress.stopping):
            here |= set(parse_ordinals(text))
        wanted = self._targets[where]
        if not here & set(wanted) if wanted else not here:
            del self._targets[where]

    def _end(self, now: float) -> None:
        self._ended = True
        self._done(now, tuple(sorted(self._targets)))

    def tick(self, now: float) -> None:
        if self._ask_at is not None and now >= self._ask_at and not self._charge.held:
            self._ask(now)

    @property
    def next_deadline(self) -> float | None:
        return None if self._charge.held else self._ask_at
