"""Waiting for a condition with a bound: the only way a test waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_never = threading.Event()


def wait_until(probe: Callable[[], T], timeout_s: float = 10.0, what: str = "", every_s: float = 0.02) -> T:
    """Call `probe` until it answers something true, and return that. Fails after `timeout_s`, naming `what`."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain for: {what or 'a condition'}")
        _never.wait(every_s)
