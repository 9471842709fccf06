"""A boot stub in the real world: bus, journal, folder, programs, and the state machine in their midst.

Theory of operation. Messages, results of steps and the time are inputs of the machine (deploy.stub.machine); it turns
each into effects, which the gate performs in order, none before what stands before it in the journal is on the disk.
Messages for an initiator that lives here go straight to it.

Life. Lock the folder and read the journal; take a guid for this incarnation; end what an earlier incarnation began and
did not acknowledge (processes and folders that the journal does not know); listen; take up again what the journal
holds; register in the directory, in the background, until it has worked. It ends by `leave`, by a journal that can't be
written, by finding its name taken, or by a bug in the machine. Programs run on, unless `stop_managents` says otherwise,
and are adopted at the next start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Literal

from deploy.hosting import NewInitiator
from deploy.messages import AdoptCall, AnyDeployMessage, BipCall, InspectCall, StubPing, deploy_codec
from deploy.records import StubRecord, StubRef
from deploy.resolved import Resolver
from deploy.stub.bmp_server import BmpServer
from deploy.stub.effects import Charged, Effect, Ended, Input, Note, Received, Send, Step
from deploy.stub.homes import Homes
from deploy.stub.initiators import Initiators
from deploy.stub.installer import Installer
from deploy.stub.launcher import Launcher
from deploy.stub.machine import BootStub
from deploy.stub.managent import BadState, Managent, restore
from deploy.stub.parents import marks_of
from deploy.stub.processes import is_same, this_boot
from deploy.stub.programs import Programs
from deploy.stub.settings import EXIT_NAME_TAKEN, NameInUse, Register, StubConfig
from deploy.stub.shared import Shared
from deploy.stub.world import World
from fabric.effects import Persist
from fabric.gate import Gate
from fabric.runtime.bus import BindFailed, Bus
from fabric.runtime.journal import Journal, JournalError
from fabric.runtime.settings import EXIT_BUG, EXIT_FAILED, EXIT_OK

MIN_PAUSE_S = 0.001
LEAVE_WAIT_S = 30.0
"""For programs to be stopped, when they are to be; then they are left running."""
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_CANNOT = (JournalError, BindFailed, BadState, OSError)
_FOR_MACHINE = (BipCall, InspectCall, AdoptCall, StubPing)


class StubHost:
    """Make it on the loop; `run` it once. `shared`: what all boot stubs of a process have in common. `resolver` is the
    caller's to close, and may be shared. `register`: writes the record into the directory, None for none."""

    def __init__(
        self,
        config: StubConfig,
        shared: Shared,
        resolver: Resolver,
        *,
        new_initiator: NewInitiator | None = None,
        register: Register | None = None,
        launcher: Launcher | None = None,
    ) -> None:
        self.config = config
        self.machine: BootStub | None = None
        self._shared = shared
        self._resolver = resolver
        self._new_initiator = new_initiator
        self._register = register
        self._launcher = launcher or shared.spawner
        self._loop = asyncio.get_running_loop()
        self._log = logging.getLogger(f"deploy.stub.{config.name}")
        self._ended: asyncio.Future[tuple[int, str]] = self._loop.create_future()
        self._listens: asyncio.Future[StubRef] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._bus: Bus[AnyDeployMessage] | None = None
        self._gate: Gate[Effect] | None = None
        self._homes = Homes(config.folder.absolute())
        self._programs: Programs | None = None
        self._initiators: Initiators | None = None
        self._world: World | None = None
        self._guid = os.urandom(8).hex()

    @property
    def ref(self) -> StubRef:
        """Where it is reached; the address is "" before it listens."""
        address = self._bus.address if self._bus is not None else ""
        return StubRef(self.config.name, address, self.config.domain)

    def record(self, by: Literal["boot", "discovery"] = "boot") -> StubRecord:
        """For the directory."""
        ref = self.ref
        return StubRecord(ref.name, ref.address, ref.domain, self._guid, socket.gethostname(), os.getpid(), by)

    async def run(self) -> int:
        """Until it ends; returns the exit code, and has logged why if that is not 0."""
        code, reason = EXIT_OK, ""
        try:
            async with AsyncExitStack() as stack:
                await self._open(stack)
                code, reason = await self._ended
                if code == EXIT_OK:
                    await self._stop_what_ends()
        except _CANNOT as error:
            code, reason = EXIT_FAILED, str(error)
        if not self._listens.done():
            self._listens.cancel()
        if reason:
            self._log.error("%s", reason)
        return code

    async def listening(self) -> StubRef:
        """Returns when it takes commands. Raises asyncio.CancelledError when it ended before."""
        return await asyncio.shield(self._listens)

    def leave(self) -> None:
        """End; see `StubConfig.stop_managents`. May be called more than once."""
        self._end(EXIT_OK, "")

    # --- the way up and down -----------------------------------------------------------------------------------------

    async def _open(self, stack: AsyncExitStack) -> None:
        config, homes = self.config, self._homes
        homes.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        journal = Journal(homes.folder / "journal", self._shared.writer)
        stack.callback(journal.close)
        entries = journal.load()
        if journal.cut_bytes:
            self._log.warning("%s: cut off %d bytes of a write that was not finished", journal.path, journal.cut_bytes)
        managents, forgotten = restore(entries.items())
        homes.make()
        await self._sweep(managents)
        bmp = BmpServer(homes.folder)
        stack.callback(bmp.close)
        bus = self._bus = Bus(
            self._shared.context,
            deploy_codec(config.cluster_key),
            self._guid,
            f"tcp://{config.listen}",
            on_message=self._on_message,
            advertise_host=config.advertise,
        )
        stack.callback(bus.close)
        self._initiators = initiators = Initiators(
            bus.address, bus.send, self._shared.tree, self._new_initiator, self._take, self._log
        )
        stack.callback(initiators.close_all)
        settings = config.settings
        installer = Installer(homes, self._shared, settings, config.name)
        self._programs = programs = Programs(homes, self._shared, settings, installer, bmp, self._launcher, self._take)
        stack.callback(programs.close)
        world = World(self._resolver, settings.resolve_s, installer, programs, initiators, self._take, self._log)
        self._world = world
        stack.push_async_callback(world.close)
        stack.callback(self._stop)
        self._gate = Gate(journal, self._perform, partial(self._end, EXIT_FAILED))
        boot = this_boot()
        heard = marks_of(entries, boot)
        now = self._loop.time()
        self.machine = BootStub(self.ref, self._guid, settings, now, managents, forgotten, boot, heard)
        self._log.info("boot stub %s, domain %s, at %s", config.name, config.domain or "-", bus.address)
        if managents:
            self._log.info("%d managents are taken up again", len(managents))
        self._guarded(lambda stub: stub.start(self._loop.time()))
        for work in (self._keep_logs(), self._registered()):
            task = self._loop.create_task(work)
            stack.callback(task.cancel)
        if not self._listens.done():
            self._listens.set_result(self.ref)

    async def _sweep(self, managents: list[Managent]) -> None:
        """What an earlier incarnation began and did not acknowledge: its processes, then its folders."""
        homes = self._homes
        strangers = homes.strangers(one.path for one in managents)
        if not strangers and not managents:
            return
        living = {
            str(homes.work(one.path))
            for one in managents
            if one.run is not None and one.run.kind == "process" and is_same(one.run.pid, one.run.ticks, one.run.boot)
        }
        below = f"{homes.managents}/"
        await self._shared.strays.kill(lambda directory: directory.startswith(below) and directory not in living)
        for name in strangers:
            self._log.warning("%s is of a managent whose deployment was not finished: removed", homes.managents / name)
            await asyncio.to_thread(homes.remove_folder, name)

    async def _registered(self) -> None:
        """Until the directory has the record."""
        if self._register is None:
            return
        settings = self.config.settings
        pause_s = settings.register_min_s
        while True:
            try:
                await self._register(self.record())
                self._log.info("registered in the directory")
                return
            except NameInUse as error:
                self._end(EXIT_NAME_TAKEN, str(error))
                return
            except Exception as error:
                self._log.warning("not registered in the directory: %s; again in %g s", error, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, settings.register_max_s)

    async def _keep_logs(self) -> None:
        assert self._programs is not None
        while True:
            await asyncio.sleep(self.config.settings.log_look_s)
            await self._programs.bound_logs()

    async def _stop_what_ends(self) -> None:
        """Classes end with the process, so they are shut down; programs only if they are to be taken along. What they
        were is still in the journal: a class is made anew at the next start, a program is reported as ended."""
        if self._programs is None or self.machine is None:
            return
        stops = [
            self._programs.stop(one.path, one.managent.program.stop_s)
            for one in self.machine.managents.values()
            if one.run is not None and (one.run.kind == "class" or self.config.stop_managents)
        ]
        if stops:
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*stops, return_exceptions=True), LEAVE_WAIT_S)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._gate is not None:
            self._gate.close()

    def _end(self, code: int, reason: str) -> None:
        if not self._ended.done():
            self._ended.set_result((code, reason))
            self._stop()

    def _crash(self, error: Exception) -> None:
        self._log.error("a bug: the boot stub can't go on from here", exc_info=error)
        self._end(EXIT_BUG, f"ended by a bug ({type(error).__name__}: {error}); its traceback is above")

    # --- inputs ------------------------------------------------------------------------------------------------------

    def _on_message(self, sender: str, message: AnyDeployMessage) -> None:
        if isinstance(message, _FOR_MACHINE):
            self._take(Received(sender, message))
        elif self._initiators is not None:
            self._initiators.take(sender, message)

    def _take(self, news: Input | Ended) -> None:
        now = self._loop.time()
        self._guarded(lambda stub: stub.handle(now, news))

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        self._guarded(lambda stub: stub.tick(now) if stub.next_deadline() <= now else [])

    def _guarded(self, step: Callable[[BootStub], list[Effect]]) -> None:
        if self._ended.done() or self.machine is None or self._gate is None:
            return
        try:
            self._gate.put(step(self.machine))
            self._set_timer(self.machine.next_deadline())
        except Exception as error:
            self._crash(error)

    def _set_timer(self, deadline: float) -> None:
        """At the deadline, or where the timer stands, if that is sooner: looking in vain is cheaper than moving it."""
        if self._ended.done():
            return
        if self._timer is not None:
            if self._timer.when() <= deadline:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(max(deadline, self._loop.time() + MIN_PAUSE_S), self._tick)

    # --- effects -----------------------------------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        if self._ended.done():
            return
        assert self._world is not None
        assert self._bus is not None
        assert self._initiators is not None
        match effect:
            case Send(to, message):
                self._bus.send(to, message)
            case Step():
                self._world.perform(effect)
            case Charged(path, charge):
                self._initiators.charged(path, charge)
            case Note(level, text):
                self._log.log(_LEVELS[level], "%s", text)
            case Persist():
                raise AssertionError("the gate's own")
