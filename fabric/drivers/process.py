"""Driver `process`: an instance is a supervised process. Needs no root.

Theory of operation. The agent's half. The instances are children of a *supervisor* (`supervisor.py`), one process for
each agent, started when it is first needed; it outlives the agent, so instances do. This half connects to it, passes on
commands, and turns what it says into `Running`, `Exited` and `StartFailed`. Every command may be repeated without harm,
so when the connection breaks during one, this half connects again (starting the next supervisor, which cleans up after
a dead one) and repeats it. When it breaks while instances run, it does so at once, and reports what was lost.

In the state directory: `driver.lock` (one agent), `supervisor.lock` (one supervisor), `supervisor.sock`,
`supervisor.err` (what it complained of), and `instances/<name>/` (`instance.py` says what is in there). With a
`lifeline_fd`, the reading end of a pipe that nobody writes to, the supervisor kills all instances and leaves when the
pipe's last writing end is closed.

Limits are the kernel's rlimits: memory is address space a process, disk is size a file. There is no quota on a
directory, and no share of a processor is enforced. A service manager that kills an agent's whole control group on stop
must be told not to (systemd: KillMode=process), or instances end with their agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
from collections.abc import Coroutine
from pathlib import Path

from fabric.drivers.base import DriverError, Exited, Launch, OnExit, Running, StartFailed, checked_launch, checked_name
from fabric.drivers.instance import INSTANCES, TEMP, WORK, read_log
from fabric.drivers.lines import MAX_LINE_BYTES
from fabric.drivers.link import Link, LinkLost, Message, NoAnswer, encode, spawn_supervisor
from fabric.drivers.procfs import MARK, hold_lock, sign_lock
from fabric.drivers.supervisor import KILL_WAIT_S, PROTOCOL, REMOVED

MIB = 1024 * 1024
LOG_BYTES = 1 * MIB
LINGER_S = 5.0
ANSWER_WAIT_S = 30.0
MAX_GRACE_S = 3600.0
CONNECT_TRIES = 4
RECOVER_WAITS_S = (0.0, 0.1, 0.5, 1.0, 2.0)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What execve says of the image; everything else is the node's trouble.
IMAGE_ERRORS = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
    errno.ELIBBAD, errno.EINVAL, errno.E2BIG, errno.ETXTBSY, errno.ENAMETOOLONG,
}  # fmt: skip


class ProcessDriver:
    name = "process"
    real = True

    def __init__(
        self,
        state_dir: Path,
        on_exit: OnExit,
        *,
        lifeline_fd: int | None = None,
        log_bytes: int = LOG_BYTES,
        linger_s: float = LINGER_S,
    ) -> None:
        """`log_bytes`: bound of each instance's log, half a file. `linger_s`: how long a supervisor with nothing to do
        waits for an agent."""
        self._state = Path(os.path.realpath(state_dir))
        self._instances = self._state / INSTANCES
        self._on_exit = on_exit
        self._lifeline_fd, self._log_bytes, self._linger_s = lifeline_fd, log_bytes, linger_s
        self._lock: int | None = None
        self._link: Link | None = None
        self._connecting = asyncio.Lock()
        self._records: list[Message] = []  # of the list that is being read
        self._running: dict[str, Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # --- the interface -------------------------------------------------------------------------------------------

    async def open(self) -> list[Running | Exited]:
        try:
            self._instances.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = hold_lock(str(self._state / "driver.lock"), 0.0)
        except OSError as error:
            raise DriverError(f"cannot use {self._state} as state directory: {error}") from None
        if isinstance(lock, str):
            raise DriverError(
                f"another agent, pid {lock}, uses the state directory {self._state}: stop it, or name another directory"
            )
        sign_lock(lock)
        self._lock = lock
        names = os.listdir(self._instances)
        for name in names:
            if name.startswith(REMOVED):
                self._in_background(self._delete(self._instances / name))
        if all(name.startswith(REMOVED) or not (self._instances / name).is_dir() for name in names):
            return []  # nobody to adopt; a supervisor, if there is one, is met at the first start
        try:
            await self._connected()
        except DriverError:
            await self.close()
            raise
        return [_exited(record) if record["ended"] else self._running_of(record) for record in self._records]

    async def start(self, launch: Launch) -> Running:
        checked_launch(launch)
        home = self._instances / launch.instance
        limits = launch.limits
        request = {
            "op": "start",
            "instance": launch.instance,
            "attempt": launch.attempt,
            "entrypoint": str(launch.entrypoint),
            "environment": {
                "PATH": PATH,
                "HOME": str(home / WORK),
                "TMPDIR": str(home / TEMP),
                **launch.environment,
                MARK: str(home / WORK),
                "FABRIC_IMAGE_ROOT": str(launch.root),
            },
            "limits": {
                "memory": limits.memory_mib * MIB,
                "file": limits.disk_mib * MIB,
                "files": limits.open_files,
                "core": 0,
                **({} if limits.processes is None else {"processes": limits.processes}),
            },
        }
        size = len(encode(id=2**53, **request))
        if size > MAX_LINE_BYTES:
            raise StartFailed(f"the environment is too large: {size} bytes of at most {MAX_LINE_BYTES}", "image")
        try:
            answer = await self._call(ANSWER_WAIT_S, **request)
        except NoAnswer as error:
            # It hangs before its first instruction, say on a dead file server. It must not come up later.
            self._in_background(self.stop(launch.instance, 0.0))
            raise StartFailed(str(error), "node") from error
        except DriverError as error:
            raise StartFailed(str(error), "node") from error
        if "errno" in answer:
            raise explain(launch, int(answer["errno"]), str(answer["step"]))
        if "error" in answer:
            raise StartFailed(str(answer["error"]), "node")
        running = self._running_of(answer["ok"])
        if not answer["ok"]["ended"]:
            self._running[launch.instance] = running
        return running

    async def stop(self, instance: str, grace_s: float) -> None:
        checked_name(instance)
        if not 0 <= grace_s <= MAX_GRACE_S:
            raise ValueError(f"expected grace_s from 0 to {MAX_GRACE_S:g}, found {grace_s} for {instance}")
        if (self._instances / instance).exists():
            answer = await self._call(
                grace_s + 2 * KILL_WAIT_S + ANSWER_WAIT_S, op="stop", instance=instance, grace_s=grace_s
            )
            if "error" in answer:
                raise DriverError(f"{instance} does not end: {answer['error']}")

    async def remove(self, instance: str) -> None:
        checked_name(instance)
        if (self._instances / instance).exists():
            answer = await self._call(ANSWER_WAIT_S, op="remove", instance=instance)
            if "error" in answer:
                raise DriverError(str(answer["error"]))
            await self._delete(Path(answer["ok"]["trash"]))

    def log(self, instance: str, max_bytes: int) -> bytes:
        return read_log(str(self._instances / checked_name(instance)), max_bytes)

    async def close(self) -> None:
        lock, self._lock = self._lock, None  # nothing connects any more
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._link:
            await self._link.close()
        self._link = None
        if lock is not None:
            os.close(lock)

    # --- the supervisor ------------------------------------------------------------------------------------------

    async def _call(self, timeout_s: float, **request: object) -> Message:
        for _ in range(CONNECT_TRIES):
            link = await self._connected()
            with contextlib.suppress(LinkLost):
                return await link.call(timeout_s, **request)
        raise DriverError(f"the supervisor of {self._state} went {CONNECT_TRIES} times during one {request['op']!r}")

    async def _connected(self) -> Link:
        """The link; where there is none, a new one, and what changed meanwhile is reported. Raises DriverError."""
        async with self._connecting:
            if self._lock is None:
                raise DriverError("the driver is not open")
            if self._link and not self._link.lost:
                return self._link
            for _ in range(CONNECT_TRIES):
                link = await Link.connect(self._state, self._event, self._lost)
                if link is None:
                    await spawn_supervisor(self._state, self._lifeline_fd, self._log_bytes, self._linger_s)
                    continue
                self._records = []
                try:
                    hello = (await link.call(ANSWER_WAIT_S, op="list"))["ok"]
                except LinkLost:
                    continue  # it was just leaving
                except DriverError:
                    await link.close()
                    raise
                if hello["protocol"] != PROTOCOL:
                    await link.close()
                    found = f"speaks protocol {hello['protocol']}, this agent {PROTOCOL}"
                    raise DriverError(f"the supervisor, pid {hello['pid']}, {found}: end it (TERM) to go on")
                if self._lock is None:
                    await link.close()
                    raise DriverError("the driver was closed")
                self._link = link
                self._settle()
                return link
            raise DriverError(f"no supervisor of {self._state} stays: see {self._state / 'supervisor.err'}")

    def _settle(self) -> None:
        """Compare what ran when the last link broke with what this one listed."""
        before, self._running = self._running, {}
        listed = {record["instance"]: record for record in self._records}
        for name, record in listed.items():
            if not record["ended"]:
                self._running[name] = self._running_of(record)
        for name, running in before.items():
            if name not in listed:
                self._on_exit(Exited(name, running.attempt, None, None, True, ""))
            elif listed[name]["ended"]:
                self._on_exit(_exited(listed[name]))

    def _event(self, message: Message) -> None:
        if message["event"] == "record":
            self._records.append(message)
        elif self._lock is not None:
            self._running.pop(message["instance"], None)
            self._on_exit(_exited(message))

    def _lost(self, link: Link) -> None:
        if link is self._link and self._running:
            self._in_background(self._recover())

    async def _recover(self) -> None:
        for wait_s in RECOVER_WAITS_S:
            await asyncio.sleep(wait_s)
            with contextlib.suppress(DriverError):
                await self._connected()
                return
        # Main processes die with their supervisor, so this is known even if no other one can be started.
        gone, self._running = self._running, {}
        for name, running in gone.items():
            self._on_exit(Exited(name, running.attempt, None, None, True, ""))

    def _running_of(self, record: Message) -> Running:
        directory = str(self._instances / record["instance"] / WORK)
        return Running(record["instance"], record["attempt"], record["pid"], record["started_at"], directory)

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._background_done)

    def _background_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, DriverError):
            raise error  # to the loop's exception handler

    async def _delete(self, directory: Path) -> None:
        """In a thread: an instance may have left very much. What can't be deleted is tried again by the next `open`."""
        await asyncio.get_running_loop().run_in_executor(None, shutil.rmtree, directory, True)


