"""Saying what is waited for, when it takes longer than people like to look at nothing."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Self

from fabric.cli import output

QUIET_S = 2.0
TICK_S = 1.0


class Waiting:
    """An `async with` around what may take long; `now` says what is waited for from then on."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._ticker: asyncio.Task[None] | None = None

    def now(self, what: str) -> None:
        self._what = what

    async def __aenter__(self) -> Self:
        self._ticker = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._ticker is not None
        self._ticker.cancel()
        await asyncio.wait([self._ticker])

    async def _tick(self) -> None:
        began = time.monotonic()
        await asyncio.sleep(QUIET_S)
        with output.Progress() as shown:
            while True:
                text = f"waiting for {self._what}"
                shown.show(f"{text}, {time.monotonic() - began:.0f} s" if shown.live else text)
                await asyncio.sleep(TICK_S)
