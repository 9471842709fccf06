"""Ctrl-C, TERM and HUP as something to look at, not as an exception in the middle of anything.

Theory of operation. A handler that only writes down the signal can't break a half-done step; the code looks (`check`)
where stopping is safe, and waits (`wait`) on things that a signal wakes. Once taken note of, further signals change
nothing: a second Ctrl-C does not break the taking down that the first began.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Sequence
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """`code`: what to exit with, as shells count it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.code = 128 + number


class Interrupts:
    """A context manager of the main thread. `number`: the first signal that came, 0 as long as there was none."""

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGINT:  # nohup: HUP stays ignored
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        os.close(self._reader)
        os.close(self._writer)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number = number
            os.write(self._writer, b"!")

    def check(self) -> None:
        """Raises Interrupted once a signal came."""
        if self.number:
            raise Interrupted(self.number)

    def wait(self, timeout_s: float, others: Sequence[int] = ()) -> bool:
        """Until one of the descriptors `others` is readable (True), or the time is over. Raises Interrupted."""
        ready, _, _ = select.select([self._reader, *others], (), (), max(0.0, timeout_s))
        self.check()
        return bool(ready)
