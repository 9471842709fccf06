"""What runs for managents in the real world: processes and Python classes, by the managent's path.

Theory of operation. A process is started by the launcher and watched by a pidfd, whoever's child it is; so one that the
boot stub finds again after its own restart is the same as one that it started. Signals go to the whole group. Control
"signals": deactivate stops the group (SIGSTOP) and is done when /proc says that it stands still, activate lets it go
on. Control "bmp": the program is told over its socket, and acknowledges (deploy.stub.bmp_server); such a program has
started when it has said hello and acknowledged its first activate.

When a process ends by itself, what it left in its group is killed, `ended` is called, and a restart finds nothing in
its way. A program must therefore stay in the foreground.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import operator
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from deploy.configuration import Configuration
from deploy.stub.bmp_server import BmpServer, NotDone
from deploy.stub.classes import ClassError, ClassManagent, Context
from deploy.stub.code import BadCode
from deploy.stub.effects import Adopt, Code, Ended, Run, Start
from deploy.stub.homes import Homes, bound_log, tail_of
from deploy.stub.installer import BUSY_TRIES, BUSY_WAIT_S, Installer, Trouble, explained
from deploy.stub.launcher import Launcher, LauncherLost, Program
from deploy.stub.limits import StubSettings
from deploy.stub.processes import Watch, identity, is_same, signal_group, stands_still
from deploy.stub.shared import Shared
from deploy.stub.starting import Execute, RunClass, way_to_start

TAIL_LINES = 20
FREEZE_LOOK_S = 0.002

_log = logging.getLogger("deploy.stub")


@dataclass(slots=True, eq=False)
class _Process:
    run: Run
    bmp: bool
    ours: bool
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    watch: Watch | None = None
    stopping: bool = False
    how: str = ""


class Programs:
    """`ended` takes news of what ended by itself, on the loop, never from inside a method here."""

    def __init__(
        self,
        homes: Homes,
        shared: Shared,
        settings: StubSettings,
        installer: Installer,
        bmp: BmpServer,
        launcher: Launcher,
        ended: Callable[[Ended], None],
    ) -> None:
        self._homes, self._shared, self._settings = homes, shared, settings
        self._installer, self._bmp, self._launcher, self._ended = installer, bmp, launcher, ended
        self._loop = asyncio.get_running_loop()
        self._processes: dict[str, _Process] = {}
        self._classes: dict[str, ClassManagent] = {}
        self._burials: set[asyncio.Task[None]] = set()

    # --- steps ---------------------------------------------------------------------------------------------------

    async def start(self, work: Start) -> Run:
        """Raises Trouble."""
        folder = self._homes.work(work.path)
        try:
            way = way_to_start(folder, work.told, work.installed, work.managent)
        except (BadCode, OSError) as error:
            raise Trouble(str(error), final=isinstance(error, BadCode)) from None
        if isinstance(way, Execute):
            return await self._start_process(work, way)
        if isinstance(way, RunClass):
            return await self._start_class(work.path, work.parent, work.managent, way.code, True)
        return Run("none")

    async def adopt(self, work: Adopt) -> Run:
        """Raises Trouble when it is not there any more."""
        run = work.run
        if run.kind == "class":
            file, _, name = run.what.rpartition(":")
            return await self._start_class(work.path, work.parent, work.managent, Code(file, name), work.active)
        bmp = work.managent.program.control == "bmp"
        process = _Process(run, bmp, ours=False)
        try:
            process.watch = Watch(run.pid, lambda: self._has_ended(work.path, process))
        except ProcessLookupError:
            raise Trouble("its program ended while the boot stub was away", self._tail(work.path)) from None
        except OSError as error:  # nothing that nobody can watch stays: a second one would be started beside it
            if is_same(run.pid, run.ticks, run.boot):
                signal_group(run.pid, signal.SIGKILL)
            reason = f"process {run.pid} can't be watched, and was killed: {error}"
            raise Trouble(reason, self._tail(work.path)) from None
        if not is_same(run.pid, run.ticks, run.boot):  # after the pidfd, so that what was judged is what is held
            process.watch.close()
            raise Trouble("its program ended while the boot stub was away", self._tail(work.path))
        self._processes[work.path] = process
        if bmp:
            self._bmp.expect(work.path, run.pid, work.active)
            try:
                await self._bmp_socket()
            except Trouble:
                await self._give_up(work.path, process)
                raise
        return run

    async def stop(self, path: str, stop_s: float) -> None:
        """Raises Trouble when it does not end."""
        managent = self._classes.pop(path, None)
        if managent is not None:
            try:
                await managent.tell("shutdown")
            except ClassError as error:  # it is let go all the same: an object has nothing that could be killed
                _log.warning("%s: %s", path, error)
        process = self._processes.get(path)
        if process is None:
            return
        process.stopping = True
        pid = process.run.pid
        signal_group(pid, signal.SIGTERM)
        signal_group(pid, signal.SIGCONT)  # one that stands still hears nothing else
        if not await _within(process.gone.wait(), stop_s):
            signal_group(pid, signal.SIGKILL)
            if not await _within(process.gone.wait(), self._settings.kill_s):
                process.stopping = False
                raise Trouble(f"process {pid} did not end within {self._settings.kill_s:g} s after KILL")

    async def switch(self, path: str, active: bool) -> None:
        """Activate or deactivate. Raises Trouble when it was not acknowledged."""
        verb = "activate" if active else "deactivate"
        managent = self._classes.get(path)
        if managent is not None:
            try:
                await managent.tell(verb)
            except ClassError as error:
                raise Trouble(str(error), silent=True) from None
            return
        process = self._processes.get(path)
        if process is None:
            raise Trouble(f"{verb}: its program is not there any more")
        if process.bmp:
            await self._tell(path, process, verb, self._settings.bmp_s)
        elif active:
            signal_group(process.run.pid, signal.SIGCONT)
        else:
            await self._freeze(process)

    async def bound_logs(self) -> None:
        """Keep the logs of what runs within bounds."""
        logs = [self._homes.log(path) for path in self._processes]
        if logs:
            await asyncio.to_thread(_bound_all, logs, self._settings.log_bytes)

    def close(self) -> None:
        """Look at nothing any more; everything runs on."""
        for process in self._processes.values():
            if process.watch is not None:
                process.watch.close()
        for task in self._burials:
            task.cancel()

    # --- processes -----------------------------------------------------------------------------------------------

    async def _start_process(self, work: Start, way: Execute) -> Run:
        control = work.managent.program.control
        env = self._installer.environment(work.path, work.parent, work.managent)
        if control == "bmp":
            env["MANAGENT_SOCKET"] = await self._bmp_socket()
        folder = self._homes.work(work.path)
        program = Program(work.path, way.argv, env, folder, self._homes.log(work.path))
        pid = await self._launch(program)
        ticks, boot = identity(pid)
        process = _Process(Run("process", " ".join(way.argv)[:500], pid, ticks, boot), control == "bmp", ours=True)
        self._processes[work.path] = process
        try:
            process.watch = Watch(pid, lambda: self._has_ended(work.path, process))
        except ProcessLookupError:  # not our child, and gone already
            self._loop.call_soon(self._has_ended, work.path, process)
        except OSError as error:
            await self._give_up(work.path, process)
            raise Trouble(f"process {pid} can't be watched: {error}") from None
        if process.bmp:
            self._bmp.expect(work.path, pid, None)
            try:
                await self._tell(work.path, process, "activate", self._settings.hello_s)
            except Trouble:
                await self._give_up(work.path, process)
                raise
        return process.run

    async def _bmp_socket(self) -> str:
        try:
            return await self._bmp.listening()
        except OSError as error:
            raise Trouble(f"BMP's socket: {error}") from None

    async def _launch(self, program: Program) -> int:
        for tries_left in reversed(range(BUSY_TRIES)):
            try:
                return await self._launcher.start(program)
            except OSError as error:
                if error.errno != errno.ETXTBSY or not tries_left:
                    why = explained(error, self._homes.work(program.managent) / program.argv[0])
                    raise Trouble(f"cannot execute {program.argv[0]}: {why}") from None
            except ValueError as error:
                raise Trouble(f"cannot execute {program.argv[0]}: {error}") from None
            except LauncherLost as error:
                await self._shared.strays.kill(partial(operator.eq, str(program.cwd)))
                raise Trouble(f"cannot execute {program.argv[0]}: {error}") from None
            await asyncio.sleep(BUSY_WAIT_S)
        raise AssertionError("the last try returns or raises")

    async def _give_up(self, path: str, process: _Process) -> None:
        process.stopping = True
        signal_group(process.run.pid, signal.SIGKILL)
        if process.watch is not None:
            await _within(process.gone.wait(), self._settings.kill_s)
        elif await _within(self._launcher.ended(process.run.pid), self._settings.kill_s):
            del self._processes[path]
            process.gone.set()

    async def _tell(self, path: str, process: _Process, verb: str, limit_s: float) -> None:
        """Over BMP; the end of the process ends the waiting."""
        told = self._loop.create_task(self._bmp.tell(path, verb, limit_s))
        gone = self._loop.create_task(process.gone.wait())
        try:
            await asyncio.wait((told, gone), return_when=asyncio.FIRST_COMPLETED)
            if process.gone.is_set():
                raise Trouble(f"{verb}: its program ended: {process.how}", self._tail(path))
            try:
                told.result()
            except NotDone as error:
                raise Trouble(f"{verb}: {error}", self._tail(path), silent=error.silent) from None
        finally:
            for task in (told, gone):
                task.cancel()

    async def _freeze(self, process: _Process) -> None:
        pid = process.run.pid
        deadline = self._loop.time() + self._settings.freeze_s
        signal_group(pid, signal.SIGSTOP)
        while not stands_still(pid):
            if self._loop.time() > deadline:
                signal_group(pid, signal.SIGCONT)
                raise Trouble(f"deactivate: process {pid} does not stand still after SIGSTOP", silent=True)
            await asyncio.sleep(FREEZE_LOOK_S)
        if process.gone.is_set():
            raise Trouble("deactivate: its program ended")

    def _has_ended(self, path: str, process: _Process) -> None:
        # what it left behind; the leader is not reaped, so the group is still its own
        signal_group(process.run.pid, signal.SIGKILL)
        if not process.ours:
            self._is_over(path, process, "")
            return
        task = self._loop.create_task(self._buried(path, process))
        self._burials.add(task)
        task.add_done_callback(self._burials.discard)

    async def _buried(self, path: str, process: _Process) -> None:
        self._is_over(path, process, await self._launcher.ended(process.run.pid))

    def _is_over(self, path: str, process: _Process, how: str) -> None:
        process.how = how
        if self._processes.get(path) is process:
            del self._processes[path]
        self._bmp.forget(path)
        process.gone.set()
        if not process.stopping:
            how = process.how or "it ended"
            self._loop.call_soon(self._ended, Ended(path, process.run, f"its program ended: {how}", self._tail(path)))

    def _tail(self, path: str) -> tuple[str, ...]:
        return tail_of(self._homes.log(path), TAIL_LINES)

    # --- classes -------------------------------------------------------------------------------------------------

    async def _start_class(self, path: str, parent: str, managent: Configuration, code: Code, active: bool) -> Run:
        run = Run("class", f"{code.file}:{code.class_name}")
        folder = self._homes.work(path)

        def fail(reason: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._class_failed, path, run, one, str(reason)[:500])

        context = Context(path, folder, parent, self._installer.stub, managent.env, managent.args, fail)
        try:
            cls = await self._shared.classes.load(folder / code.file, code.class_name)
            one = ClassManagent(cls, context, self._shared.classes)
            self._classes[path] = one
            await one.make(active)
        except (ClassError, OSError) as error:
            self._classes.pop(path, None)
            raise Trouble(str(error)) from None
        return run

    def _class_failed(self, path: str, run: Run, one: ClassManagent, reason: str) -> None:
        if self._classes.get(path) is one:
            self._ended(Ended(path, run, f"its class gave up: {reason}"))


def _bound_all(logs: list[Path], most_bytes: int) -> None:
    for log in logs:
        bound_log(log, most_bytes)


async def _within(wanted: Awaitable[object], limit_s: float) -> bool:
    try:
        await asyncio.wait_for(wanted, limit_s)
    except TimeoutError:
        return False
    return True
