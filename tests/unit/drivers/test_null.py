"""The driver that starts nothing keeps the rules of those that do."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fabric.drivers.base import DriverError, Exited, Launch, Limits, Running, StartFailed
from fabric.drivers.null import NullDriver


def launch(attempt: int = 0) -> Launch:
    return Launch("d-1.0", attempt, Path("/no/such/entry"), Path("/no/such"), {}, Limits(1, 1))


def test_it_runs_at_once_and_is_not_real() -> None:
    async def main() -> None:
        driver = NullDriver(print)
        assert await driver.open() == []
        running = await driver.start(launch())
        assert (running.pid, running.directory, driver.real) == (0, "", False)
        assert driver.log("d-1.0", 100) == b""
        await driver.close()

    asyncio.run(main())


def test_repeated_commands_do_nothing_new() -> None:
    async def main() -> None:
        exits: list[Exited] = []
        driver = NullDriver(exits.append)
        first = await driver.start(launch(attempt=1))
        assert await driver.start(launch(attempt=1)) == first
        assert await driver.start(launch(attempt=0)) == first
        with pytest.raises(StartFailed, match="attempt 1 has not ended"):
            await driver.start(launch(attempt=2))
        with pytest.raises(DriverError, match="stop it first"):
            await driver.remove("d-1.0")
        for _ in range(2):
            await driver.stop("d-1.0", 1.0)
        ended = Exited("d-1.0", 1, None, 15, False, "")
        assert exits == [ended]
        assert (await driver.start(launch(attempt=1))).attempt == 1, "an attempt runs at most once"
        assert exits == [ended, ended], "and its end is reported again"
        assert isinstance(await driver.start(launch(attempt=2)), Running)
        await driver.stop("d-1.0", 1.0)
        for _ in range(2):
            await driver.remove("d-1.0")
        assert (await driver.start(launch(attempt=0))).attempt == 0, "removed is forgotten"

    asyncio.run(main())


def test_after_a_restart_of_the_agent_nothing_is_left_to_adopt() -> None:
    async def main() -> None:
        before = NullDriver(print)
        await before.start(launch())
        await before.close()
        assert await NullDriver(print).open() == []

    asyncio.run(main())
