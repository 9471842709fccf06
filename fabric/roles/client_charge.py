"""Seeing to it that a deployment is in somebody's charge (steps 2 and 3), as long as somebody waits for it.

Theory of operation. The record is written, so the request survives whatever happens here; rack leaders sweep for open
deployments that nobody owns. This makes it fast, and goes on when the coordinator dies:

        ask a leader (Submit) ──taken──> look: is there an owner znode?
              ^  ^                         │ yes: wait for its watch, then look again
              │  │no answer, refused       │ no:  is the open marker still there?
              │  └─── another leader       │        │ no: at rest, done
              └──── after `submit_wait_s` ─┴────────┘ yes: nobody owns it

All by watches on the owner znode; every wait has a bound, and after `follow_s` the sweeping leaders are trusted alone.
While the session is not CONNECTED nothing is submitted: whoever is asked could not take the owner znode either.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from fabric.messages import Submit
from fabric.roles.client_asks import Answered, Attempt, LeaderAsks
from fabric.roles.outbox import Outbox
from fabric.roles.settings import Settings
from zk import paths
from zk.tree import Existed, Exists, Outcome, SessionChanged, SessionState

PREFIX = "charge:"


@dataclass(slots=True)
class _Charge:
    deployment: str
    accepted_ms: int
    until: float
    pause_s: float
    ask: str = ""
    reading: str = ""
    again_at: float | None = None
    again: str = ""


class Charges:
    """Embed it: pass it every SessionChanged, WatchFired and TreeDone, and ticks."""

    def __init__(
        self,
        out: Outbox,
        asks: LeaderAsks,
        settings: Settings,
        rng: random.Random,
        follow_s: float,
        max_followed: int,
    ) -> None:
        self._out = out
        self._asks = asks
        self._settings = settings
        self._rng = rng
        self._follow_s = follow_s
        self._max_followed = max_followed
        self._connected = False
        self._open: dict[str, _Charge] = {}

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, now: float, deployment: str, accepted_ms: int) -> None:
        """Idempotent. Over `max_followed` deployments at once it is left to the sweeping leaders."""
        if deployment in self._open or len(self._open) >= self._max_followed:
            return
        one = _Charge(deployment, accepted_ms, now + self._follow_s, self._settings.retry_min_s)
        self._open[deployment] = one
        if self._connected:
            self._submit(now, one)

    def on_session(self, now: float, event: SessionChanged) -> None:
        was, self._connected = self._connected, event.state is SessionState.CONNECTED
        for one in list(self._open.values()):
            if not self._connected:
                self._asks.forget(one.ask)
                one.ask = one.reading = ""
                one.again_at = None
            elif not was:
                self._look(one)

    def on_watch(self, path: str) -> None:
        if not path.startswith(paths.OPEN + "/"):
            return
        one = self._open.get(path.split("/")[2])
        if one is not None and not one.ask and self._connected:
            one.pause_s = self._settings.retry_min_s
            self._look(one)

    def on_tree(self, now: float, token: str, outcome: Outcome) -> bool:
        """True when the token was one of its own."""
        if not token.startswith(PREFIX):
            return False
        what, _, deployment = token[len(PREFIX) :].partition(":")
        one = self._open.get(deployment)
        if one is None or one.reading != what:
            return True
        one.reading = ""
        if not isinstance(outcome, Existed):
            self._later(now, one, "look")
        elif what == "owner":
            if outcome.stat is None:
                self._read(one, "marker", Exists(paths.open_marker(deployment)))
            else:
                one.again_at = None  # its watch says when to go on
        elif outcome.stat is None:
            del self._open[deployment]
        elif one.again == "wait":  # a leader has just taken it; give it the time to become the owner
            self._later(now, one, "submit")
        else:
            self._submit(now, one)
        return True

    def tick(self, now: float) -> None:
        for one in list(self._open.values()):
            if now >= one.until:
                self._asks.forget(one.ask)
                del self._open[one.deployment]
            elif one.again_at is not None and now >= one.again_at and self._connected:
                one.again_at = None
                if one.again == "submit":
                    self._submit(now, one)
                else:
                    self._look(one)

    @property
    def next_deadline(self) -> float | None:
        return min(
            (one.until if one.again_at is None else min(one.until, one.again_at) for one in self._open.values()),
            default=None,
        )

    def _submit(self, now: float, one: _Charge) -> None:
        def question(attempt: Attempt) -> Submit:
            leader = attempt.leader.leader
            load = max(0, leader.load)
            return Submit(attempt.call, one.deployment, max(0, one.accepted_ms), attempt.considered, load)

        def done(at: float, answered: Answered) -> None:
            one.ask = ""
            one.again = "wait" if answered.answer is not None else "look"
            if answered.answer is None:
                self._out.note("warning", f"deployment {one.deployment}: nobody took it in charge: {answered.reason}")
            self._look(one)

        one.again = ""
        one.again_at = None
        wait_s = max(self._settings.submit_wait_s, one.until - now)
        one.ask = self._asks.ask(now, "compute", None, wait_s, question, done)

    def _look(self, one: _Charge) -> None:
        self._read(one, "owner", Exists(paths.owner(one.deployment), watch=True))

    def _read(self, one: _Charge, what: str, op: Exists) -> None:
        one.reading = what
        self._out.tree(f"{PREFIX}{what}:{one.deployment}", op)

    def _later(self, now: float, one: _Charge, what: str) -> None:
        pause_s = self._settings.submit_wait_s if what == "submit" else one.pause_s
        one.pause_s = min(one.pause_s * 2, self._settings.retry_max_s)
        one.again = what
        one.again_at = now + pause_s * (0.75 + self._rng.random() / 2)
