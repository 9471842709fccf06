"""Programs as processes: started, signalled, told over BMP, watched, adopted after a restart of the boot stub."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy import bmp
from deploy.messages import AdoptCall
from deploy.stub.bmp_server import BmpServer
from deploy.stub.limits import StubSettings
from deploy.stub.processes import Watch
from fabric.drivers.procfs import process_stat
from tests.unit.deploy.stub.place import Place, place
from tests.unit.deploy.stub.test_install import gone
from tests.unit.runtime.until import until

SLEEPER = "exec sleep 1000"

COUNTER = f"""#!{sys.executable} -IS
# Counts aloud, a line a tick, and never loses one: deactivated, it stops between two of them.
import sys, time
sys.path.insert(0, {str(Path(bmp.__file__).parent)!r})
from bmp import Link
link, count = Link(), 0
while link.checkpoint():
    count += 1
    print(count, flush=True)
    time.sleep(0.002)
"""


def health(here: Place, path: str = "/site/a") -> tuple[str, str]:
    assert here.host is not None
    assert here.host.machine is not None
    one = here.host.machine.managents[path]
    return one.life, one.health


def test_signals_stop_the_whole_group_and_let_it_go_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            here.repository.put(here.repository.script("managent", "sleep 1000 &\necho $! > child\nwait"))
            await here.command("deploy")
            pid = here.pid()
            await until(lambda: (here.work() / "child").exists() and (here.work() / "child").read_text().strip())
            child = int((here.work() / "child").read_text())
            answer = await here.command("deactivate")
            assert (answer.outcome, answer.life) == ("done", "passive")
            assert [process_stat(one)[0] for one in (pid, child)] == ["T", "T"]
            assert (await here.command("activate")).life == "active"
            await until(lambda: [process_stat(one)[0] for one in (pid, child)] == ["S", "S"])
            await here.command("deactivate")
            assert (await here.command("shutdown")).outcome == "done", "TERM reaches one that stands still"
            assert gone(pid)
            await until(lambda: gone(child))

    asyncio.run(scenario())


def test_a_program_that_ignores_term_is_killed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            here.repository.put(
                here.repository.script("managent", "trap '' TERM\necho up\nwhile :; do sleep 0.05; done"), stop_s=0.2
            )
            await here.command("deploy")
            pid = here.pid()
            await until(lambda: "up" in here.output())
            assert (await here.command("shutdown")).life == "configured"
            assert gone(pid)

    asyncio.run(scenario())


def test_bmp_deactivates_and_activates_without_losing_a_tick(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            here.repository.put(here.repository.file("managent", COUNTER), control="bmp")
            answer = await here.command("deploy")
            assert (answer.outcome, answer.reason) == ("done", "")
            for _ in range(5):
                await ticks_on(here)
                assert (await here.command("deactivate")).life == "passive"
                still = ticks(here)
                for _ in range(3):  # takes as long as several ticks
                    assert (await here.command("start")).outcome == "refused"
                assert ticks(here) == still, "acknowledged, so nothing is done any more"
                assert (await here.command("activate")).life == "active"
            await here.command("deactivate")
            assert_contiguous(ticks(here))

    asyncio.run(scenario())


def assert_contiguous(ticks: list[int]) -> None:
    assert ticks == list(range(1, len(ticks) + 1))


async def ticks_on(here: Place) -> None:
    seen = len(ticks(here))
    await until(lambda: len(ticks(here)) > seen + 3, what="it works")


def ticks(here: Place) -> list[int]:
    return [int(line) for line in here.output().splitlines()]


def test_bmp_survives_a_restart_of_the_boot_stub(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            here.repository.put(here.repository.file("managent", COUNTER), control="bmp")
            await here.command("deploy")
            pid = here.pid()
            await here.crash()
            await ticks_on(here)
            await here.start()
            assert (await here.command("deactivate")).life == "passive"
            assert here.pid() == pid
            still = ticks(here)
            await here.crash()
            await here.start()
            assert (await here.command("activate")).life == "active"
            await until(lambda: len(ticks(here)) > len(still))
            assert_contiguous(ticks(here))

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("echo mute; exec sleep 1000", "its program did not say hello over BMP within 0.3 s"),
        ("echo bye; exit 7", "its program ended: exit status 7"),
    ],
)
def test_a_program_with_control_bmp_that_does_not_speak_it(tmp_path: Path, program: str, reason: str) -> None:
    async def scenario() -> None:
        async with place(tmp_path, settings=StubSettings(hello_s=0.3)) as here:
            here.repository.put(here.repository.script("managent", program), control="bmp")
            answer = await here.command("deploy")
            assert (answer.outcome, answer.life) == ("failed", "configured")
            assert reason in answer.reason
            assert answer.tail in (("mute",), ("bye",))

    asyncio.run(scenario())


def test_strangers_are_refused_at_the_socket_of_bmp(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            here.repository.put(here.repository.file("managent", COUNTER), control="bmp")
            await here.command("deploy")
            path = str(here.folder / "bmp.sock")
            for said, reason in (
                (
                    json.dumps({"hello": "/site/a", "pid": here.pid()}),
                    f"process {os.getpid()} is none of managent /site/a",
                ),
                (json.dumps({"hello": "/site/b"}), "no program of a managent '/site/b' is expected here"),
                ("[1]", "expected JSON objects, one a line"),
                ("x" * 200_000, "expected lines of at most"),
            ):
                assert reason in await asyncio.to_thread(say, path, said)
            assert (await here.command("deactivate")).outcome == "done"

    asyncio.run(scenario())


def say(path: str, line: str) -> str:
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(10)
        link.connect(path)
        with contextlib.suppress(OSError):
            link.sendall(line.encode() + b"\n")
        return link.recv(4096).decode()


def test_a_program_that_ends_by_itself_is_told_with_its_last_line_and_can_be_started_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            here.repository.put(
                here.repository.script("managent", "sleep 1000 &\necho $! > child; echo out of work; exit 9")
            )
            assert (await here.command("deploy")).outcome == "done"
            beat = await until(
                lambda: next((one for b in here.beats for one in b.managents if one.health == "crashed"), None)
            )
            assert beat.reason == "its program ended: exit status 9: out of work"
            child = int((here.work() / "child").read_text())
            await until(lambda: gone(child), what="what it left is killed")
            here.repository.put(here.repository.script("x", "true"), start="sleep 1000")
            assert (await here.command("configure-managent")).outcome == "done"
            assert (await here.command("start")).life == "active"

    asyncio.run(scenario())


def test_programs_outlive_their_boot_stub_and_are_adopted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            here.repository.put(here.repository.script("managent", SLEEPER))
            for name in "abc":
                await here.command("deploy", f"/site/{name}")
            pids = {name: here.pid(f"/site/{name}") for name in "abc"}
            await here.command("deactivate", "/site/c")
            await here.crash()
            os.kill(pids["b"], signal.SIGKILL)
            await until(lambda: process_stat(pids["b"])[0] in ("", "Z"))
            here.heard.clear()
            await here.start()
            await until(lambda: health(here, "/site/b") == ("configured", "crashed"))
            await until(lambda: health(here, "/site/a") == ("active", "ok"))
            assert {name: here.pid(f"/site/{name}") for name in "ac"} == {name: pids[name] for name in "ac"}
            await until(lambda: here.beats and len(here.beats[-1].managents) == 3)
            lives = {one.path: one.life for one in here.beats[-1].managents}
            assert lives == {"/site/a": "active", "/site/b": "configured", "/site/c": "passive"}
            os.kill(pids["a"], signal.SIGKILL)
            await until(lambda: health(here, "/site/a") == ("configured", "crashed"), what="the end of an adopted one")
            assert (await here.command("activate", "/site/c")).outcome == "done"
            assert (await here.command("restart", "/site/c")).outcome == "done"
            await until(lambda: gone(pids["c"]))
            assert here.pid("/site/c") not in (0, pids["c"])

    asyncio.run(scenario())


def no_watch(pid: int, ended: Callable[[], None]) -> Watch:
    raise OSError(errno.EMFILE, "Too many open files")


async def no_socket(self: BmpServer) -> str:
    raise OSError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize(
    ("at", "instead", "reason"),
    [
        ("deploy.stub.programs.Watch", no_watch, "can't be watched, and was killed: [Errno 24] Too many open files"),
        ("deploy.stub.bmp_server.BmpServer.listening", no_socket, "BMP's socket: [Errno 13] Permission denied"),
    ],
)
def test_a_program_that_can_not_be_adopted_is_ended_so_that_it_never_runs_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, instead: object, reason: str
) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            here.repository.put(here.repository.file("managent", COUNTER), control="bmp")
            await here.command("deploy")
            pid = here.pid()
            await here.crash()
            with monkeypatch.context() as broken:
                broken.setattr(at, instead)
                await here.start()
                await until(lambda: health(here) == ("configured", "crashed"))
            assert here.host is not None
            assert here.host.machine is not None
            assert reason in here.host.machine.managents["/site/a"].reason
            await until(lambda: process_stat(pid)[0] in ("", "Z"), what="the end of what nobody looks after")
            assert (await here.command("start")).outcome == "done"

    asyncio.run(scenario())


def test_a_program_that_can_not_be_watched_is_ended_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            here.repository.put(here.repository.script("managent", SLEEPER))
            with monkeypatch.context() as broken:
                broken.setattr("deploy.stub.programs.Watch", no_watch)
                answer = await here.command("deploy")
            assert (answer.outcome, answer.life) == ("failed", "configured")
            found = re.search(r"process (\d+) can't be watched: \[Errno 24\] Too many open files", answer.reason)
            assert found, answer.reason
            pid = int(found[1])
            await until(lambda: process_stat(pid)[0] == "")  # it is waited for, too
            assert (await here.command("start")).outcome == "done"
            assert (await here.command("shutdown")).outcome == "done"

    asyncio.run(scenario())


def test_what_was_begun_and_not_acknowledged_is_swept_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            here.repository.put(here.repository.script("i.sh", "setsid sleep 1000 & echo $! > child; sleep 1000"))
            task = asyncio.create_task(here.command("deploy"))
            await until(lambda: (here.work() / "child").exists() and (here.work() / "child").read_text().strip())
            child = int((here.work() / "child").read_text())
            task.cancel()
            await here.crash()
            await here.start()
            assert list((here.folder / "managents").iterdir()) == []
            await until(lambda: gone(child))
            here.repository.put(here.repository.script("managent", SLEEPER))
            assert (await here.command("deploy")).outcome == "done"

    asyncio.run(scenario())


def test_logs_are_bounded_while_programs_write(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = StubSettings(log_bytes=20_000, log_look_s=0.02)
        async with place(tmp_path, settings=settings) as here:
            here.repository.put(here.repository.script("managent", "while :; do seq 1 500; sleep 0.01; done"))
            await here.command("deploy")
            old = here.folder / "logs" / "site+a.old"
            await until(old.exists)
            assert old.stat().st_size <= 10_000

    asyncio.run(scenario())


def test_an_end_with_the_managents_taken_along(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path, started=False) as here:
            await here.start(stop_managents=True)
            here.repository.put(here.repository.script("managent", SLEEPER))
            await here.command("deploy")
            pid = here.pid()
            assert await here.stop() == 0
            assert gone(pid)

    asyncio.run(scenario())


def test_two_boot_stubs_never_share_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            first = here.host
            other = Place(tmp_path, here.shared, {})
            try:
                with pytest.raises(asyncio.CancelledError):
                    await other.start()
            finally:
                other.bus.close()
            assert first is here.host

    asyncio.run(scenario())
    assert "has it open" in caplog.text


def test_a_new_initiator_adopts_over_the_wire(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            here.repository.put(here.repository.script("managent", SLEEPER))
            await here.command("deploy")
            here.bus.send(here.ref.address, AdoptCall("a", here.parent, 9, ("/site/a",)))
            await until(
                lambda: any(beat.whole and beat.managents[0].epoch == 9 for beat in here.beats if beat.managents)
            )
            assert (await here.command("shutdown", epoch=8)).outcome == "stale"

    asyncio.run(scenario())
