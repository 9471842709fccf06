"""The library for programs and the boot stub's side of BMP, joined: both are the real ones."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deploy.bmp import Link
from deploy.stub import bmp_server
from deploy.stub.bmp_server import BmpServer, NotDone
from tests.unit.runtime.until import until

PATH = "/site/a"


@asynccontextmanager
async def server(folder: Path, active: bool | None = None) -> AsyncIterator[BmpServer]:
    """This process is the program."""
    here = BmpServer(folder)
    await here.listening()
    here.expect(PATH, os.getpid(), active)
    try:
        yield here
    finally:
        here.close()


def link(folder: Path, **functions: object) -> Link:
    return Link(socket_path=str(folder / "bmp.sock"), managent=PATH, **functions)  # type: ignore[arg-type]


def test_functions_are_called_and_what_they_raise_is_the_answer(tmp_path: Path) -> None:
    async def scenario() -> None:
        told: list[str] = []

        def busy() -> None:
            told.append("deactivate")
            if len(told) < 3:
                raise RuntimeError("busy")

        async with server(tmp_path) as here:
            program = link(tmp_path, activate=lambda: told.append("activate"), deactivate=busy).start()
            await here.tell(PATH, "activate", 10)
            with pytest.raises(NotDone, match="RuntimeError: busy") as refused:
                await here.tell(PATH, "deactivate", 10)
            assert not refused.value.silent
            assert program.active
            await here.tell(PATH, "deactivate", 10)
            assert told == ["activate", "deactivate", "deactivate"]
            assert not program.active
            program.close()

    asyncio.run(scenario())


def test_a_program_that_never_comes_to_a_checkpoint_is_silent_and_not_forgotten(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with server(tmp_path) as here:
            program = link(tmp_path)
            assert await asyncio.gather(asyncio.to_thread(program.checkpoint, 10), here.tell(PATH, "activate", 10))
            with pytest.raises(NotDone, match="did not answer over BMP within") as silent:
                await here.tell(PATH, "deactivate", 0.05)
            assert silent.value.silent
            resting = asyncio.ensure_future(asyncio.to_thread(program.checkpoint, 10))
            await until(lambda: not program.active)
            await here.tell(PATH, "deactivate", 10)
            await here.tell(PATH, "activate", 10)
            assert await resting
            program.close()

    asyncio.run(scenario())


def test_what_was_not_acknowledged_when_the_connection_broke_was_not_done(tmp_path: Path) -> None:
    async def scenario() -> None:
        program = link(tmp_path)
        async with server(tmp_path) as here:
            assert all(await asyncio.gather(asyncio.to_thread(program.checkpoint, 10), told(here, "activate")))
            with pytest.raises(NotDone):
                await here.tell(PATH, "deactivate", 0.05)
            assert not program.active
        await until(lambda: program.active, what="it goes on when the connection breaks")
        assert program.checkpoint(0)
        program.close()

    asyncio.run(scenario())


async def told(here: BmpServer, verb: str) -> bool:
    await here.tell(PATH, verb, 10)
    return True


def test_a_program_that_is_not_what_it_should_be_is_told_so_when_it_connects_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        program = link(tmp_path, activate=lambda: None).start()
        async with server(tmp_path) as here:
            await here.tell(PATH, "activate", 10)
            await here.tell(PATH, "deactivate", 10)
        async with server(tmp_path, active=True):
            await until(lambda: program.active, what="its boot stub's journal says that it is active")
        async with server(tmp_path, active=False):
            await until(lambda: not program.active)
        program.close()

    asyncio.run(scenario())


def test_outside_of_a_boot_stub_a_program_is_always_active() -> None:
    program = Link(socket_path="", managent="")
    assert program.checkpoint(0)
    assert program.active
    assert program.start()._thread is None


def test_connections_that_say_nothing_are_closed_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bmp_server, "HELLO_S", 0.05)
    monkeypatch.setattr(bmp_server, "MAX_SILENT", 2)

    async def scenario() -> None:
        async with server(tmp_path) as here:
            path = str(tmp_path / "bmp.sock")
            mute = [await asyncio.open_unix_connection(path) for _ in range(3)]
            said = [await reader.readline() for reader, _ in mute]
            assert b"expected a hello within 0.05 s" in said[0]
            assert b"too many connections that say nothing" in said[2]
            for _, writer in mute:
                writer.close()
            await until(lambda: not here._silent)

    asyncio.run(scenario())


def test_a_folder_with_a_long_name_gets_a_socket_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()

    async def scenario() -> str:
        async with server(folder) as here:
            return await here.listening()

    with tempfile.TemporaryDirectory(prefix="b") as short:
        monkeypatch.setattr(bmp_server.tempfile, "tempdir", short)
        path = asyncio.run(scenario())
        assert os.path.dirname(path) == f"{short}/bootstub-{os.getuid()}"
        assert not os.path.exists(path)
