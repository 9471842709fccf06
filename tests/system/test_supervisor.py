"""The supervisor of driver `process`: adoption, its own death, the lifeline, floods, strangers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.drivers.base import DriverError, Exited, Running
from fabric.drivers.instance import INSTANCES, RECORD
from fabric.drivers.procfs import boot_id, process_stat
from tests.system.driver_world import World, gone, made_world, read_pid, until

pytestmark = pytest.mark.system


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with made_world(tmp_path) as made:
        yield made


# --- an agent that restarts ----------------------------------------------------------------------------------------


def test_a_new_agent_adopts_what_runs_and_hears_what_ended(world: World) -> None:
    async def main() -> None:
        stays = world.script("exec sleep 1000", "stays")
        ends = world.script("while [ ! -e ../finish ]; do sleep 0.01; done; echo done; exit 9", "ends")
        async with world.agent() as driver:
            one = await driver.start(world.launch(stays, "d-1.0", attempt=2))
            two = await driver.start(world.launch(ends, "d-1.1", attempt=5))
        assert world.exits == []
        (Path(two.directory).parent / "finish").touch()
        await until(lambda: gone(two.pid), "the second to end unheard")
        ended = Exited("d-1.1", 5, 9, None, False, "done")
        for _ in range(2):
            driver = world.driver()
            assert sorted(await driver.open(), key=lambda report: report.instance) == [one, ended]
            await driver.close()
        driver = world.driver()
        await driver.open()
        assert await driver.start(world.launch(stays, "d-1.0", attempt=2)) == one
        await driver.stop("d-1.0", 5.0)
        assert gone(one.pid)
        await driver.remove("d-1.0")
        await driver.remove("d-1.1")
        await driver.close()
        async with world.agent():
            pass  # nothing is reported any more

    asyncio.run(main())


def test_one_agent_and_one_supervisor_a_state_directory(world: World) -> None:
    async def main() -> None:
        async with world.agent() as driver:
            with pytest.raises(DriverError, match=f"another agent, pid {os.getpid()}, uses the state directory"):
                await world.driver().open()
            await driver.start(world.launch(world.script("exec sleep 1000")))
            code = "from fabric.drivers.detach import main; main()"
            second = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", code, str(world.state), "-", "1000", "1"],
                capture_output=True,
                text=True,
                timeout=20,
            )
            assert second.returncode == 1
            assert f"another supervisor, pid {world.supervisor}, holds" in second.stderr
            await driver.stop("d-1.0", 1.0)

    asyncio.run(main())


def test_a_supervisor_with_nothing_to_do_leaves(world: World) -> None:
    async def main() -> None:
        async with world.agent(linger_s=0.1, lifeline_fd=None) as driver:
            await driver.start(world.launch(world.script("true")))
            await world.next_exit()
            first = world.supervisor
        await until(lambda: gone(first), "the supervisor to leave")
        driver = world.driver(linger_s=0.1)
        [ended] = await driver.open()
        assert (ended.instance, world.supervisor != first) == ("d-1.0", True)
        await driver.close()

    asyncio.run(main())


def test_without_its_state_directory_it_ends_what_nobody_could_adopt(world: World) -> None:
    async def main() -> None:
        async with world.agent(lifeline_fd=None) as driver:
            running = await driver.start(world.launch(world.script("exec sleep 1000")))
            supervisor = world.supervisor
        shutil.rmtree(world.state)
        await until(lambda: gone(running.pid) and gone(supervisor), "both to end")

    asyncio.run(main())


# --- a supervisor that dies ----------------------------------------------------------------------------------------


ESCAPES = "sleep 1000 & echo $! >group; setsid sleep 1000 & echo $! >escaped; exec sleep 1000"


@pytest.mark.parametrize("agent_listens", [True, False])
def test_a_killed_supervisor_takes_its_instances_along_and_they_are_lost(world: World, agent_listens: bool) -> None:
    async def main() -> None:
        entry = world.script(ESCAPES)
        async with world.agent() as driver:
            running = [await driver.start(world.launch(entry, f"d-1.{ordinal}", attempt=3)) for ordinal in range(3)]
            pids = [one.pid for one in running]
            for one in running:
                pids += [await asyncio.to_thread(read_pid, Path(one.directory, name)) for name in ("group", "escaped")]
            if agent_listens:
                os.kill(world.supervisor, signal.SIGKILL)
                await until(lambda: len(world.exits) == 3, "three reports")
                lost: list[Running | Exited] = list(world.exits)
        if not agent_listens:
            os.kill(world.supervisor, signal.SIGKILL)
            await until(lambda: all(gone(one.pid) for one in running), "the main processes to die with it")
            driver = world.driver()
            lost = await driver.open()
            await driver.close()
        assert sorted(lost, key=lambda e: e.instance) == [Exited(o.instance, 3, None, None, True, "") for o in running]
        assert all(gone(pid) for pid in pids), "and what they left behind is killed before that is said"

    asyncio.run(main())


def test_commands_go_on_after_the_supervisor_was_killed(world: World) -> None:
    async def main() -> None:
        entry = world.script("exec sleep 1000")
        async with world.agent() as driver:
            await driver.start(world.launch(entry, "d-1.0"))
            os.kill(world.supervisor, signal.SIGKILL)
            running = await driver.start(world.launch(entry, "d-1.1"))
            assert not gone(running.pid)
            await until(lambda: world.exits, "the loss")
            assert [(e.instance, e.lost) for e in world.exits] == [("d-1.0", True)]
            assert (await driver.start(world.launch(entry, "d-1.0", attempt=1))).attempt == 1

    asyncio.run(main())


def test_a_supervisor_told_to_end_ends_its_instances_in_order(world: World) -> None:
    async def main() -> None:
        entry = world.script("trap 'exit 4' TERM; echo ready; while :; do sleep 0.01; done")
        async with world.agent() as driver:
            await driver.start(world.launch(entry))
            await until(lambda: driver.log("d-1.0", 10), "it to be ready")
            before = world.supervisor
            os.kill(before, signal.SIGTERM)
            assert (await world.next_exit()).code == 4
            await until(lambda: gone(before), "the supervisor to leave")
            assert (await driver.start(world.launch(entry, attempt=1))).attempt == 1

    asyncio.run(main())


def test_leftovers_are_judged_by_start_time_and_boot_never_by_pid_alone(world: World) -> None:
    sleepers = [subprocess.Popen(["sleep", "1000"]) for _ in range(3)]

    async def main() -> None:
        for ordinal, (sleeper, ticks, boot) in enumerate(
            zip(sleepers, (0, 1, 0), (boot_id(), boot_id(), "another boot"), strict=True)
        ):
            home = world.state / INSTANCES / f"d-1.{ordinal}"
            home.mkdir(parents=True)
            start = process_stat(sleeper.pid)[2] + ticks
            record = {"attempt": 1, "pid": sleeper.pid, "start_time": start, "boot_id": boot, "ended": False}
            (home / RECORD).write_text(json.dumps(record))
        driver = world.driver()
        assert all(isinstance(report, Exited) and report.lost for report in await driver.open())
        await driver.close()
        await until(lambda: sleepers[0].poll() is not None, "the one that is really ours to be killed")
        assert [sleeper.poll() for sleeper in sleepers] == [-signal.SIGKILL, None, None]

    try:
        asyncio.run(main())
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()


def test_the_end_of_the_lifeline_is_the_end_of_everything(world: World) -> None:
    async def main() -> None:
        entry = world.script("trap '' TERM\n" + ESCAPES)
        async with world.agent() as driver:
            running = [await driver.start(world.launch(entry, f"d-1.{ordinal}")) for ordinal in range(10)]
            pids = [one.pid for one in running] + [world.supervisor]
            for one in running:
                pids += [await asyncio.to_thread(read_pid, Path(one.directory, name)) for name in ("group", "escaped")]
        world.cut_lifeline()
        await until(lambda: all(gone(pid) for pid in pids), "every process to end", 3.0)

    asyncio.run(main())


# --- floods and strangers ------------------------------------------------------------------------------------------


def size_of(log: Path) -> int:
    """0 in the moment of its rotation, in which it has its new name already and the next is not there."""
    try:
        return log.stat().st_size
    except FileNotFoundError:
        return 0


def test_a_flood_of_output_stays_bounded_and_starves_nobody(world: World) -> None:
    async def main() -> None:
        flood, quiet = world.script("exec yes flood", "flood"), world.script("echo here; exec sleep 1000", "quiet")
        async with world.agent(log_bytes=200_000) as driver:
            for ordinal in range(3):
                await driver.start(world.launch(flood, f"d-1.{ordinal}"))
            await until((world.state / INSTANCES / "d-1.0" / "log.old").exists, "the log to rotate")
            before = time.monotonic()
            for ordinal in range(10):
                name = f"d-2.{ordinal}"
                await driver.start(world.launch(quiet, name))
                await until(lambda name=name: driver.log(name, 10) == b"here\n", f"{name} to be heard")  # type: ignore[misc]
            assert time.monotonic() - before < 3.0
            for ordinal in range(3):
                home = world.state / INSTANCES / f"d-1.{ordinal}"
                assert 0 < sum(size_of(home / file) for file in ("log", "log.old")) <= 200_000
                assert set(driver.log(f"d-1.{ordinal}", 50_000).split()[1:-1]) == {b"flood"}
            await driver.stop("d-1.0", 5.0)
            assert world.exits[0].log_tail.splitlines()[-1].startswith("flo")

    asyncio.run(main())


def test_a_stranger_at_the_socket_changes_nothing(world: World) -> None:
    async def main() -> None:
        async with world.agent() as driver:
            running = await driver.start(world.launch(world.script("exec sleep 1000")))
            supervisor = world.supervisor
            for noise in (b"\xff\xfe\n", b'{"op": "start"}\n', b"[]\n", b'{"op": "x", "id": 1}\n', b"x" * 600_000):
                handle = os.open(world.state, os.O_PATH)
                with socket.socket(socket.AF_UNIX) as stranger:
                    stranger.connect(f"/proc/self/fd/{handle}/supervisor.sock")
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        stranger.sendall(noise)
                        stranger.settimeout(10)
                        assert await asyncio.to_thread(stranger.recv, 10) == b""
                os.close(handle)
            # The newest connection was the stranger's: the driver connects again, and the instance never noticed.
            assert await driver.start(world.launch(world.script("exec sleep 1000"))) == running
            assert (world.supervisor, world.exits) == (supervisor, [])
            await driver.stop("d-1.0", 5.0)
            assert [exited.signal for exited in world.exits] == [signal.SIGTERM]

    asyncio.run(main())


def test_the_supervisor_stays_small(world: World) -> None:
    """One beside each agent: it must not load what the agent needs (asyncio alone doubles its start and its memory)."""

    async def main() -> None:
        async with world.agent() as driver:
            await driver.start(world.launch(world.script("true")))
            process = world.root / f"/proc/{world.supervisor}"
            assert int((process / "status").read_text().partition("VmRSS:")[2].split()[0]) < 14 * 1024
            maps = (process / "maps").read_text()
            assert "_asyncio" not in maps
            assert "site-packages" not in maps

    asyncio.run(main())
