"""BMP, the boot stub's side: a Unix socket for the programs of its managents (HPL-2001-321, 4.3).

The protocol: lines of JSON, each at most MAX_LINE_BYTES, ended by a newline.

    program -> boot stub    {"hello": "/site/rack3/node7", "pid": 4711, "active": false}
                            first, with MANAGENT_ID, its own pid, and whether it is working
    boot stub -> program    {"do": "activate", "n": 1}                      start work, or go on
                            {"do": "deactivate", "n": 2}                    come to rest, lose nothing
    program -> boot stub    {"done": 2}                                     so it is
                            {"failed": 2, "reason": "…"}                    it can't
    boot stub -> program    {"refused": "…"}                                then the connection is closed

A program connects to MANAGENT_SOCKET, and again when the connection breaks (the boot stub was restarted): what it was
told and has not acknowledged is told again, with the same or another `n`; and when it is active and should be passive,
or the other way round, it is told so. `deploy.bmp` does all that for Python.

Theory of operation. The system says who is at the other end (SO_PEERCRED): only the process that was started for that
managent, those in its session, and its descendants are heard. A newer connection of a managent replaces the older one.
A connection that says nothing for `HELLO_S`, or a line too long, or no JSON, is closed. The socket is opened when the
first program needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blake3

from deploy.stub.processes import belongs_to

MAX_LINE_BYTES = 64 * 1024
MAX_SOCKET_PATH = 100
"""Bytes: the system takes 107."""
MAX_SILENT = 256
"""Connections that have not said hello."""
HELLO_S = 5.0
MAX_REASON_CHARS = 500
BACKLOG = 1024
_CREDENTIALS = struct.Struct("iII")


class NotDone(Exception):
    """A command was not acknowledged. `silent`: the program did not answer at all."""

    def __init__(self, reason: str, silent: bool) -> None:
        super().__init__(reason)
        self.silent = silent


@dataclass(slots=True, eq=False)
class _Seat:
    """A managent whose program may connect. `active`: what it should be, None before it was told the first time.
    `waiting`: the future of the answer to what it is told now."""

    pid: int
    active: bool | None
    line: _Line | None = None
    number: int = 0
    verb: str = ""
    waiting: asyncio.Future[None] | None = None
    hello: bool = field(default=False)


class BmpServer:
    """`folder`: of the boot stub. All on the loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop = asyncio.get_running_loop()
        self._seats: dict[str, _Seat] = {}
        self._lines: set[_Line] = set()
        self._silent = 0
        self._server: asyncio.AbstractServer | None = None
        self._opening = asyncio.Lock()
        self._path = ""
        self.refused = 0

    async def listening(self) -> str:
        """The socket's path; opens it if it is not open. Raises OSError."""
        async with self._opening:
            if self._server is None:
                path = _socket_path(self._folder)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                self._server = await self._loop.create_unix_server(lambda: _Line(self), path, backlog=BACKLOG)
                self._path = path
        return self._path

    def expect(self, path: str, pid: int, active: bool | None) -> None:
        """The program of this managent is this process; None: just started."""
        self._seats[path] = _Seat(pid, active)

    def forget(self, path: str) -> None:
        seat = self._seats.pop(path, None)
        if seat is not None:
            if seat.line is not None:
                seat.line.close()
            if seat.waiting is not None and not seat.waiting.done():
                seat.waiting.set_exception(NotDone("its program ended", silent=False))

    async def tell(self, path: str, verb: str, limit_s: float) -> None:
        """Returns when the program has done it. Raises NotDone."""
        seat = self._seats[path]
        seat.number += 1
        seat.verb = verb
        waiting = seat.waiting = self._loop.create_future()
        self._pass_on(seat)
        try:
            await asyncio.wait_for(waiting, limit_s)
        except TimeoutError:
            why = "did not say hello" if not seat.hello else "did not answer" if seat.line else "is not connected"
            raise NotDone(f"its program {why} over BMP within {limit_s:g} s", silent=True) from None
        finally:
            if seat.waiting is waiting:
                seat.waiting = None
        seat.active = verb == "activate"

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
        for line in list(self._lines):
            line.close()

    # --- lines ---------------------------------------------------------------------------------------------------

    def connected(self, line: _Line) -> str:
        """ "" or why it is refused."""
        self._lines.add(line)
        self._silent += 1
        return "too many connections that say nothing" if self._silent > MAX_SILENT else ""

    def lost(self, line: _Line) -> None:
        self._lines.discard(line)
        if not line.path:
            self._silent -= 1
        seat = self._seats.get(line.path)
        if seat is not None and seat.line is line:
            seat.line = None

    def hear(self, line: _Line, said: dict[str, Any]) -> str:
        """ "" or why the connection is refused."""
        if not line.path:
            return self._greet(line, said)
        seat = self._seats.get(line.path)
        if seat is None or seat.line is not line or seat.waiting is None or seat.waiting.done():
            return ""
        if said.get("done") == seat.number:
            seat.waiting.set_result(None)
        elif said.get("failed") == seat.number:
            seat.waiting.set_exception(NotDone(f"{str(said.get('reason', ''))[:MAX_REASON_CHARS]}", silent=False))
        return ""

    def _greet(self, line: _Line, said: dict[str, Any]) -> str:
        path = said.get("hello")
        seat = self._seats.get(path) if isinstance(path, str) else None
        if seat is None or not isinstance(path, str):
            return f"no program of a managent {str(path)[:100]!r} is expected here"
        if not belongs_to(line.peer, seat.pid):
            return f"process {line.peer} is none of managent {path}"
        if seat.line is not None:
            seat.line.close()
        line.path, seat.line, seat.hello = path, line, True
        self._silent -= 1
        if seat.waiting is None and isinstance(said.get("active"), bool) and seat.active not in (None, said["active"]):
            seat.number += 1
            line.say({"do": "activate" if seat.active else "deactivate", "n": seat.number})
        self._pass_on(seat)
        return ""

    def _pass_on(self, seat: _Seat) -> None:
        if seat.line is not None and seat.waiting is not None and not seat.waiting.done():
            seat.line.say({"do": seat.verb, "n": seat.number})


