"""Driver `process` with real processes: what an instance gets, how it ends, and why it may not start."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.drivers.base import DriverError, Exited, Launch, Limits, StartFailed
from fabric.drivers.instance import INSTANCES
from fabric.drivers.procfs import process_stat
from tests.system.driver_world import LIMITS, World, gone, made_world, read_pid, until

pytestmark = pytest.mark.system

ANSWER = """
import os, socket
server = socket.socket(socket.AF_UNIX)
server.bind("new")
server.listen()
os.rename("new", "sock")
while True:
    connection, _ = server.accept()
    connection.sendall(os.environ["FABRIC_INSTANCE"].encode())
    connection.close()
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with made_world(tmp_path) as made:
        yield made


def ask(directory: str) -> str:
    """What the instance in `directory` says it is. Its socket's path may be too long to be an address."""
    handle = os.open(directory, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(f"/proc/self/fd/{handle}/sock")
            return end.recv(200).decode()
    finally:
        os.close(handle)


# --- running -------------------------------------------------------------------------------------------------------


def test_twenty_instances_answer_with_their_own_identity(world: World) -> None:
    async def main() -> None:
        entry = world.python(ANSWER)
        async with world.agent() as driver:
            names = [f"d-7f3k2m.{ordinal}" for ordinal in range(20)]
            running = await asyncio.gather(*(driver.start(world.launch(entry, name)) for name in names))
            assert len({one.pid for one in running} | {world.supervisor}) == 21
            for one in running:
                await until(Path(one.directory, "sock").exists, f"the socket of {one.instance}")
                assert ask(one.directory) == one.instance
                assert Path(one.directory).parent.stat().st_mode & 0o777 == 0o700
                assert abs(one.started_at - time.time()) < 10
            await asyncio.gather(*(driver.stop(name, 5.0) for name in names))
            assert all(gone(one.pid) for one in running)
            assert sorted(exit.instance for exit in world.exits) == sorted(names)

    asyncio.run(main())


def test_an_instance_gets_what_it_should_and_nothing_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_AGENT", "x")
    show = """
import json, os, resource, signal
print(json.dumps({
    "env": dict(os.environ), "cwd": os.getcwd(), "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1],
    "stdin": os.readlink("/proc/self/fd/0"), "session": os.getsid(0) == os.getpid(),
    "limits": [resource.getrlimit(which)[0] for which in
        (resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)],
    "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
    "hup": signal.getsignal(signal.SIGHUP) == signal.SIG_DFL}))
"""

    async def main() -> None:
        launch = world.launch(world.python(show))
        async with world.agent(log_bytes=65536) as driver:
            running = await driver.start(launch)
            assert (await world.next_exit()).code == 0
            seen = json.loads(driver.log("d-1.0", 100_000))
            home = Path(running.directory)
            environment = seen["env"]
            environment.pop("LC_CTYPE", None)  # the instance's own interpreter sets it
            assert environment == {
                "FABRIC_INSTANCE": "d-1.0",
                "FABRIC_INSTANCE_DIR": str(home),
                "FABRIC_IMAGE_ROOT": str(world.root),
                "HOME": str(home),
                "TMPDIR": str(home.parent / "tmp"),
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            }
            assert (seen["cwd"], seen["fds"], seen["stdin"]) == (str(home), [0, 1, 2], "/dev/null")
            assert seen["limits"] == [512 << 20, 64 << 20, 64, 0]
            assert seen["session"]
            assert seen["hup"]
            assert seen["blocked"] == []

    asyncio.run(main())


def test_the_memory_limit_holds(world: World) -> None:
    async def main() -> None:
        entry = world.python("print('started', flush=True)\nbytearray(300 << 20)\nprint('had it')")
        async with world.agent() as driver:
            await driver.start(world.launch(entry, limits=Limits(memory_mib=200, disk_mib=1)))
            exited = await world.next_exit()
            assert exited.code == 1
            assert exited.log_tail.startswith("started")
            assert exited.log_tail.endswith("MemoryError")
            await driver.start(world.launch(entry, attempt=1, limits=Limits(memory_mib=600, disk_mib=1)))
            assert (await world.next_exit()).log_tail == "started\nhad it"

    asyncio.run(main())


def test_start_is_idempotent_and_an_attempt_runs_at_most_once(world: World) -> None:
    async def main() -> None:
        entry = world.script("echo x >>count; exec sleep 1000")
        async with world.agent() as driver:
            first, again = await asyncio.gather(
                driver.start(world.launch(entry, attempt=4)), driver.start(world.launch(entry, attempt=4))
            )
            older = await driver.start(world.launch(entry, attempt=3))
            assert first == again == older
            with pytest.raises(StartFailed, match=f"attempt 4 has not ended.*{first.pid}") as failed:
                await driver.start(world.launch(entry, attempt=5))
            assert failed.value.blame == "node"
            with pytest.raises(DriverError, match="stop it first"):
                await driver.remove("d-1.0")
            count = Path(first.directory, "count")
            await until(lambda: count.exists() and count.read_text() == "x\n", "the first run")
            await driver.stop("d-1.0", 5.0)
            ended = await world.next_exit()
            assert (await driver.start(world.launch(entry, attempt=4))).pid == first.pid
            assert await world.next_exit() == ended, "what has ended is reported again, not started again"
            newer = await driver.start(world.launch(entry, attempt=5))
            assert newer.pid != first.pid
            await until(lambda: count.read_text() == "x\nx\n", "two runs in one directory")
            await driver.stop("d-1.0", 5.0)

    asyncio.run(main())


# --- ending --------------------------------------------------------------------------------------------------------


def test_exits_are_told_with_code_signal_and_last_words(world: World) -> None:
    async def main() -> None:
        entry = world.script("seq 1 30; echo last words >&2; exit 7")
        suicide = world.script("kill -SEGV $$", "suicide")
        async with world.agent() as driver:
            await driver.start(world.launch(entry, attempt=1))
            tail = "\n".join([*map(str, range(22, 31)), "last words"])
            assert await world.next_exit() == Exited("d-1.0", 1, 7, None, False, tail)
            assert driver.log("d-1.0", 14) == b"30\nlast words\n"
            await driver.start(world.launch(suicide, "d-1.1"))
            assert await world.next_exit() == Exited("d-1.1", 0, None, signal.SIGSEGV, False, "")

    asyncio.run(main())


def test_stop_is_term_then_kill(world: World) -> None:
    async def main() -> None:
        polite = world.script("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.01; done", "polite")
        deaf = world.script("trap '' TERM; echo ready; while :; do sleep 0.01; done", "deaf")
        async with world.agent() as driver:
            for name, entry in (("d-1.0", polite), ("d-1.1", deaf), ("d-1.2", deaf)):
                await driver.start(world.launch(entry, name))
                await until(lambda name=name: driver.log(name, 100) == b"ready\n", f"{name} to be ready")  # type: ignore[misc]
            await driver.stop("d-1.0", 5.0)
            exited = world.exits.pop()
            assert (exited.code, exited.log_tail.splitlines()[-1]) == (3, "bye")
            before = time.monotonic()
            await driver.stop("d-1.1", 0.3)
            assert 0.3 <= time.monotonic() - before < 2.0
            assert world.exits.pop() == Exited("d-1.1", 0, None, signal.SIGKILL, False, "ready")
            slow = asyncio.create_task(driver.stop("d-1.2", 60.0))
            await driver.stop("d-1.2", 0.0)
            await slow
            assert len(world.exits) == 1
            await driver.stop("d-1.2", 1.0)
            await driver.stop("d-9.9", 1.0)
            assert len(world.exits) == 1, "stopping what does not run is fine, and tells nothing"

    asyncio.run(main())


def test_a_suspended_instance_can_be_stopped(world: World) -> None:
    async def main() -> None:
        async with world.agent() as driver:
            running = await driver.start(world.launch(world.script("exec sleep 100")))
            os.kill(running.pid, signal.SIGSTOP)
            await until(lambda: process_stat(running.pid)[0] == "T", "it to be suspended")
            await driver.stop("d-1.0", 60.0)
            assert world.exits[0].signal == signal.SIGTERM

    asyncio.run(main())


def test_descendants_end_with_their_instance_those_that_escaped_too(world: World) -> None:
    async def main() -> None:
        entry = world.script(
            "env -i sleep 1000 & echo $! >group\n"
            "setsid sh -c 'echo $$ >escaped; sleep 1000 & echo $! >child; wait' &\n"
            "env -i setsid sh -c 'echo $$ >wiped; exec sleep 1000' &\n"
            "while [ ! -e finish ]; do sleep 0.01; done"
        )
        keeper = world.script("exec sleep 1000", "keeper")
        async with world.agent() as driver:
            await driver.start(world.launch(keeper, "d-1.1"))
            wiped = []
            for attempt, by_itself in enumerate((False, True) * 5):
                work = Path((await driver.start(world.launch(entry, attempt=attempt))).directory)
                names = ("group", "escaped", "child", "wiped")
                pids = {name: await asyncio.to_thread(read_pid, work / name) for name in names}
                if by_itself:
                    (work / "finish").touch()
                    await world.next_exit()
                else:
                    await driver.stop("d-1.0", 5.0)
                    world.exits.clear()
                for name in ("group", "escaped", "child"):
                    assert gone(pids[name]), f"{name} outlived its instance"
                for name in names:
                    (work / name).unlink()
                (work / "finish").unlink(missing_ok=True)
                wiped.append(pids["wiped"])
            await driver.stop("d-1.1", 5.0)
            await until(lambda: all(map(gone, wiped)), "the processes without a mark to end with the last instance")

    asyncio.run(main())


def test_remove_forgets(world: World) -> None:
    async def main() -> None:
        async with world.agent() as driver:
            entry = world.script("mkdir deep; echo x >deep/file; echo out")
            running = await driver.start(world.launch(entry, attempt=3))
            await world.next_exit()
            for _ in range(2):
                await driver.remove("d-1.0")
            assert driver.log("d-1.0", 100) == b""
            assert os.listdir(world.state / INSTANCES) == []
            again = await driver.start(world.launch(entry, attempt=0))
            assert (again.attempt, again.pid != running.pid) == (0, True)
            assert (await world.next_exit()).attempt == 0

    asyncio.run(main())


# --- failing to start ----------------------------------------------------------------------------------------------


def test_what_cannot_execute_is_the_images_fault_and_leaves_nothing(world: World) -> None:
    async def main() -> None:
        (world.root / "directory").mkdir()
        (world.root / "noise").write_bytes(b"\1\2\3\4")
        (world.root / "noise").chmod(0o755)
        cases = {
            world.root / "missing": "no such file in the image",
            world.script("#!/no/such/interpreter -x\n", "orphan"): "needs '/no/such/interpreter -x'",
            world.script("true", "plain", mode=0o644): r"not executable \(mode 644\)",
            world.root / "directory": "a directory",
            world.root / "noise": "neither a program for this machine nor a script",
        }
        async with world.agent() as driver:
            for entry, reason in cases.items():
                with pytest.raises(StartFailed, match=reason) as failed:
                    await driver.start(world.launch(entry))
                assert failed.value.blame == "image"
            huge = Launch("d-1.0", 0, world.script("true"), world.root, {"A": "x" * 200_000}, LIMITS)
            with pytest.raises(StartFailed, match="environment is larger") as failed:
                await driver.start(huge)
            assert failed.value.blame == "image"
            vast = Launch("d-1.0", 0, world.script("true"), world.root, {"A": "x" * 600_000}, LIMITS)
            with pytest.raises(StartFailed, match="environment is too large") as failed:
                await driver.start(vast)
            assert os.listdir(world.state / INSTANCES) == []
            await driver.start(world.launch(world.script("exit 5"), attempt=2))
            assert (await world.next_exit()).code == 5
            with pytest.raises(StartFailed):
                await driver.start(world.launch(world.root / "missing", attempt=3))
        [remembered] = await (last := world.driver()).open()
        await last.close()
        assert (remembered.attempt, isinstance(remembered, Exited)) == (2, True), "the attempt before stands again"

    asyncio.run(main())


def test_what_the_node_lacks_is_the_nodes_fault(world: World) -> None:
    async def main() -> None:
        entry = world.script("true")
        async with world.agent() as driver:
            (world.state / INSTANCES / "d-1.0").write_text("in the way")
            with pytest.raises(StartFailed, match="File exists") as failed:
                await driver.start(world.launch(entry))
            assert failed.value.blame == "node"
            elsewhere = Launch("d-1.1", 0, world.root / "x" / "run", world.root / "x", {}, LIMITS)
            with pytest.raises(StartFailed, match=r"unpacked image .* is not there") as failed:
                await driver.start(elsewhere)
            assert failed.value.blame == "node"
            (world.state / INSTANCES / "d-1.0").unlink()

    asyncio.run(main())


def test_a_state_directory_that_cannot_be_used(world: World) -> None:
    async def main() -> None:
        world.state.write_text("a file")
        with pytest.raises(DriverError, match=r"cannot use .* as state directory"):
            await world.driver().open()
        world.state.unlink()

    asyncio.run(main())
