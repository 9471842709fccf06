"""The process that starts programs for a boot stub's: small, with few files open. Standard library only.

Theory of operation. A new process begins as a copy of the table of open files of whoever makes it, and closes them one
by one as it executes: with the thousands of files of a process that has hundreds of boot stubs, or watches ten thousand
programs, that costs more than all the rest of its start (measured: 0.6 ms for 8,000). And whoever makes it stands still
until it executes. So it is made by this process, which does nothing else (deploy.stub.spawning has the other side).

It takes requests from a stream socket and answers them in order: `start` makes a program, our child, that leads a
session; `reap` waits for one that has ended, and until then its pid stays its own. It ends with the socket, and is
killed with the boot stub's process; what it started runs on.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import struct
import sys
from collections.abc import Sequence

HEAD = struct.Struct("=IBI")
"""Of a request: its number, START or REAP, bytes that follow."""
ANSWER = struct.Struct("=Iii")
"""The request's number; a pid, or a status as waitpid has it; errno, 0 for success."""
START, REAP = 1, 2
PID = struct.Struct("=i")
ANSWERS_AT_ONCE = 8
PR_SET_PDEATHSIG = 1
_DEFAULT = (signal.SIGPIPE, signal.SIGXFSZ)
"""Which Python ignores, and a program must not inherit so."""


def request_to_start(cwd: str, log: str, argv: Sequence[str], env: Sequence[str]) -> bytes:
    """`env`: NAME=VALUE. Raises ValueError for a zero byte in any of them: no process can have one."""
    parts = (cwd, log, str(len(argv)), *argv, *env)
    if any("\0" in part for part in parts):
        raise ValueError("embedded null byte")
    return os.fsencode("\0".join(parts))


def main(fd: int, parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return
    os.set_inheritable(fd, False)
    link = socket.socket(fileno=fd)
    nothing = os.open(os.devnull, os.O_RDONLY)
    begun = bytearray()
    while data := link.recv(1 << 18):
        begun += data
        at = 0
        answers: list[bytes] = []
        while len(begun) - at >= HEAD.size:
            number, what, size = HEAD.unpack_from(begun, at)
            end = at + HEAD.size + size
            if len(begun) < end:
                break
            body = bytes(begun[at + HEAD.size : end])
            at = end
            try:
                found, error = _start(body, nothing) if what == START else _reap(*PID.unpack(body)), 0
            except OSError as trouble:
                found, error = 0, trouble.errno or errno.EIO
            answers.append(ANSWER.pack(number, found, error))
            if len(answers) == ANSWERS_AT_ONCE:
                link.sendall(b"".join(answers))
                answers.clear()
        if answers:
            link.sendall(b"".join(answers))
        del begun[:at]


def _start(body: bytes, nothing: int) -> int:
    """The pid. Raises OSError as execve says it."""
    cwd, log_path, count, *words = body.split(b"\0")
    argv = words[: int(count)]
    env = dict(word.split(b"=", 1) for word in words[int(count) :])
    os.chdir(cwd)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, nothing, 0), (os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
        return _spawn(argv, env, actions)
    finally:
        os.close(log)


def _spawn(argv: list[bytes], env: dict[bytes, bytes], actions: list[tuple[int, int, int]]) -> int:
    """A plain name is looked up in PATH of `env`."""
    name = argv[0]
    places = [b""] if b"/" in name else [folder + b"/" for folder in env.get(b"PATH", b"").split(b":") if folder]
    error = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    for place in places:
        try:
            return os.posix_spawn(place + name, argv, env, file_actions=actions, setsid=True, setsigdef=_DEFAULT)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as other:
            error = error if error.errno != errno.ENOENT else other  # type: ignore[assignment]
    raise error


def _reap(pid: int) -> int:
    return os.waitpid(pid, 0)[1]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
