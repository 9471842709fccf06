"""Running a program of an installation to its end, with a bound on its time and on what is kept of its output.

Theory of operation. Standard output and error come by pipes that the loop reads, so nothing is written to the disk
however much it says; the last lines of both together are kept for reports, and of standard output what the program
tells the boot stub (`MANAGENT_…=` lines). When its time is over, or the caller gives up, the whole process group gets
TERM, and KILL after a grace. What it left running in its group is killed when it ends: an installation starts nothing
that stays.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.stub.processes import Watch, reap, signal_group, spawn

TAIL_LINES = 20
LINE_CHARS = 1000
READ_BYTES = 1 << 16
READS_AT_END = 64
KILL_AFTER_S = 1.0
SAYS = "MANAGENT_"
MAX_SAID = 64


@dataclass(frozen=True, slots=True)
class Ran:
    """`problem`: "" when it ended with exit status 0. `said`: the last value of each `MANAGENT_…=` line on standard
    output. `last`: the last line there that is not empty. `tail`: the last lines of all output."""

    problem: str
    said: Mapping[str, str]
    last: str
    tail: tuple[str, ...]


async def run_bounded(argv: Sequence[str], env: Mapping[str, str], cwd: Path, limit_s: float) -> Ran:
    """Raises OSError, ValueError when it can't be started. Killed when the caller is cancelled."""
    out_read, out_write = os.pipe()
    try:
        err_read, err_write = os.pipe()
    except OSError:
        os.close(out_read)
        os.close(out_write)
        raise
    try:
        pid = spawn(argv, env, cwd, out_write, err_write)
    except BaseException:
        os.close(out_read)
        os.close(err_read)
        raise
    finally:
        os.close(out_write)
        os.close(err_write)
    output = _Output(out_read, err_read)
    ended = asyncio.Event()
    watch = Watch(pid, ended.set)
    problem = ""
    try:
        try:
            await asyncio.wait_for(ended.wait(), limit_s)
        except TimeoutError:
            problem = f"did not end within {limit_s:g} s"
            signal_group(pid, signal.SIGTERM)
            try:
                await asyncio.wait_for(ended.wait(), KILL_AFTER_S)
            except TimeoutError:
                signal_group(pid, signal.SIGKILL)
                await ended.wait()
    finally:
        watch.close()
        signal_group(pid, signal.SIGKILL)
        status = reap(pid)  # after KILL this does not take long
        output.close()
    return Ran(problem or ("" if status == "exit status 0" else status), output.said, output.last, tuple(output.tail))


class _Output:
    def __init__(self, out: int, err: int) -> None:
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.said: dict[str, str] = {}
        self.last = ""
        self._loop = asyncio.get_running_loop()
        self._begun = {out: b"", err: b""}
        self._out = out
        for fd in (out, err):
            os.set_blocking(fd, False)
            self._loop.add_reader(fd, self._read, fd)

    def close(self) -> None:
        """Take what is there, and no more."""
        for fd in list(self._begun):
            for _ in range(READS_AT_END):
                if fd not in self._begun or not self._read(fd):
                    break
            self._end(fd)

    def _read(self, fd: int) -> bool:
        """True when there may be more."""
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._end(fd)
            return False
        *lines, rest = (self._begun[fd] + data).split(b"\n")
        for line in lines:
            self._line(fd, line)
        self._begun[fd] = rest[: 4 * LINE_CHARS]
        return True

    def _end(self, fd: int) -> None:
        rest = self._begun.pop(fd, None)
        if rest is not None:
            self._line(fd, rest)
            self._loop.remove_reader(fd)
            os.close(fd)

    def _line(self, fd: int, data: bytes) -> None:
        line = data[: 4 * LINE_CHARS].decode("utf-8", "replace").strip()
        if not line:
            return
        self.tail.append(line[:LINE_CHARS])
        if fd == self._out:
            self.last = line
            name, equals, value = line.partition("=")
            if equals and name.startswith(SAYS) and (name in self.said or len(self.said) < MAX_SAID):
                self.said[name] = value
