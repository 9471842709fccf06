"""Waiting for a condition on an event loop, with a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def until(probe: Callable[[], T], timeout_s: float = 10.0, what: str = "", every_s: float = 0.005) -> T:
    """Call `probe` until it answers something true, and return that; fails after `timeout_s`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not (answer := probe()):
        if loop.time() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain for: {what or 'a condition'}")
        await asyncio.sleep(every_s)
    return answer
