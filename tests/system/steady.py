"""Requests at a steady rate, whatever becomes of them: an open loop, so a slow answer delays none of the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

AT_ONCE = 100
"""Requests that wait for an answer, at most: 20 s of 5 a second."""


@dataclass(frozen=True)
class Answered:
    """`at_s`: when it was asked, from the start of the load. `answer`: an HTTP answer, or the error instead of one."""

    at_s: float
    took_s: float
    answer: httpx.Response | httpx.TransportError

    @property
    def status(self) -> int:
        """0 without an answer."""
        return self.answer.status_code if isinstance(self.answer, httpx.Response) else 0


@dataclass
class Load:
    began: float
    asked: list[Future[Answered]] = field(default_factory=list)

    def answers(self, timeout_s: float = 30.0) -> list[Answered]:
        """Of all that was asked so far, when they are in."""
        return [one.result(timeout_s) for one in list(self.asked)]


@contextmanager
def steady(ask: Callable[[int], httpx.Response], rate: float = 5.0) -> Iterator[Load]:
    """Call `ask` with 0, 1, … so many times a second, as long as the block lasts."""
    load = Load(time.monotonic())
    over = threading.Event()

    def one(number: int) -> Answered:
        began = time.monotonic()
        answer: httpx.Response | httpx.TransportError
        try:
            answer = ask(number)
        except httpx.TransportError as error:
            answer = error
        return Answered(began - load.began, time.monotonic() - began, answer)

    def drive() -> None:
        number = 0
        while not over.wait(max(0.0, load.began + number / rate - time.monotonic())):
            load.asked.append(pool.submit(one, number))
            number += 1

    with ThreadPoolExecutor(AT_ONCE) as pool:
        driver = threading.Thread(target=drive, daemon=True)
        driver.start()
        try:
            yield load
        finally:
            over.set()
            driver.join(5)