def _exited(record: Message) -> Exited:
    return Exited(
        record["instance"], record["attempt"], record["code"], record["signal"], record["lost"], record["log_tail"]
    )


def explain(launch: Launch, number: int, step: str) -> StartFailed:
    """What errno `number` at `step` means for this launch, and whose fault it is."""
    entry, said = launch.entrypoint, os.strerror(number)
    if step != "exec" or number not in IMAGE_ERRORS:
        return StartFailed(f"cannot {step} the process of {launch.instance}: {said}", "node")
    if not launch.root.is_dir():
        return StartFailed(f"the unpacked image {launch.root} is not there", "node")
    if number == errno.ENOENT and entry.is_file():
        with contextlib.suppress(OSError), entry.open("rb") as file:
            first = file.readline(256)
            if first.startswith(b"#!"):
                interpreter = first[2:].decode("utf-8", "replace").strip()
                return StartFailed(f"the entry point {entry} needs {interpreter!r}, which does not exist here", "image")
        return StartFailed(f"the entry point {entry} needs a loader that does not exist here", "image")
    if number == errno.ENOENT:
        said = "no such file in the image"
    elif number == errno.EACCES and entry.is_dir():
        said = "it is a directory"
    elif number == errno.EACCES and entry.is_file() and not os.access(entry, os.X_OK):
        said = f"it is not executable (mode {entry.stat().st_mode & 0o7777:o})"
    elif number == errno.ENOEXEC:
        said = "neither a program for this machine nor a script that begins with #!"
    elif number == errno.E2BIG:
        said = "its environment is larger than the system takes"
    return StartFailed(f"cannot execute the entry point {entry}: {said}", "image")
