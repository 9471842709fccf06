"""A small world of managents: a repository, boot stubs in processes that can be killed, and what runs in the end."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from deploy import top_lock
from deploy.cli.main import main
from deploy.hosted import directory_of
from deploy.repository.process import bind, own_url
from deploy.repository.process import start as serve
from deploy.stub.processes import Strays
from zk.client import TreeClient
from zk.session_tree import SessionTree

FABRIC = (sys.executable, "-m", "deploy.cli.main")
INFORMATION = """\
<repository-information>
  <managent-code>
    <entry><pattern xpath="/**/**/**"/><ref url="install.sh"/><ref url="managent.sh"/></entry>
  </managent-code>
  <managent-config>
    <entry><pattern xpath="/**/**/**"/><ref url="leaf.xml"/></entry>
    <entry><pattern xpath="/**/**"/><ref url="zone.xml"/></entry>
    <entry><pattern xpath="/**"/><ref url="region.xml"/></entry>
  </managent-config>
</repository-information>
"""
ZONES, LEAVES = 3, 12
TOTAL = 1 + ZONES + ZONES * LEAVES


class World:
    """/region1 with ZONES initiators, each of LEAVES programs."""

    def __init__(self, folder: Path, directory: str, repository: str) -> None:
        self.folder, self.directory, self.repository = folder, directory, repository
        self._stubs: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: list[asyncio.subprocess.Process] = []

    # --- the description -----------------------------------------------------------------------------------------

    def describe(self, color: str = "red", leaves: int = LEAVES, install: str = "true") -> None:
        site = self.folder / "site"
        _children(site / "region.xml", ZONES, "zone")
        _children(site / "zone.xml", leaves, "n")
        (site / "leaf.xml").write_text(
            f'<configuration><env-params><env name="COLOR" value="{color}"/></env-params></configuration>'
        )
        (site / "install.sh").write_text(f"#!/bin/sh\n{install}\n")
        (site / "managent.sh").write_text("#!/bin/sh\nexec sleep 100000\n")
        (site / "repository.xml").write_text(INFORMATION)

    # --- boot stubs -----------------------------------------------------------------------------------------------

    async def start(self, *names: str) -> None:
        """Boot stubs in one process; returns when they are in the directory, as of now."""
        process = self._started(*names)

        async def registered(tree: SessionTree) -> bool:
            found = await directory_of(tree).stubs.all()
            return {record.name for record in found.records if record.pid == process.pid} == set(names)

        await self._until(registered)

    async def top_is(self, pid: int) -> None:
        """Returns when this process is the top initiator."""

        async def is_top(tree: SessionTree) -> bool:
            record = await top_lock.holder(TreeClient(tree))
            return record is not None and record.pid == pid

        await self._until(is_top)

    async def _until(self, probe: Callable[[SessionTree], Awaitable[bool]]) -> None:
        tree = SessionTree(self.directory)
        await tree.open(20)
        try:
            async with asyncio.timeout(30):
                while not await probe(tree):
                    await asyncio.sleep(0.05)
        finally:
            await tree.close()

    def _started(self, *names: str) -> subprocess.Popen[bytes]:
        words = (sys.executable, "-m", "tests.system.quick_stubs", self.directory, str(self.folder / "stubs"), *names)
        with open(self.folder / f"{names[0]}.log", "ab") as log:
            process = subprocess.Popen(words, stdout=log, stderr=log)
        self._stubs |= dict.fromkeys(names, process)
        return process

    def kill(self, name: str) -> None:
        """Its process, with all boot stubs in it."""
        process = self._stubs[name]
        process.kill()
        process.wait(30)
        self._stubs = {one: other for one, other in self._stubs.items() if other is not process}

    def close(self) -> None:
        for command in self._commands:
            if command.returncode is None:
                command.kill()
        for process in set(self._stubs.values()):
            process.terminate()
        for process in set(self._stubs.values()):
            process.wait(30)

    # --- commands -------------------------------------------------------------------------------------------------

    def words(self, *arguments: str) -> tuple[str, ...]:
        described = ("--repository", self.repository) if arguments[0] in ("plan", "apply") else ()
        return (*FABRIC, "managent", *arguments, *described, "--directory", self.directory)

    async def fabric(self, *arguments: str, exits: int | None = 0) -> Any:
        """`fabric managent ARGUMENTS`, on a thread of this process; what it says in JSON, else on standard error.
        `exits`: with which code; None: with any."""
        words = self.words(*arguments, "--format", "json")[len(FABRIC) :]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = await asyncio.wait_for(asyncio.to_thread(main, words), 60)
        assert exits in (None, code), out.getvalue()[-3000:] + err.getvalue()[-3000:]
        return json.loads(out.getvalue()) if out.getvalue() else err.getvalue()

    async def begun(self, *arguments: str) -> asyncio.subprocess.Process:
        """The same in a process of its own, which says for people how it goes on standard error."""
        process = await asyncio.create_subprocess_exec(
            *self.words(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self._commands.append(process)
        return process

    async def interrupted(self, *arguments: str, when: str) -> tuple[int, str]:
        """Run a command, interrupt it as Ctrl-C does when it has said `when`; its exit code and all that it said."""
        process = await self.begun(*arguments)
        assert process.stderr is not None
        said = b""
        while when.encode() not in said:
            said += (line := await asyncio.wait_for(process.stderr.readline(), 30))
            assert line, said.decode()
        process.send_signal(signal.SIGINT)
        said += await asyncio.wait_for(process.stderr.read(), 30)
        return await process.wait(), said.decode()

    # --- what there is --------------------------------------------------------------------------------------------

    def running(self) -> Counter[str]:
        """The processes of managents, by path."""
        return Counter(environment["MANAGENT_ID"] for environment in self._environments())

    def colors(self) -> Counter[str]:
        return Counter(environment["COLOR"] for environment in self._environments())

    def _environments(self) -> list[dict[str, str]]:
        found = []
        for process in Path("/proc").iterdir():
            if not process.name.isdecimal():
                continue
            try:
                words = (process / "environ").read_bytes().decode("utf-8", "replace").split("\0")
            except OSError:
                continue
            environment = dict(word.split("=", 1) for word in words if "=" in word)
            if environment.get("MANAGENT_DIR", "").startswith(str(self.folder)) and "COLOR" in environment:
                found.append(environment)
        return found


def _children(file: Path, count: int, prefix: str) -> None:
    file.write_text(
        f'<configuration><initiator><children count="{count}" prefix="{prefix}"/></initiator></configuration>'
    )


def paths(below: Sequence[str] = ("zone1", "zone2", "zone3"), leaves: int = LEAVES) -> set[str]:
    """Of the leaves."""
    return {f"/region1/{zone}/n{number}" for zone in below for number in range(1, leaves + 1)}


@asynccontextmanager
async def world(folder: Path, directory: str) -> AsyncIterator[World]:
    """Without boot stubs. All that it started is gone in the end."""
    (folder / "site").mkdir()
    listener = bind("127.0.0.1", 0)
    here = World(folder, directory, own_url(listener))
    here.describe()
    server = await serve(folder / "site", listener, own_url(listener))
    try:
        yield here
    finally:
        here.close()
        await Strays().kill(lambda directory: directory.startswith(str(folder)))
        await server.close()
