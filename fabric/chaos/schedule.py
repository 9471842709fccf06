"""When each fault is done and undone: a heap of (time, what to do), and what is armed at a step of the flow.

A fault that can't be done is noted with the reason, and the run goes on. Whatever is done has a number, under which its
undoing is kept until it is due, or until all is healed.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from fabric.chaos.faults import FAULTS, processes
from fabric.chaos.script import Act
from fabric.chaos.stage import Deed, Skipped, Stage, Undo
from fabric.chaos.targets import NobodyThere, chosen
from fabric.chaos.writing import told
from fabric.local.control import ControlError
from fabric.runtime import stepping

Say = Callable[[str], None]


@dataclass(order=True)
class _Due:
    at_s: float
    number: int
    work: Callable[[float], None] = field(compare=False)


class Schedule:
    """Times are seconds since the load began. `deeds`: what was done, and what not."""

    def __init__(self, stage: Stage, acts: Iterable[Act], for_s: float, say: Say) -> None:
        self.stage, self.say = stage, say
        self.deeds: list[Deed] = []
        self._for_s = for_s
        self._undoes: dict[int, Undo] = {}
        self._armed: dict[int, Act] = {}
        self._due: list[_Due] = []
        self._numbers = itertools.count()
        for act in acts:
            if act.every_s:
                for time in range(1, int(for_s / act.every_s) + 1):
                    self._act_at(time * act.every_s, act)
            else:
                self._act_at(act.at_s or 0.0, act)

    def turn(self, now: float) -> float:
        """Do what is due; when the next thing is."""
        while self._due and self._due[0].at_s <= now:
            heapq.heappop(self._due).work(now)
        self._look_at_armed(now)
        return self._due[0].at_s if self._due else self._for_s

    def undo_all(self) -> None:
        """The faults are over."""
        self._look_at_armed(self._for_s)
        for number, act in self._armed.items():
            stepping.disarm(self.stage.folder.faults, number)
            self.deeds.append(Deed(act.verb, (told(act),), self.stage.clock.now(), skipped="nobody came to this step"))
        self._armed.clear()
        self._due.clear()
        for number in sorted(self._undoes, reverse=True):
            self._undo(number)

    # --- one fault ---------------------------------------------------------------------------------------------------

    def _act_at(self, at_s: float, act: Act) -> None:
        self._put(at_s, lambda now: self._do(act, now))

    def _put(self, at_s: float, work: Callable[[float], None]) -> None:
        heapq.heappush(self._due, _Due(at_s, next(self._numbers), work))

    def _do(self, act: Act, now: float) -> None:
        names: tuple[str, ...] = ()
        at_s = self.stage.clock.now()
        try:
            names = chosen(act.target, self.stage.scene(), self.stage.rng) if act.target else ()
            if act.step:
                self._armed[processes.arm(self.stage, act, names)] = act
                return
            undo = FAULTS[act.verb](self.stage, act, names)
        except (Skipped, NobodyThere, ControlError) as error:
            self.say(f"{at_s:7.2f} s  not done: {told(act)}: {error}")
            self.deeds.append(Deed(act.verb, names or (told(act),), at_s, skipped=str(error)))
            return
        self._done(act, names, now, at_s, undo)

    def _done(self, act: Act, names: tuple[str, ...], now: float, at_s: float, undo: Undo | None) -> None:
        """Note it, and when it is to be undone."""
        hit = f" ({', '.join(names)})" if names and names != (str(act.target),) else ""
        self.say(f"{at_s:7.2f} s  {told(act)}{hit}")
        number = len(self.deeds)
        self.deeds.append(Deed(act.verb, names or (told(act),), at_s))
        if undo is not None:
            self._undoes[number] = undo
            if act.for_s is not None:
                self._put(now + act.for_s, lambda _: self._undo(number))

    def _look_at_armed(self, now: float) -> None:
        """Whoever has reached an armed step has done it to himself."""
        if not self._armed:
            return
        for one in stepping.fired(self.stage.folder.faults):
            if one.number in self._armed and one.node:
                act = self._armed.pop(one.number)
                self.stage.hit(one.node)
                undo = processes.undo_fired(self.stage, act.verb, one.node)
                self._done(act, (one.node,), now, self.stage.clock.now(), undo)

    def _undo(self, number: int) -> None:
        undo = self._undoes.pop(number, None)
        if undo is None:
            return
        deed = self.deeds[number]
        try:
            undo()
        except (Skipped, ControlError) as error:
            self.say(f"{self.stage.clock.now():7.2f} s  not undone: {deed.verb} {', '.join(deed.names)}: {error}")
        self.deeds[number] = Deed(deed.verb, deed.names, deed.at_s, self.stage.clock.now())
