"""Open deployments that nobody coordinates: found by the rack leaders, each among those that fall to it.

    every sweep_interval_s   list the open markers; of those that are this leader's: is there an owner znode?
    none, submit_wait_s on   look once more; none still: take it

The second look is for those who were written a moment ago. Whoever wrote them has told a leader, who is about to claim
them, and tells the writer what becomes of them; a sweep that came between the two would coordinate for nobody.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from fabric.roles.outbox import Outbox, earliest
from fabric.roles.settings import Settings
from zk import paths
from zk.tree import Children, Existed, Exists, Listed, Outcome

PREFIX = "sweep:"
SURE = "sure:"
"""Part of the token of a second look."""
MAX_SWEPT = 64
"""Open deployments looked at in one sweep, at most."""


class Sweep:
    """Embed it; it acts only between `begin` and `end`. `is_mine(deployment)`: it falls to this leader, and is not in
    its charge; `room()`: it can take one more; `take(now, deployment)`."""

    def __init__(
        self,
        settings: Settings,
        rng: random.Random,
        out: Outbox,
        is_mine: Callable[[str], bool],
        room: Callable[[], bool],
        take: Callable[[float, str], None],
    ) -> None:
        self._settings = settings
        self._rng = rng
        self._out = out
        self._is_mine, self._room, self._take = is_mine, room, take
        self._session = 0
        self._sweep_at: float | None = None
        self._swept_to = ""
        """The last one looked at: the next sweep goes on after it."""
        self._look_at: dict[str, float] = {}
        """Deployment -> when to look once more whether it has an owner."""

    def begin(self, now: float, session: int) -> None:
        self._session = session
        self._sweep_at = now + self._settings.sweep_interval_s * self._rng.random()

    def end(self) -> None:
        self._sweep_at = None
        self._look_at.clear()

    def on_tree(self, now: float, token: str, outcome: Outcome, held: bool) -> bool:
        """True when the token was one of its own. `held`: nothing is to be taken now; the next sweep finds it."""
        if not token.startswith(PREFIX):
            return False
        if self._sweep_at is None or held:
            return True
        name = token[len(PREFIX) :]
        if isinstance(outcome, Listed):
            self._listed(outcome.names)
        elif isinstance(outcome, Existed) and (outcome.stat is None or outcome.stat.owner == self._session):
            # One of our own session that is not in our charge is a leftover of ours.
            self._unowned(now, name.removeprefix(SURE), sure=name.startswith(SURE))
        return True

    def tick(self, now: float, held: bool) -> None:
        if self._sweep_at is None:
            return
        for name in [name for name, due in self._look_at.items() if now >= due]:
            del self._look_at[name]
            if not held:
                self._out.tree(f"{PREFIX}{SURE}{name}", Exists(paths.owner(name)))
        if now >= self._sweep_at:
            self._sweep_at = now + self._settings.sweep_interval_s * (0.75 + 0.5 * self._rng.random())
            if not held:
                self._out.tree(PREFIX, Children(paths.OPEN))

    @property
    def next_deadline(self) -> float | None:
        return earliest(self._sweep_at, min(self._look_at.values(), default=None))

    def _listed(self, names: tuple[str, ...]) -> None:
        mine = [name for name in names if name not in self._look_at and self._is_mine(name)]
        later = [name for name in mine if name > self._swept_to]
        batch = [*later, *(name for name in mine if name <= self._swept_to)][:MAX_SWEPT]
        self._swept_to = batch[-1] if batch else ""
        for name in batch:
            self._out.tree(f"{PREFIX}{name}", Exists(paths.owner(name)))

    def _unowned(self, now: float, name: str, sure: bool) -> None:
        if not self._is_mine(name):
            return
        if not sure:
            self._look_at[name] = now + self._settings.submit_wait_s
        elif self._room():
            self._out.note("info", f"{name}: open and without an owner: taking it")
            self._take(now, name)
