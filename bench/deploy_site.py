"""A site to deploy on: a ZooKeeper server, a repository, and many boot stubs, spread over some processes.

    with Site(files, stubs=524, processes=2) as site:
        asyncio.run(something(site))     # site.directory, site.repository, site.kill(…), site.packets()

A process of boot stubs is `python -m bench.deploy_site FOLDER DIRECTORY many|alone NAME…`; "alone" forks one for each
name, when all is imported. Everything lies in one temporary folder, and ends with the block.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.results import ROOT
from zk.server import Server, find_zookeeper, free_ports

WAIT_S = 120.0
CACHE_BYTES = 1 << 30
POLL_S = 0.02
MARK = "BENCH_DEPLOY_SITE"
"""In the environment of everything that is started here, and of what that starts."""


class NotReady(Exception):
    """A part of the site did not come up."""


class Site:
    """`files`: of the repository, by name. `stubs` are named s0000, s0001, …, dealt to the processes in turn; the last
    `alone` of them each have a process of their own, so that they can be killed by themselves."""

    def __init__(self, files: Mapping[str, str], stubs: int, processes: int = 2, alone: int = 0) -> None:
        self.names = [f"s{number:04}" for number in range(stubs)]
        self.alone = self.names[stubs - alone :]
        self._many = self.names[: stubs - alone]
        self._processes = processes
        self._files = files
        self._children: list[subprocess.Popen[bytes]] = []
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="bench-deploy-", dir=memory))
        self._mark = str(self.folder)
        installation = find_zookeeper()
        if installation is None:
            raise NotReady("expected a ZooKeeper server on this machine, found none: make setup")
        self._server = Server(installation, self.folder / "zookeeper", port=free_ports(1)[0])
        self.directory = ""
        self.repository = ""

    def __enter__(self) -> Self:
        """Raises NotReady, zk.server.ServerFailed."""
        try:
            self._server.start()
            self.directory = self._server.hosts
            self._serve()
            for first in range(self._processes):
                self._start("many", self._many[first :: self._processes])
            if self.alone:
                self._start("alone", self.alone)
            self._wait_ready(self.names)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            child.kill()
        for child in self._children:
            child.wait()
        while left := self.marked():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_S)
        self._server.stop(0)
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self, name: str) -> None:
        """-9, to a boot stub that is alone, with its classes and initiators; programs run on."""
        pid = int(self._ready(name).read_text())
        self._ready(name).unlink()
        os.kill(pid, signal.SIGKILL)

    def revive(self, names: Sequence[str]) -> None:
        """Start boot stubs again that were killed."""
        self._start("alone", names)
        self._wait_ready(names)

    def _start(self, how: str, names: Sequence[str]) -> None:
        words = [sys.executable, "-m", "bench.deploy_site", str(self.folder), self.directory, how, *names]
        with open(self.folder / "stubs.log", "ab") as log:
            self._children.append(subprocess.Popen(words, cwd=ROOT, env=self._environment(), stdout=log, stderr=log))

    def _wait_ready(self, names: Sequence[str]) -> None:
        deadline = time.monotonic() + WAIT_S
        while missing := [name for name in names if not self._ready(name).exists()]:
            if time.monotonic() > deadline:
                raise NotReady(f"waited {WAIT_S:g} s in vain for {len(missing)} boot stubs, of them {missing[:3]}")
            time.sleep(POLL_S)

    def packets(self) -> int:
        """Requests that the ZooKeeper server has had from all its clients, pings too."""
        with socket.create_connection(("127.0.0.1", self._server.port), timeout=5) as link:
            link.sendall(b"srvr")
            text = b"".join(iter(lambda: link.recv(65536), b"")).decode()
        return int(next(line.split()[-1] for line in text.splitlines() if line.startswith("Received:")))

    def memory_mib(self) -> float:
        """Of the processes of boot stubs, with the classes and initiators in them (Pss)."""
        stubs = {int(self._ready(name).read_text()) for name in self.names if self._ready(name).exists()}
        return sum(map(_pss_kib, stubs)) / 1024

    def marked(self) -> list[int]:
        """Pids of everything that was started here, by whomever: the mark, or a managent's own folder, is in their
        environment."""
        wanted = self._mark.encode()
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                with contextlib.suppress(OSError):
                    if wanted in Path(f"/proc/{name}/environ").read_bytes():
                        found.append(int(name))
        return found

    def _environment(self) -> dict[str, str]:
        return os.environ | {MARK: self._mark}

    def _serve(self) -> None:
        root = self.folder / "repository"
        root.mkdir()
        for name, text in self._files.items():
            (root / name).write_text(text)
        words = [sys.executable, "-m", "deploy.cli.main", "repository", "serve", str(root), "--listen", "127.0.0.1:0"]
        with open(self.folder / "repository.log", "wb") as log:
            child = subprocess.Popen(words, cwd=ROOT, env=self._environment(), stdout=subprocess.PIPE, stderr=log)
        self._children.append(child)
        assert child.stdout
        line = child.stdout.readline().decode()
        url = next((word for word in line.split() if word.startswith("http")), "")
        if not url:
            raise NotReady(f"the repository said {line!r}")
        self.repository = url

    def _ready(self, name: str) -> Path:
        return self.folder / f"{name}.ready"


def _pss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def main(arguments: Sequence[str]) -> int:
    for module in ("deploy.stub.assembly", "deploy.directory", "zk.session_tree"):
        importlib.import_module(module)
    folder, directory, how, names = Path(arguments[0]), arguments[1], arguments[2], arguments[3:]
    if how == "many":
        return _host(folder, directory, names)
    for name in names:
        if os.fork() == 0:
            os._exit(_host(folder, directory, [name]))
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return 0


def _host(folder: Path, directory: str, names: Sequence[str]) -> int:
    from deploy.records import StubRecord
    from deploy.stub.assembly import Surroundings, assembled
    from deploy.stub.process import Parts, run_stubs
    from deploy.stub.settings import StubConfig
    from deploy.stub.shared import Shared
    from fabric.logs import set_up_log

    set_up_log("warning")

    @asynccontextmanager
    async def compose(shared: Shared) -> AsyncIterator[Parts]:
        around = Surroundings(folder / f"{names[0]}.cache", CACHE_BYTES, directory=directory)
        async with assembled(shared, around) as parts:

            async def register(record: StubRecord) -> None:
                assert parts.register
                await parts.register(record)
                new = folder / f"{record.name}.new"
                new.write_text(str(os.getpid()))
                new.rename(folder / f"{record.name}.ready")

            yield replace(parts, register=register)

    return run_stubs([StubConfig(name, folder / "stubs" / name) for name in names], compose)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
