"""The runner: commands to a driver in order, and its news in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fabric.drivers.base import Driver, DriverError, Exited, Launch, OnExit, Running, StartFailed
from fabric.drivers.null import NullDriver
from fabric.effects import (
    Adopted,
    Input,
    InstanceExited,
    InstanceFailed,
    InstanceGone,
    InstanceStarted,
    LogFetched,
    StartInstance,
    StopInstance,
)
from fabric.resources import Resources
from fabric.runtime import instances
from fabric.runtime.instances import Runner
from tests.unit.runtime.until import until

WEB = "d-abc.0"


class Script:
    """A driver whose steps the test decides: each start or stop waits for its future, or raises what it is given."""

    name = "script"
    real = False

    def __init__(self, on_exit: OnExit) -> None:
        self.on_exit = on_exit
        self.calls: list[str] = []
        self.hold: asyncio.Future[None] | None = None
        self.stop_hold: asyncio.Future[None] | None = None
        self.found: list[Running | Exited] = []
        self.start_error: Exception | None = None
        self.stop_errors: list[Exception] = []

    async def open(self) -> list[Running | Exited]:
        return self.found

    async def start(self, launch: Launch) -> Running:
        self.calls.append(f"start {launch.instance} {launch.attempt}")
        if self.hold is not None:
            await self.hold
        if self.start_error is not None:
            raise self.start_error
        return Running(launch.instance, launch.attempt, 7, 1.5, "/d")

    async def stop(self, instance: str, grace_s: float) -> None:
        self.calls.append(f"stop {instance}")
        if self.stop_hold is not None:
            await self.stop_hold
        if self.stop_errors:
            raise self.stop_errors.pop(0)

    async def remove(self, instance: str) -> None:
        self.calls.append(f"remove {instance}")

    def log(self, instance: str, max_bytes: int) -> bytes:
        return b"output"[:max_bytes]

    async def close(self) -> None:
        self.calls.append("close")


def run(make: Callable[[OnExit], Driver], body: Callable[[Runner, list[Input]], Awaitable[None]]) -> None:
    async def main() -> None:
        news: list[Input] = []
        runner = Runner(make, news.append)
        try:
            await body(runner, news)
        finally:
            await runner.close()

    asyncio.run(main())


def script(runner: Runner) -> Script:
    assert isinstance(runner.driver, Script)
    return runner.driver


def start(instance: str = WEB, attempt: int = 1, environment: tuple[tuple[str, str], ...] = ()) -> StartInstance:
    return StartInstance(instance, attempt, "b3:x", environment, Resources(1, 2, 0))


def unpacked(digest: str) -> tuple[Path, Path]:
    return Path("/image"), Path("/image/entrypoint")


def test_start_and_stop_with_a_driver() -> None:
    async def body(runner: Runner, news: list[Input]) -> None:
        assert await runner.adopt() == [Adopted((), ())]
        runner.start(start(), unpacked)
        await until(lambda: news)
        started = news[0]
        assert isinstance(started, InstanceStarted)
        assert (started.instance, started.attempt, started.adopted) == (WEB, 1, False)
        runner.stop(StopInstance(WEB, 1.0))
        await until(lambda: len(news) == 3)
        assert isinstance(news[1], InstanceExited)
        assert news[2] == InstanceGone(WEB)
        runner.stop(StopInstance("d-unknown.3", 1.0))
        await until(lambda: len(news) == 4)
        assert news[3] == InstanceGone("d-unknown.3")

    run(NullDriver, body)


def test_a_start_that_is_repeated_after_the_end_tells_the_exit_after_the_start() -> None:
    async def body(runner: Runner, news: list[Input]) -> None:
        runner.start(start(), unpacked)
        await until(lambda: len(news) == 1)
        await runner.driver.stop(WEB, 0)
        await until(lambda: len(news) == 2)
        runner.start(start(), unpacked)
        await until(lambda: len(news) == 4)
        assert [type(each) for each in news[2:]] == [InstanceStarted, InstanceExited]

    run(NullDriver, body)


def test_what_the_driver_found_is_told_before_adopted() -> None:
    async def body(runner: Runner, news: list[Input]) -> None:
        script(runner).found = [Running("d-a.1", 3, 77, 2.0, "/x"), Exited("d-a.2", 1, 5, None, False, "bye")]
        assert await runner.adopt() == [
            InstanceStarted("d-a.1", 3, 77, 2000, "/x", adopted=True),
            InstanceExited("d-a.2", 1, 5, None, False, "bye"),
            Adopted(("d-a.1",), ("d-a.2",)),
        ]

    run(Script, body)


def test_a_stop_waits_for_the_start_before_it_and_a_repeated_stop_is_one() -> None:
    async def body(runner: Runner, news: list[Input]) -> None:
        driver = script(runner)
        driver.hold = asyncio.get_running_loop().create_future()
        runner.start(start(), unpacked)
        runner.stop(StopInstance(WEB, 1.0))
        runner.stop(StopInstance(WEB, 1.0))
        runner.start(start("d-abc.1"), unpacked)
        await until(lambda: len(driver.calls) == 2)
        assert driver.calls == [f"start {WEB} 1", "start d-abc.1 1"], "others do not wait"
        driver.hold.set_result(None)
        await until(lambda: InstanceGone(WEB) in news)
        assert driver.calls[2:] == [f"stop {WEB}", f"remove {WEB}"]
        kinds = [type(each) for each in news if getattr(each, "instance", "") == WEB]
        assert kinds == [InstanceStarted, InstanceGone]
        runner.stop(StopInstance(WEB, 1.0))
        await until(lambda: news.count(InstanceGone(WEB)) == 2)

    run(Script, body)


def test_the_end_of_a_stop_behind_which_a_start_waits_is_not_told_for_that_of_a_later_one() -> None:
    """Or its share of the node would be given away while it starts once more."""

    async def body(runner: Runner, news: list[Input]) -> None:
        driver = script(runner)
        driver.stop_hold = asyncio.get_running_loop().create_future()
        runner.stop(StopInstance(WEB, 1.0))
        await until(lambda: driver.calls)
        runner.start(start(attempt=2), unpacked)
        runner.stop(StopInstance(WEB, 1.0))
        driver.stop_hold.set_result(None)
        await until(lambda: InstanceGone(WEB) in news)
        assert [type(each) for each in news] == [InstanceStarted, InstanceGone]
        assert driver.calls[-2:] == [f"stop {WEB}", f"remove {WEB}"]

    run(Script, body)


@pytest.mark.parametrize(
    ("error", "blame", "reason"),
    [
        (StartFailed("no such entry point", "image"), "image", "no such entry point"),
        (StartFailed("no processes left", "node"), "node", "no processes left"),
        (ValueError("a NUL in the environment"), "image", "a NUL in the environment"),
        (OSError(28, "No space left on device"), "node", "OSError: [Errno 28] No space left on device"),
    ],
)
def test_a_start_that_fails_is_told_with_whose_fault_it_is(error: Exception, blame: str, reason: str) -> None:
    async def body(runner: Runner, news: list[Input]) -> None:
        script(runner).start_error = error
        runner.start(start(), unpacked)
        await until(lambda: news)
        assert news == [InstanceFailed(WEB, 1, blame, reason)]

    run(Script, body)


def test_an_image_that_is_not_in_the_cache_fails_the_start() -> None:
    def nothing(digest: str) -> tuple[Path, Path]:
        raise StartFailed(f"image {digest} is not in the cache", "node")

    async def body(runner: Runner, news: list[Input]) -> None:
        runner.start(start(), nothing)
        await until(lambda: news)
        assert news == [InstanceFailed(WEB, 1, "node", "image b3:x is not in the cache")]
        assert script(runner).calls == []

    run(Script, body)


def test_an_exit_during_a_start_is_told_after_it() -> None:
    async def body(runner: Runner, news: list[Input]) -> None:
        driver = script(runner)
        driver.hold = asyncio.get_running_loop().create_future()
        runner.start(start(), unpacked)
        await until(lambda: driver.calls)
        driver.on_exit(Exited(WEB, 1, 1, None, False, ""))
        driver.on_exit(Exited("d-abc.1", 1, 1, None, False, ""))
        await until(lambda: news)
        assert [getattr(each, "instance", "") for each in news] == ["d-abc.1"]
        driver.hold.set_result(None)
        await until(lambda: len(news) == 3)
        assert [type(each) for each in news[1:]] == [InstanceStarted, InstanceExited]

    run(Script, body)


def test_a_stop_is_repeated_until_the_instance_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "STOP_PAUSE_S", 0.01)

    async def body(runner: Runner, news: list[Input]) -> None:
        script(runner).stop_errors = [DriverError("still there"), OSError(5, "I/O error")]
        runner.stop(StopInstance(WEB, 1.0))
        await until(lambda: news)
        assert news == [InstanceGone(WEB)]
        assert script(runner).calls == [f"stop {WEB}"] * 3 + [f"remove {WEB}"]

    run(Script, body)


def test_only_so_many_starts_run_at_a_time() -> None:
    async def body(runner: Runner, news: list[Input]) -> None:
        driver = script(runner)
        driver.hold = asyncio.get_running_loop().create_future()
        for ordinal in range(instances.STARTS + 5):
            runner.start(start(f"d-abc.{ordinal}"), unpacked)
        await until(lambda: len(driver.calls) == instances.STARTS)
        await asyncio.sleep(0)
        assert len(driver.calls) == instances.STARTS
        driver.hold.set_result(None)
        await until(lambda: len(news) == instances.STARTS + 5)

    run(Script, body)


def test_the_log_of_an_unknown_instance_is_told_as_unknown() -> None:
    async def body(runner: Runner, news: list[Input]) -> None:
        runner.start(start(), unpacked)
        await until(lambda: news)
        runner.log("t1", WEB, 3)
        runner.log("t2", "d-abc.9", 3)
        assert len(news) == 1
        await until(lambda: len(news) == 3)
        assert news[1:] == [LogFetched("t1", True, b"out"), LogFetched("t2", False, b"")]

    run(Script, body)


def test_closing_ends_what_is_under_way_and_tells_nothing() -> None:
    async def body(runner: Runner, news: list[Input]) -> None:
        driver = script(runner)
        driver.hold = asyncio.get_running_loop().create_future()
        runner.start(start(), unpacked)
        runner.stop(StopInstance(WEB, 1.0))
        await until(lambda: driver.calls)
        await runner.close()
        assert news == []
        assert driver.calls == [f"start {WEB} 1", "close"]

    run(Script, body)
