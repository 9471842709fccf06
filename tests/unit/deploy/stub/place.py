"""A real boot stub in the test's process, with a repository that is a dictionary, and an initiator that is the test."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blake3

from deploy.configuration import Configuration, ProgramRole
from deploy.hosting import NewInitiator
from deploy.messages import AnyDeployMessage, BipAnswer, BipCall, Charge, Parent, StubBeat, deploy_codec
from deploy.records import Prints, StubRef
from deploy.resolved import CodeFile, Resolved, Unresolved
from deploy.states import Verb
from deploy.stub.host import StubHost
from deploy.stub.limits import StubSettings
from deploy.stub.settings import Register, StubConfig
from deploy.stub.shared import Shared
from fabric.runtime.bus import Bus
from tests.unit.runtime.until import until

KEY = b"k" * 32
REPEAT_S = 0.1
SETTINGS = StubSettings(beat_s=0.2, change_s=0.01, install_s=20.0, log_look_s=0.05, register_min_s=0.01)


@dataclass
class Repository:
    """deploy.resolved.Resolver: what each managent gets; "" for all others."""

    folder: Path
    entries: dict[str, Resolved] = field(default_factory=dict)
    asked: int = 0

    def put(
        self,
        *code: Path | tuple[Path, str],
        path: str = "",
        install: Configuration | None = None,
        **managent: Any,
    ) -> None:
        """`code`: files, or (file, type). `managent`: env, args, initiator; the rest makes its ProgramRole."""
        files = []
        for one in code:
            file, kind = one if isinstance(one, tuple) else (one, "")
            digest = f"blake3:{blake3.blake3(file.read_bytes()).hexdigest()}"
            files.append(CodeFile(f"http://repository/{file.name}", file.name, kind, file, digest))
        plain = {name: managent.pop(name) for name in ("env", "args", "initiator") if name in managent}
        configuration = Configuration(program=ProgramRole(**managent), **plain)
        prints = Prints(*(blake3.blake3(repr(part).encode()).hexdigest(8) for part in (files, install, configuration)))
        self.entries[path] = Resolved(tuple(files), install or Configuration(), configuration, prints)

    def file(self, name: str, text: str | bytes) -> Path:
        self.folder.mkdir(exist_ok=True)
        path = self.folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def script(self, name: str, text: str) -> Path:
        return self.file(name, f"#!/bin/sh\n{text}\n")

    async def resolve(self, path: str, charge: Charge) -> Resolved:
        self.asked += 1
        found = self.entries.get(path) or self.entries.get("")
        if found is None:
            raise Unresolved(f"{charge.repository}: nothing for {path}", again=False)
        return found

    async def close(self) -> None: ...


class Place:
    """`deploy` and other commands are methods that wait for the answer. The boot stub can be stopped and made anew."""

    def __init__(self, folder: Path, shared: Shared, options: dict[str, Any]) -> None:
        self.folder = folder / "stub"
        self.repository = Repository(folder / "files")
        self.shared = shared
        self.settings: StubSettings = options.pop("settings", SETTINGS)
        self.options = options
        self.host: StubHost | None = None
        self.heard: list[AnyDeployMessage] = []
        self.ref = StubRef("s1", "")
        self._run: asyncio.Task[int] | None = None
        self._numbers = itertools.count(1)
        self.bus: Bus[AnyDeployMessage] = Bus(
            shared.context,
            deploy_codec(KEY),
            "00000000000000aa",
            on_message=lambda sender, message: self.heard.append(message),
        )
        self.parent = Parent("/site", self.bus.address)

    async def start(self, **changes: Any) -> StubRef:
        config = StubConfig("s1", self.folder, "/site", cluster_key=KEY, settings=self.settings, **changes)
        self.host = StubHost(config, self.shared, self.repository, **self.options)
        self._run = asyncio.create_task(self.host.run())
        self.ref = await self.host.listening()
        return self.ref

    async def stop(self) -> int:
        assert self.host is not None
        assert self._run is not None
        self.host.leave()
        code = await asyncio.wait_for(self._run, 30)
        await until(self._unlocked)
        return code

    async def crash(self) -> None:
        """As kill -9 would have it, as far as one process can tell: nothing is said and nothing is tidied up."""
        assert self._run is not None
        self._run.cancel()
        await asyncio.gather(self._run, return_exceptions=True)
        await until(self._unlocked)

    def _unlocked(self) -> bool:
        """The journal's writer has let go of it."""
        lock = os.open(self.folder / "journal", os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        finally:
            os.close(lock)

    async def command(self, verb: Verb, path: str = "/site/a", wait_s: float = 30.0, **fields: Any) -> BipAnswer:
        call = f"c{next(self._numbers)}"
        defaults: dict[str, Any] = {
            "call": call,
            "epoch": 1,
            "attempt": 1,
            "parent": self.parent,
            "charge": Charge("http://repository/"),
        }
        message = BipCall(verb=verb, managent=path, **(defaults | fields))
        loop = asyncio.get_running_loop()
        again_at = 0.0

        def answered() -> BipAnswer | None:
            """As initiators do: the same call is repeated until it is answered."""
            nonlocal again_at
            if loop.time() >= again_at:
                again_at = loop.time() + REPEAT_S
                self.bus.send(self.ref.address, message)
            return self._answer(message.call)

        return await until(answered, wait_s, f"the answer to {verb} of {path}")

    def _answer(self, call: str) -> BipAnswer | None:
        return next(
            (one for one in self.heard if isinstance(one, BipAnswer) and one.call == call and one.outcome != "running"),
            None,
        )

    @property
    def beats(self) -> list[StubBeat]:
        return [one for one in self.heard if isinstance(one, StubBeat)]

    def work(self, path: str = "/site/a") -> Path:
        assert self.host is not None
        return self.host._homes.work(path)

    def output(self, path: str = "/site/a") -> str:
        assert self.host is not None
        log = self.host._homes.log(path)
        return log.read_text() if log.exists() else ""

    def pid(self, path: str = "/site/a") -> int:
        assert self.host is not None
        assert self.host.machine is not None
        run = self.host.machine.managents[path].run
        return run.pid if run is not None else 0


@contextlib.asynccontextmanager
async def place(
    folder: Path,
    *,
    started: bool = True,
    new_initiator: NewInitiator | None = None,
    register: Register | None = None,
    settings: StubSettings = SETTINGS,
) -> AsyncIterator[Place]:
    """A boot stub in `folder`; in the end its programs are stopped."""
    shared = Shared(settings)
    here = Place(folder, shared, {"new_initiator": new_initiator, "register": register, "settings": settings})
    try:
        if started:
            await here.start()
        yield here
    finally:
        if here.host is not None and here._run is not None:
            if not here._run.done():
                await here.crash()
            await _end_all(here)
        here.bus.close()
        await shared.close()


async def _end_all(here: Place) -> None:
    below = str(here.folder.absolute())
    await here.shared.strays.kill(lambda directory: directory.startswith(below))
