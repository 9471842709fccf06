"""One instance, as its supervisor has it: files, bounded log, the fork that becomes it. Standard library only.

Theory of operation. On disk, below `instances/<name>/`: `state.json` (the record: pid, start time, boot id, attempt,
how it ended), `log` and `log.old`; and, for the instance itself, `work/` (its cwd and home) and `tmp/`. The record is
written before there is a process, so one that never ended is one to clean up after. It is renamed into place, not
synced: after a power failure a record that can't be read says "lost", which is what it would have said.

The child reports through a pipe that closes itself on exec: end of file means that the entry point executes; otherwise
it carries the errno and the step that failed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import time

TYPE_CHECKING = False  # importing `typing` would cost the supervisor's start a tenth
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Message = dict[str, Any]
    RequestId = tuple[int, int]  # connection, number

LOG_TAIL_LINES, LOG_TAIL_BYTES = 10, 2048
INSTANCES, RECORD, LOG, OLD_LOG, WORK, TEMP = "instances", "state.json", "log", "log.old", "work", "tmp"
STARTING, RUNNING, ENDING, ENDED = "starting", "running", "ending", "ended"
READ_BYTES = 64 * 1024  # of output at a time: a flooding instance delays the others by no more
PR_SET_PDEATHSIG = 1
LIMITS = {
    "memory": resource.RLIMIT_AS,
    "file": resource.RLIMIT_FSIZE,
    "files": resource.RLIMIT_NOFILE,
    "processes": resource.RLIMIT_NPROC,
    "core": resource.RLIMIT_CORE,
}

libc = ctypes.CDLL(None)


class Log:
    """A file and the one before it, half of the bound each. Bytes that find no room on disk are lost."""

    def __init__(self, directory: str, max_bytes: int) -> None:
        self.path, self.old = os.path.join(directory, LOG), os.path.join(directory, OLD_LOG)
        self.half = max_bytes // 2
        self.fd = self._open()
        self.size = os.fstat(self.fd).st_size
        self.written = 0

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, data: bytes) -> None:
        data = data[-self.half :]
        with contextlib.suppress(OSError):
            if self.size + len(data) > self.half:
                os.rename(self.path, self.old)
                fresh = self._open()
                os.close(self.fd)
                self.fd, self.size = fresh, 0
            done = os.write(self.fd, data)
            self.size += done
            self.written += done


def read_log(directory: str, max_bytes: int) -> bytes:
    """The newest `max_bytes` of output. The newer file is opened first: should it be rotated meanwhile, it is met again
    under its old name, and known by its inode."""
    data, seen = b"", set()
    for path in (os.path.join(directory, name) for name in (LOG, OLD_LOG)):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), open(path, "rb") as file:
            stat = os.fstat(file.fileno())
            if stat.st_ino not in seen:
                seen.add(stat.st_ino)
                file.seek(max(0, stat.st_size - (max_bytes - len(data))))
                data = file.read(max_bytes - len(data)) + data
    return data


class Instance:
    """Its record (what the file and the wire carry) and, while it runs, what it takes to watch it."""

    def __init__(self, home: str, attempt: int) -> None:
        self.home, self.name = home, os.path.basename(home)
        self.state = STARTING
        self.record: Message = {
            "instance": self.name,
            "attempt": attempt,
            "pid": 0,
            "start_time": 0,
            "boot_id": "",
            "started_at": time.time(),
            "ended": False,
            "code": None,
            "signal": None,
            "lost": False,
            "log_tail": "",
        }
        self.before: Instance | None = None  # the ended attempt that stands again if this start fails
        self.log: Log | None = None
        self.output = self.exec_result = -1
        self.starts: list[RequestId] = []  # to answer
        self.stops: list[RequestId] = []
        self.kill_deadline = 0.0

    @classmethod
    def from_disk(cls, home: str) -> Instance:
        """As ENDED; whether that is true is in the record."""
        one = cls(home, 0)
        one.state = ENDED
        with contextlib.suppress(OSError, ValueError, TypeError), open(os.path.join(home, RECORD)) as file:
            one.record |= json.load(file)
        one.record["instance"] = one.name
        return one

    @property
    def pid(self) -> int:
        return int(self.record["pid"])

    @property
    def live(self) -> bool:
        """May its processes run on?"""
        return self.state in (STARTING, RUNNING)

    def save(self) -> None:
        path = os.path.join(self.home, RECORD)
        with open(path + ".new", "w") as file:
            json.dump(self.record, file)
        os.rename(path + ".new", path)

    def signal(self, number: int) -> None:
        """To the process group. Only while the main process is not reaped: until then its pid can't be another's."""
        with contextlib.suppress(PermissionError):  # it has another user now: `stop` will say that it does not end
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                os.kill(self.pid, number)  # it has not made its group yet

    def ended(self, *, code: int | None = None, signal: int | None = None, lost: bool = False) -> None:
        written = self.log.written if self.log else LOG_TAIL_BYTES
        tail: list[str] = []
        with contextlib.suppress(OSError):
            tail = read_log(self.home, min(LOG_TAIL_BYTES, written)).decode("utf-8", "replace").splitlines()
        self.record |= {"code": code, "signal": signal, "lost": lost, "log_tail": "\n".join(tail[-LOG_TAIL_LINES:])}
        self.record["ended"] = True

    def read_output(self) -> int:
        """From the pipe to the log, once: how many bytes. 0 at its end; -1 when there is nothing now."""
        assert self.log
        try:
            data = os.read(self.output, READ_BYTES)
        except BlockingIOError:
            return -1
        self.log.write(data)
        return len(data)

    def close(self) -> None:
        if self.log:
            os.close(self.log.fd)
        for fd in (self.output, self.exec_result):
            if fd >= 0:
                os.close(fd)
        self.log, self.output, self.exec_result = None, -1, -1

    def discard(self) -> None:
        """Of an instance that never ran: nothing of its own can be in its directories."""
        for name in (RECORD, RECORD + ".new", LOG):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self.home, name))
        for name in (WORK, TEMP, ""):
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(self.home, name))

    def spawn(self, message: Message, log_bytes: int) -> None:
        """Fork. Raises OSError; what was opened until then is for `close`."""
        for directory in (self.home, os.path.join(self.home, WORK), os.path.join(self.home, TEMP)):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        self.save()
        self.log = Log(self.home, log_bytes)
        self.output, output = os.pipe()
        os.set_blocking(self.output, False)
        try:
            self.exec_result, exec_result = os.pipe()
        except OSError:
            os.close(output)
            raise
        parent = os.getpid()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self.record["pid"] = os.fork()
            if self.pid == 0:
                self._become(message, parent, output, exec_result)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(output)
            os.close(exec_result)

    def _become(self, message: Message, parent: int, output: int, exec_result: int) -> NoReturn:
        """In the child, signals blocked. All other file descriptors close themselves on exec."""
        step = "prepare"
        try:
            signal.set_wakeup_fd(-1)  # it is the supervisor's
            for which in ("SIGCHLD", "SIGTERM", "SIGINT", "SIGHUP", "SIGPIPE", "SIGXFSZ"):
                signal.signal(getattr(signal, which), signal.SIG_DFL)
            os.setsid()
            libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(127)  # the supervisor died before the kernel was told
            null = os.open(os.devnull, os.O_RDONLY)
            for target, source in enumerate((null, output, output)):
                os.dup2(source, target)
            os.chdir(os.path.join(self.home, WORK))
            os.umask(0o022)
            step = "limit"
            for key, value in message["limits"].items():
                hard = resource.getrlimit(LIMITS[key])[1]
                value = value if hard == resource.RLIM_INFINITY else min(value, hard)
                resource.setrlimit(LIMITS[key], (value, value))
            step = "exec"
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.execve(message["entrypoint"], [message["entrypoint"]], message["environment"])
        except Exception as error:
            said = error.errno if isinstance(error, OSError) else None
            other = errno.ENOMEM if isinstance(error, MemoryError) else errno.EINVAL
            os.write(exec_result, f"{said or other} {step}".encode())
        finally:
            os._exit(127)
