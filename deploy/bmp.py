"""BMP for programs: how a managent written in Python hears `activate` and `deactivate` from its boot stub.

Standard library alone, one file: a program may also carry a copy. In other languages, speak the lines yourself; they
are these, JSON objects ended by a newline, over the Unix socket at $MANAGENT_SOCKET:

    you say    {"hello": "<$MANAGENT_ID>", "pid": <your pid>, "active": false}     first, after every connect
    you hear   {"do": "activate", "n": 1}       start work, or go on
               {"do": "deactivate", "n": 2}     come to rest and lose nothing
    you say    {"done": 2}                      once it is so; or {"failed": 2, "reason": "…"}

A program works after its first `activate`. When the connection breaks, the boot stub is being restarted: go on with
what you were doing, forget what you have not acknowledged, connect again and say what you are. The same command may be
heard twice; acknowledge it twice. Whoever has control "signals" in its configuration instead of "bmp" needs none of
this: its process group is stopped and continued.

A program that works in rounds asks between two of them, where nothing is half done:

    from deploy.bmp import Link

    link = Link()                     # from the environment; outside of a boot stub it is always active
    while True:
        link.checkpoint()             # returns at once while active; deactivated, acknowledges, and waits here
        work_one_round()

A program with threads of its own gives functions, which are called on a thread of the link; what they raise is the
boot stub's answer:

    Link(activate=server.resume, deactivate=server.drain).start()
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

MAX_LINE_BYTES = 64 * 1024
RETRY_MIN_S, RETRY_MAX_S = 0.05, 2.0


class Link:
    """`socket_path`, `managent`: from the environment when they are not given. With neither of the functions, use
    `checkpoint`."""

    def __init__(
        self,
        *,
        activate: Callable[[], object] | None = None,
        deactivate: Callable[[], object] | None = None,
        socket_path: str | None = None,
        managent: str | None = None,
    ) -> None:
        self._path = os.environ.get("MANAGENT_SOCKET", "") if socket_path is None else socket_path
        self._managent = os.environ.get("MANAGENT_ID", "") if managent is None else managent
        self._functions = {"activate": activate, "deactivate": deactivate}
        self._by_functions = activate is not None or deactivate is not None
        self._changed = threading.Condition()
        self._wanted = not self._path  # active; without a boot stub there is nobody to wait for
        self._owed: int | None = None  # a deactivate that the next checkpoint acknowledges
        self._resting = False  # in a checkpoint
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None
        self._closed = False

    def start(self) -> Link:
        """Connect, and stay connected, on a thread of its own. Called by the first `checkpoint`, too."""
        if self._thread is None and self._path:
            self._thread = threading.Thread(target=self._run, name="bmp", daemon=True)
            self._thread.start()
        return self

    def checkpoint(self, timeout_s: float | None = None) -> bool:
        """Between two pieces of work: True at once while the managent is active. When it was deactivated, says so to
        the boot stub and waits until it is activated again. False when that takes longer than `timeout_s`."""
        self.start()
        with self._changed:
            if self._owed is not None:
                owed, self._owed = self._owed, None
                self._say({"done": owed})
            self._resting = True
            try:
                return self._changed.wait_for(lambda: self._wanted or self._closed, timeout_s) and self._wanted
            finally:
                self._resting = False

    @property
    def active(self) -> bool:
        """What the boot stub wants."""
        return self._wanted

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            if self._socket is not None:
                self._socket.close()

    # --- the link's own thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        retry_s = RETRY_MIN_S
        while not self._closed:
            try:
                self._serve()
                retry_s = RETRY_MIN_S
            except (OSError, ValueError):
                retry_s = min(2 * retry_s, RETRY_MAX_S)
            with self._changed:
                self._socket = None
                if self._owed is not None:  # nobody was told that it rests, so it does not
                    self._owed, self._wanted = None, True
                    self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed, retry_s)

    def _serve(self) -> None:
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(self._path)
            with self._changed:
                self._socket = link
                active = self._wanted and self._owed is None
                self._say({"hello": self._managent, "pid": os.getpid(), "active": active})
            with link.makefile("rb") as lines:
                while line := lines.readline(MAX_LINE_BYTES):
                    self._hear(json.loads(line))

    def _hear(self, message: dict[str, Any]) -> None:
        verb, number = message.get("do"), message.get("n")
        if verb not in self._functions or not isinstance(number, int):
            return
        if self._by_functions and not self._called(number, self._functions[verb]):
            return
        with self._changed:
            self._wanted = verb == "activate"
            self._owed = None
            if self._by_functions or self._wanted or self._resting:
                self._say({"done": number})
            else:
                self._owed = number
            self._changed.notify_all()

    def _called(self, number: int, function: Callable[[], object] | None) -> bool:
        try:
            if function is not None:
                function()
        except Exception as error:
            with self._changed:
                self._say({"failed": number, "reason": f"{type(error).__name__}: {error}"[:500]})
            return False
        return True

    def _say(self, message: dict[str, Any]) -> None:
        """With the lock. A connection that is gone is noticed where it is read."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendall(json.dumps(message).encode() + b"\n")
