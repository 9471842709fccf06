"""Loading, running and reversing installation code (HPL-2001-321, 3.2; steps 3 and 5 of section 3).

Theory of operation. Loading puts each code file under its own name into the managent's folder (archives stay in the
cache until they are unpacked). Installing goes through them in order:

- a program is run in the folder to its end: `<file> NAME=VALUE …` with `<arg-params>` in order, and with
  `<env-params>` and MANAGENT_ID, MANAGENT_DIR, MANAGENT_PARENT and MANAGENT_STUB in its environment; exit status 0 is
  success. Its last line on standard output may be `MANAGENT_START=<command>`: the managent's start command (4.3, second
  way). A line `MANAGENT_UNINSTALL=yes` asks to be run once more, as `<file> uninstall NAME=VALUE …` with
  MANAGENT_UNINSTALL=1, before the folder is removed (once more, if the boot stub is killed meanwhile);
- an archive is unpacked into the folder, and its program `install` run like that, if it has one;
- of a Python file, the class's `install` is called, if it has one (deploy.stub.classes).

A program that is the managent itself is only put there (deploy.stub.code says how it is known). Uninstalling runs what
asked for it, latest first, kills every process that still carries the folder in its environment, and removes the
folder with everything in it. At most `installs` programs run at once in a process, each with a limit of time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import msgspec

from deploy.configuration import Configuration
from deploy.resolved import CodeFile
from deploy.stub.bounded import Ran, run_bounded
from deploy.stub.classes import DEFAULT_CLASS, ClassError, Context, has, is_runnable
from deploy.stub.code import BadCode, Kind, check_names, is_managent_name, is_named, kind_of, read_head
from deploy.stub.effects import Code, Install, Installed, Load, StepFailed, Undone, Uninstall
from deploy.stub.homes import Homes
from deploy.stub.limits import StubSettings
from deploy.stub.processes import STRAYS_KILL_S
from deploy.stub.shared import Shared
from deploy.stub.unpacking import unpack_code
from fabric.images.errors import BadImage

INSTALL = "install"
SMALL_BYTES = 256 * 1024
"""Copied on the loop: a thread costs more."""
BUSY_TRIES, BUSY_WAIT_S = 20, 0.02
"""A program that was just written may be held open for a moment by another one that is just being started."""
KNOWN_KINDS = 1_000
KEPT_FROM_OURS = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Trouble(Exception):
    """A step failed; `failed` says how (see StepFailed for the fields)."""

    def __init__(self, reason: str, tail: tuple[str, ...] = (), *, silent: bool = False, final: bool = False) -> None:
        super().__init__(reason)
        self.failed = StepFailed(reason, tail, silent, final)


class Installer:
    def __init__(self, homes: Homes, shared: Shared, settings: StubSettings, stub: str) -> None:
        self._homes, self._shared, self._settings, self.stub = homes, shared, settings, stub
        self._kinds: OrderedDict[tuple[str, str, str], Kind] = OrderedDict()
        self._ours = {name: os.environ[name] for name in KEPT_FROM_OURS if name in os.environ}

    # --- loading -------------------------------------------------------------------------------------------------

    async def load(self, work: Load) -> None:
        """Raises Trouble; what it put there is gone then, if the folder was fresh."""
        try:
            await self._load(work)
        except (OSError, BadCode) as error:
            if work.fresh:
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(self._homes.remove, work.path)
            raise Trouble(f"installation code: {error}", final=isinstance(error, BadCode)) from None

    async def _load(self, work: Load) -> None:
        code = work.resolved.code
        check_names([file.name for file in code])
        folder = self._homes.work_name(work.path)
        if work.fresh and self._homes.is_there(work.path):
            await self.clear(work.path)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        room = self._settings.code_bytes
        for file in code:
            size = os.stat(file.file).st_size
            room -= size
            if room < 0:
                raise BadCode(f"expected at most {self._settings.code_bytes} bytes of code, found more in {file.name}")
            kind: Kind = "program" if is_named(file.name, work.told) else self._kind(file)
            if kind == "archive":
                continue
            target = f"{folder}/{file.name}"
            if size <= SMALL_BYTES:
                _place(file.file, target, kind)
            else:
                await asyncio.to_thread(_place, file.file, target, kind)

    def _kind(self, file: CodeFile) -> Kind:
        key = (file.digest, file.name, file.type)
        kind = self._kinds.get(key) if file.digest else None
        if kind is None:
            kind = self._kinds[key] = kind_of(file.name, file.type, read_head(file.file))
            if len(self._kinds) > KNOWN_KINDS:
                self._kinds.popitem(last=False)
        return kind

    # --- installing ----------------------------------------------------------------------------------------------

    async def install(self, work: Install) -> Installed:
        """Raises Trouble, which names what wants to be undone."""
        undo: list[Code] = []
        try:
            return await self._install(work, undo)
        except Trouble as trouble:
            trouble.failed = msgspec.structs.replace(trouble.failed, undo=tuple(undo))
            raise

    async def _install(self, work: Install, undo: list[Code]) -> Installed:
        starts: dict[str, str] = {}
        programs: list[Code] = []
        resolved = work.resolved
        for file in resolved.code:
            try:
                if is_named(file.name, work.told):
                    programs.append(Code(file.name))
                    continue
                kind = self._kind(file)
                if kind == "python":
                    code = Code(file.name, resolved.install.program.class_name or class_of(resolved.managent))
                    start = await self._install_class(work, code, undo, programs)
                elif kind == "java" or (kind == "program" and is_managent_name(file.name)):
                    programs.append(Code(file.name))
                    continue
                else:
                    start = await self._install_program(work, file, kind, undo)
            except (BadCode, BadImage) as error:
                raise Trouble(f"installation code {file.name}: {error}", final=True) from None
            except (ClassError, OSError, ValueError) as error:
                raise Trouble(f"installation code {file.name}: {error}") from None
            if start:
                starts[start] = file.name
        if len(starts) > 1:
            told = "; ".join(f"{name} returned {start[:200]!r}" for start, name in starts.items())
            raise Trouble(f"conflicting start commands: {told}; only one of them can start the managent", final=True)
        return Installed(next(iter(starts), ""), tuple(undo), tuple(programs))

    async def _install_class(self, work: Install, code: Code, undo: list[Code], programs: list[Code]) -> str:
        cls = await self._shared.classes.load(self._homes.work(work.path) / code.file, code.class_name)
        if has(cls, "uninstall"):
            undo.append(code)
        if is_runnable(cls):
            programs.append(code)
        if not has(cls, "install"):
            return ""
        context = self.context(work.path, work.parent, work.resolved.install)
        start = await self._shared.classes.call_once(cls, "install", context)
        if start is not None and not isinstance(start, str):
            found = type(start).__name__
            raise ClassError(f"{code.class_name}.install: expected a start command or None, found {found}")
        return start or ""

    async def _install_program(self, work: Install, file: CodeFile, kind: Kind, undo: list[Code]) -> str:
        folder = self._homes.work(work.path)
        program = file.name
        async with self._shared.installs:
            if kind == "archive":
                program = INSTALL
                limit = self._settings.unpacked_bytes
                members = await asyncio.to_thread(unpack_code, file.file, folder, limit)
                if program not in members or not os.access(folder / program, os.X_OK):
                    return ""  # none, or one that an earlier code brought
            ran = await self._ran(work.path, work.parent, work.resolved.install, [program])
        if ran.said.get("MANAGENT_UNINSTALL") == "yes":
            undo.append(Code(program))
        if ran.problem:
            raise Trouble(f"installation code {file.name}: {ran.problem}", ran.tail)
        return ran.last.removeprefix("MANAGENT_START=").strip() if ran.last.startswith("MANAGENT_START=") else ""

    async def _ran(
        self, path: str, parent: str, install: Configuration, command: list[str], extra: Mapping[str, str] | None = None
    ) -> Ran:
        folder = self._homes.work(path)
        argv = [str(folder / command[0]), *command[1:], *arguments(install)]
        env = {**self.environment(path, parent, install), **(extra or {})}
        with contextlib.suppress(OSError):
            self._homes.install_log(path).touch(mode=0o600)  # by which `clear` knows that something was run
        for tries_left in reversed(range(BUSY_TRIES)):
            try:
                ran = await run_bounded(argv, env, folder, self._settings.install_s)
                break
            except OSError as error:
                if error.errno != errno.ETXTBSY or not tries_left:
                    raise Trouble(f"installation code {command[0]}: {explained(error, folder / command[0])}") from None
            await asyncio.sleep(BUSY_WAIT_S)
        with contextlib.suppress(OSError):
            self._homes.install_log(path).write_text("\n".join(ran.tail) + "\n")
        return ran

    # --- uninstalling --------------------------------------------------------------------------------------------

    async def uninstall(self, work: Uninstall) -> Undone:
        """Raises Trouble when the folder can't be removed."""
        notes: list[str] = []
        tail: tuple[str, ...] = ()
        for code in reversed(work.installed.undo):
            try:
                if code.class_name:
                    cls = await self._shared.classes.load(self._homes.work(work.path) / code.file, code.class_name)
                    context = self.context(work.path, work.parent, work.install)
                    await self._shared.classes.call_once(cls, "uninstall", context)
                    continue
                async with self._shared.installs:
                    command = [code.file, "uninstall"]
                    ran = await self._ran(work.path, work.parent, work.install, command, {"MANAGENT_UNINSTALL": "1"})
                if ran.problem:
                    notes.append(f"{code.file} uninstall: {ran.problem}")
                    tail = ran.tail
            except (ClassError, OSError, ValueError, Trouble) as error:
                notes.append(f"{code.file} uninstall: {error}")
        await self.clear(work.path)
        return Undone("; ".join(notes), tail)

    async def clear(self, path: str) -> None:
        """Nothing of it is left: no process, no file. Raises Trouble."""
        folder = self._homes.work(path)
        if self._homes.install_log(path).exists() or self._homes.log(path).exists():  # some process was started here
            if not await self._shared.strays.kill(lambda directory: directory == str(folder)):
                raise Trouble(f"a process of {folder} did not end within {STRAYS_KILL_S:g} s after KILL")
        try:
            await asyncio.to_thread(self._homes.remove, path)
        except OSError as error:
            raise Trouble(f"{folder} can't be removed: {error}") from None

    # --- what code is told ---------------------------------------------------------------------------------------

    def environment(self, path: str, parent: str, configuration: Configuration) -> dict[str, str]:
        """Of a program. Little of the boot stub's own: it may hold what is nobody else's business."""
        folder = self._homes.work_name(path)
        return {
            "PATH": PATH,
            **self._ours,
            "HOME": folder,
            **configuration.env,
            "MANAGENT_ID": path,
            "MANAGENT_DIR": folder,
            "MANAGENT_PARENT": parent,
            "MANAGENT_STUB": self.stub,
        }

    def context(self, path: str, parent: str, configuration: Configuration) -> Context:
        return Context(path, self._homes.work(path), parent, self.stub, configuration.env, configuration.args)


def arguments(configuration: Configuration) -> list[str]:
    """`<arg-params>` as a command line has them: NAME=VALUE, in order."""
    return [f"{name}={value}" for name, value in configuration.args.items()]


def class_of(managent: Configuration) -> str:
    return managent.program.class_name or DEFAULT_CLASS


def explained(error: OSError, program: Path) -> str:
    """What execve's error means for this program."""
    if error.errno == errno.ENOENT and program.is_file():
        with contextlib.suppress(OSError), program.open("rb") as file:
            first = file.readline(256)
            if first.startswith(b"#!"):
                return f"its interpreter {first[2:].decode('utf-8', 'replace').strip()!r} does not exist here"
        return "it needs a loader that does not exist here"
    if error.errno == errno.ENOEXEC:
        return "neither a program for this machine nor a script that begins with #!"
    return os.strerror(error.errno) if error.errno else str(error)


def _place(source: Path, target: str, kind: Kind) -> None:
    """A copy of its own: the managent may do with it what it likes, the cache's must stay what it is."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(target)
    shutil.copyfile(source, target)
    os.chmod(target, 0o755 if kind == "program" else 0o644)
