"""The keeper's end of the eyes: forks them, asks, hears, one question at a time. See eyes.py for theirs."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from fabric.local import nursery
from fabric.local.eyes import Look, Seen

LOOK_EVERY_S = 1.0
LOOK_FAST_S, LOOK_SLOW_S = 0.05, 0.25
REOPEN_AFTER_S = 1.0
MAX_CHECK = 64
SWEEP_WAIT_S = 10.0


class Sight:
    """`body`: what the forked eyes do with their two descriptors. `on_seen` is called with every answer."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        body: Callable[[int, int], int],
        log: Path,
        on_seen: Callable[[Seen], None],
    ) -> None:
        self.selector, self.body, self.log, self.on_seen = selector, body, log, on_seen
        self.pid = 0
        self.seen = Seen()
        self.seen_from = 0.0
        """When the look at `seen` began: what has changed since may not be in it."""
        self.questions = self.answers = -1
        self.heard = bytearray()
        self.asked_at: float | None = None
        self.open_at = self.look_at = 0.0

    def look(self, check: Iterable[str], now: float) -> None:
        """Ask, when it is time and the last answer is in. `check`: nodes whose member znode shall be read."""
        if not self.pid and now >= self.open_at:
            self._open()
        if not self.pid or self.asked_at is not None or now < self.look_at:
            return
        self._ask(Look(tuple(sorted(check)[:MAX_CHECK])))
        self.asked_at = now

    def doubt(self, why: str) -> None:
        """What was seen does not hold any more, until the next answer."""
        self.seen = Seen(trouble=why)
        self.soon()

    def soon(self) -> None:
        """Something is about to change: do not wait for the next round."""
        self.look_at = 0.0

    def died(self) -> None:
        """The eyes were reaped: open new ones in a while."""
        self.pid = 0
        self.open_at = time.monotonic() + REOPEN_AFTER_S
        self.selector.unregister(self.answers)
        os.close(self.questions)
        os.close(self.answers)
        self.questions = self.answers = -1

    def sweep(self) -> None:
        """Have them remove every znode of this fabric. Waits, boundedly: this is the keeper's last question."""
        if not self.pid:
            return
        deadline = time.monotonic() + SWEEP_WAIT_S
        owed = 1 if self.asked_at is None else 2
        self._ask(Look(sweep=True))
        while owed > 0 and select.select([self.answers], (), (), max(0.0, deadline - time.monotonic()))[0]:
            data = os.read(self.answers, 1 << 20)
            owed = 0 if not data else owed - data.count(b"\n")

    def _open(self) -> None:
        requests, self.questions = os.pipe()
        self.answers, answers = os.pipe()
        self.pid = nursery.fork(
            lambda: self.body(requests, answers), name="eyes", log=self.log, keep=(requests, answers)
        )
        os.close(requests)
        os.close(answers)
        os.set_blocking(self.answers, False)
        self.heard.clear()
        self.asked_at = None
        self.selector.register(self.answers, selectors.EVENT_READ, self._hear)

    def _ask(self, look: Look) -> None:
        with contextlib.suppress(BrokenPipeError):  # they died: the keeper will see
            os.write(self.questions, msgspec.json.encode(look) + b"\n")

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.heard += os.read(self.answers, 1 << 20)
        if not self.heard.endswith(b"\n"):
            return
        self.seen = msgspec.json.decode(bytes(self.heard), type=Seen)
        self.heard.clear()
        now = time.monotonic()
        self.seen_from = self.asked_at or now
        took_s = now - self.seen_from
        self.asked_at = None
        self.look_at = now + min(LOOK_SLOW_S, max(LOOK_FAST_S, took_s))
        self.on_seen(self.seen)

    def rest(self) -> None:
        """Nothing is starting, or nothing that can be seen yet: look less often."""
        self.look_at = max(self.look_at, time.monotonic() + LOOK_EVERY_S)
