"""Programs are started by a helper process: what they get, what is told of them, and that none is forgotten."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deploy.stub.launcher import LauncherLost, Program
from deploy.stub.processes import Strays
from deploy.stub.spawning import Spawner
from fabric.drivers.procfs import process_stat
from tests.unit.runtime.until import until

LONG = ("/bin/sleep", "1000")


def program(folder: Path, *argv: str, **env: str) -> Program:
    return Program("/site/a", argv, {"MANAGENT_DIR": str(folder), **env}, folder, folder / "log")


@asynccontextmanager
async def spawner(folder: Path) -> AsyncIterator[Spawner]:
    made = Spawner()
    try:
        yield made
    finally:
        await made.close()
        await Strays().kill(lambda directory: directory.startswith(str(folder)))


def lives(pid: int) -> bool:
    return process_stat(pid)[0] not in ("", "Z")


def of_folder(folder: Path) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            environ = Path(f"/proc/{name}/environ").read_bytes()
        except OSError:
            continue
        if f"MANAGENT_DIR={folder}".encode() in environ.split(b"\0") and lives(int(name)):
            found.append(int(name))
    return found


def helper_of(parent: int) -> int:
    """The pid of the helper that this process has started last."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return max(int(pid) for pid in children if b"spawner.py" in Path(f"/proc/{pid}/cmdline").read_bytes())


def test_a_program_gets_what_it_is_to_have_and_its_end_is_told(tmp_path: Path) -> None:
    script = 'echo "$$ $(ps -o sid= -p $$) $PWD $A $1"; readlink /proc/self/fd/0; trap "" TERM; exit 3'

    async def scenario() -> None:
        async with spawner(tmp_path) as one:
            pid = await one.start(program(tmp_path, "sh", "-c", script, "sh", "x y", PATH="/usr/bin:/bin", A="b=c"))
            await until(lambda: process_stat(pid)[0] == "Z")
            assert await one.ended(pid) == "exit status 3"
            first, second = (tmp_path / "log").read_text().splitlines()
            assert first.split() == [str(pid), str(pid), str(tmp_path), "b=c", "x", "y"]
            assert second == "/dev/null"
            assert process_stat(pid)[0] == ""
            killed = await one.start(program(tmp_path, *LONG))
            os.kill(killed, signal.SIGKILL)
            await until(lambda: process_stat(killed)[0] == "Z")
            assert await one.ended(killed) == "killed by SIGKILL"
            assert await one.ended(killed) == ""

    asyncio.run(scenario())


def test_what_cannot_be_started_is_told_as_execve_says_it(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no program")
    (tmp_path / "plain").write_text("no program")
    (tmp_path / "plain").chmod(0o755)

    async def scenario() -> None:
        async with spawner(tmp_path) as one:
            for argv, error in (
                ((f"{tmp_path}/nothing",), FileNotFoundError),
                (("nothing",), FileNotFoundError),
                ((f"{tmp_path}/data",), PermissionError),
                (("data",), PermissionError),
            ):
                with pytest.raises(error):
                    await one.start(program(tmp_path, *argv, PATH=f"/nowhere:{tmp_path}:/bin"))
            with pytest.raises(OSError, match="Exec format error"):
                await one.start(program(tmp_path, f"{tmp_path}/plain"))
            with pytest.raises(ValueError, match="null byte"):
                await one.start(program(tmp_path, "sleep\0", "1"))
            assert lives(await one.start(program(tmp_path, *LONG)))

    asyncio.run(scenario())


def test_large_and_many_requests_are_answered_each_with_its_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with spawner(tmp_path) as one:
            starts = [one.start(program(tmp_path, "/bin/echo", f"{n}", LARGE="x" * 100_000)) for n in range(20)]
            pids = await asyncio.wait_for(asyncio.gather(*starts), 30)
            assert len(set(pids)) == 20
            await until(lambda: (tmp_path / "log").read_text().split() and all(not lives(pid) for pid in pids))
            assert sorted(map(int, (tmp_path / "log").read_text().split())) == list(range(20))

    asyncio.run(scenario())


def test_a_program_that_nobody_waits_for_any_more_is_killed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with spawner(tmp_path) as one:
            await one.start(program(tmp_path, "/bin/true"))
            os.kill(helper_of(os.getpid()), signal.SIGSTOP)
            start = asyncio.create_task(one.start(program(tmp_path, *LONG)))
            await asyncio.sleep(0)
            start.cancel()
            with pytest.raises(asyncio.CancelledError):
                await start
            os.kill(helper_of(os.getpid()), signal.SIGCONT)
            marker = await one.start(program(tmp_path, *LONG))
            await until(lambda: of_folder(tmp_path) == [marker])

    asyncio.run(scenario())


def test_when_the_helper_ends_programs_run_on_and_another_one_starts_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with spawner(tmp_path) as one:
            first = await one.start(program(tmp_path, *LONG))
            helper = helper_of(os.getpid())
            os.kill(helper, signal.SIGSTOP)
            start = asyncio.create_task(one.start(program(tmp_path, *LONG)))
            await asyncio.sleep(0)
            os.kill(helper, signal.SIGKILL)
            with pytest.raises(LauncherLost):
                await start
            assert await one.ended(first) == ""
            second = await one.start(program(tmp_path, *LONG))
            await until(lambda: sorted(of_folder(tmp_path)) == sorted([first, second]))

    asyncio.run(scenario())


def test_the_helper_ends_with_the_process_that_it_serves_and_programs_do_not(tmp_path: Path) -> None:
    code = f"""
import asyncio, os, signal, sys
from pathlib import Path
from deploy.stub.spawning import Spawner
from tests.unit.deploy.stub.test_spawning import LONG, helper_of, program

async def main():
    pid = await Spawner().start(program(Path({str(tmp_path)!r}), *LONG))
    print(pid, helper_of(os.getpid()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""

    async def scenario() -> None:
        async with spawner(tmp_path):
            ran = await asyncio.to_thread(
                subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, check=False
            )
            assert ran.returncode == -signal.SIGKILL, ran.stderr
            pid, helper = map(int, ran.stdout.split())
            await until(lambda: not lives(helper))
            assert lives(pid)

    asyncio.run(scenario())
