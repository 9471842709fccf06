"""Answers that wait a moment for what they are about to say.

A Confirm, or a Stop, is answered with how far its ordinals are. Most are there within milliseconds (the image is
cached, an instance starts in the time of a fork): so the answer waits for them, `answer_linger_s` at most, and says
"running" or "gone" at once. That spares the coordinator a report from every node for a start, and a second round of
questions for a stop. What takes longer is answered as it is, and reported as it goes on.

What is answered is in the journal before: most often once for a start, and once for a stop, when it is over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fabric.commands import Progress
from fabric.roles.work import Work

MAX_HELD = 256
"""One more is answered at once."""


@dataclass(slots=True)
class _Held:
    work: Work
    sender: str
    call: str
    until: float


class HeldAnswers:
    """Embed it. `send(now, sender, call, progress)`; before it `save(work)`, when the journal lacks what that says."""

    def __init__(
        self,
        linger_s: float,
        send: Callable[[float, str, str, Progress], None],
        save: Callable[[Work], None],
    ) -> None:
        self._linger_s = linger_s
        self._send = send
        self._save = save
        self._held: dict[str, list[_Held]] = {}
        self._count = 0
        self._due: float | None = None
        """Not later than the first that is due."""

    def hold(self, now: float, work: Work, sender: str, call: str) -> bool:
        """False: answer now. A repeat of a call that is held needs no second answer."""
        held = self._held.get(work.deployment, ())
        if any(one.call == call and one.sender == sender for one in held):
            return True
        if not work.waiting or self._count >= MAX_HELD or self._linger_s <= 0:
            return False
        one = _Held(work, sender, call, now + self._linger_s)
        self._held.setdefault(work.deployment, []).append(one)
        self._count += 1
        if self._due is None:
            self._due = one.until
        return True

    def of(self, deployment: str) -> bool:
        """Somebody waits for how it goes there."""
        return deployment in self._held

    def tell(self, now: float, deployment: str) -> None:
        """Answer all that ask about it, as things are now."""
        for one in self._held.pop(deployment, ()):
            self._count -= 1
            if one.work.unsaved:
                self._save(one.work)
            self._send(now, one.sender, one.call, one.work.progress())

    def tick(self, now: float) -> None:
        if self._due is None or now < self._due:
            return
        over = [name for name, held in self._held.items() if any(one.until <= now for one in held)]
        for deployment in sorted(over):
            self.tell(now, deployment)
        self._due = min((one.until for held in self._held.values() for one in held), default=None)

    @property
    def next_deadline(self) -> float | None:
        return self._due if self._held else None