class _Line(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: BmpServer) -> None:
        self.path = ""
        self.peer = 0
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._begun = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        peer = transport.get_extra_info("socket")
        self.peer = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0]
        self._timer = asyncio.get_running_loop().call_later(HELLO_S, self._too_late)
        refused = self._server.connected(self)
        if refused:
            self._refuse(refused)

    def data_received(self, data: bytes) -> None:
        *lines, self._begun = (self._begun + data).split(b"\n")
        if len(self._begun) > MAX_LINE_BYTES or any(len(line) > MAX_LINE_BYTES for line in lines):
            self._refuse(f"expected lines of at most {MAX_LINE_BYTES} bytes")
            return
        for line in lines:
            try:
                said = json.loads(line)
            except (ValueError, RecursionError):
                said = None
            refused = self._server.hear(self, said) if isinstance(said, dict) else "expected JSON objects, one a line"
            if refused:
                self._refuse(refused)
                return

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._server.lost(self)

    def say(self, message: dict[str, Any]) -> None:
        if self._transport is not None:
            self._transport.write(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _too_late(self) -> None:
        if not self.path:
            self._refuse(f"expected a hello within {HELLO_S:g} s")

    def _refuse(self, reason: str) -> None:
        self._server.refused += 1
        self.say({"refused": reason})
        self.close()


def _socket_path(folder: Path) -> str:
    """In the folder; where that path is too long for a socket, in a private folder of the user among the temporary
    ones. Raises OSError."""
    path = folder / "bmp.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return str(path)
    private = Path(tempfile.gettempdir()) / f"bootstub-{os.getuid()}"
    private.mkdir(mode=0o700, exist_ok=True)
    found = os.lstat(private)
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"expected {private} to be a folder of user {os.getuid()} alone")
    return str(private / f"{blake3.blake3(os.fsencode(folder)).hexdigest(8)}.sock")
