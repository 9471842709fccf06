"""Seeing to it that a deployment is in somebody's charge (steps 2 and 3), as long as somebody waits for it.

Theory of operation. The record is written, so the request survives whatever happens here; rack leaders sweep for open
deployments that nobody owns. This makes it fast, and goes on when the coordinator dies:

        ask a leader (Submit) ──taken──> look: is there an owner znode? <───────────────────┐
              ^  │no answer, refused:       │ yes: wait for its watch, then ────────────────┤
              │  └─ask another              │ no:  is the open marker still there?          │
              │                             │        no: at rest, done                      │
              │                             │        yes, and somebody was just asked: wait ┘
              └─────────────────────────────┴────────yes: nobody owns it

All by watches on the owner znode; every wait has a bound, and after `follow_s` the sweeping leaders are trusted alone.
While the session is not CONNECTED nothing is submitted: whoever is asked could not take the owner znode either.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from fabric.messages import RecordNews, RecordSeen, Submit
from fabric.roles.client_asks import Answered, Attempt, LeaderAsks
from fabric.roles.outbox import Outbox
from fabric.roles.settings import Settings
from zk import paths
from zk.tree import Existed, Exists, Outcome, SessionChanged, SessionState

PREFIX = "charge:"
NEVER = 1 << 63
"""When it is not known what was submitted, no news can be later."""
FIRST_LOOK_S = 0.3
"""After a leader took it: most requests are at rest by then, and one look tells so."""


@dataclass(slots=True)
class _Charge:
    """`ask`: the open question to leaders. `reading`: which znode is being looked at. `taken`: a leader said that it
    takes it, and was not seen as its owner yet."""

    deployment: str
    accepted_ms: int
    until: float
    pause_s: float
    ask: str = ""
    reading: str = ""
    taken: bool = False
    look_at: float | None = None
    seen: RecordSeen | None = None
    """The record as it was when it was begun, if that is known; told with the first question only."""
    since: int = 0
    """Its mzxid then."""


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

    def begin(self, now: float, deployment: str, accepted_ms: int, seen: RecordSeen | None = None) -> None:
        """Begun again, somebody is told again: the record has changed. Over `max_followed` deployments at once it is
        left to the sweeping leaders. `seen`: what was written."""
        known = self._open.get(deployment)
        if known is not None:
            known.until = now + self._follow_s
            known.accepted_ms = max(0, accepted_ms)
            known.seen = seen
            known.since = max(known.since, seen.mzxid) if seen is not None else NEVER
            if self._connected and not known.ask:
                self._submit(now, known)
            return
        if len(self._open) >= self._max_followed:
            return
        one = _Charge(deployment, max(0, accepted_ms), now + self._follow_s, self._settings.retry_min_s)
        one.seen, one.since = seen, seen.mzxid if seen is not None else NEVER
        self._open[deployment] = one
        if self._connected:
            self._submit(now, one)

    def on_session(self, now: float, event: SessionChanged) -> None:
        was, self._connected = self._connected, event.state is SessionState.CONNECTED
        for one in self._open.values():
            if not self._connected:
                self._asks.forget(one.ask)
                one.ask = one.reading = ""
                one.look_at = None
            elif not was:
                self._look(one)

    def on_news(self, news: RecordNews) -> None:
        """At rest, as its coordinator says of what it wrote after what was submitted: nothing is left to look at."""
        one = self._open.get(news.deployment)
        if one is not None and news.closed and news.seen.mzxid > one.since:
            self._asks.forget(one.ask)
            del self._open[news.deployment]

    def on_watch(self, path: str) -> None:
        if not path.startswith(paths.OPEN + "/"):
            return
        one = self._open.get(path.split("/")[2])
        if one is not None and self._connected:
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
            self._look_later(now, one, one.pause_s)
            one.pause_s = min(one.pause_s * 2, self._settings.retry_max_s)
        elif what == "owner" and outcome.stat is not None:
            self._asks.forget(one.ask)
            one.ask = ""
            one.taken = False
            one.pause_s = self._settings.retry_min_s  # from here its watch says when to go on
        elif what == "owner":
            self._read(one, "marker", Exists(paths.open_marker(deployment)))
        elif outcome.stat is None:
            self._asks.forget(one.ask)
            del self._open[deployment]
        elif one.ask or one.taken:  # somebody is being asked, or has yet to become the owner: give it the time
            one.taken = False
            self._look_later(now, one, self._settings.submit_wait_s)
        else:
            self._submit(now, one)
        return True

    def tick(self, now: float) -> None:
        for one in list(self._open.values()):
            if now >= one.until:
                self._asks.forget(one.ask)
                del self._open[one.deployment]
            elif one.look_at is not None and now >= one.look_at:
                self._look(one)

    @property
    def next_deadline(self) -> float | None:
        return min(
            (one.until if one.look_at is None else min(one.until, one.look_at) for one in self._open.values()),
            default=None,
        )

    def _submit(self, now: float, one: _Charge) -> None:
        def question(attempt: Attempt) -> Submit:
            load = max(0, attempt.leader.leader.load)
            seen, one.seen = one.seen, None
            return Submit(attempt.call, one.deployment, one.accepted_ms, attempt.considered, load, seen)

        def done(at: float, answered: Answered) -> None:
            one.ask = ""
            one.taken = answered.answer is not None
            if one.taken:
                self._look_later(at, one, FIRST_LOOK_S)
            else:
                self._out.note("warning", f"deployment {one.deployment}: nobody took it in charge: {answered.reason}")
                self._look(one)

        one.ask = self._asks.ask(now, "compute", None, max(0.0, one.until - now), question, done)
        self._look_later(now, one, self._settings.submit_wait_s)

    def _look(self, one: _Charge) -> None:
        one.look_at = None
        self._read(one, "owner", Exists(paths.owner(one.deployment), watch=True))

    def _read(self, one: _Charge, what: str, op: Exists) -> None:
        one.reading = what
        self._out.tree(f"{PREFIX}{what}:{one.deployment}", op)

    def _look_later(self, now: float, one: _Charge, pause_s: float) -> None:
        one.look_at = now + pause_s * (0.75 + self._rng.random() / 2)
