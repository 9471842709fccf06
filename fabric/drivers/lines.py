"""The supervisor's ear: a Unix socket, one agent at a time, JSON lines. Standard library only.

Theory of operation. A newer connection replaces the older one: it is the restarted agent, and the old one's end may
not have been seen yet. (Two living agents are kept apart by the driver's lock.) Nothing blocks and everything is
bounded: an agent that sends a line longer than MAX_LINE_BYTES, sends what is no request, or reads so slowly that more
than MAX_UNSENT_BYTES wait for it, loses the connection; it connects again and asks for the list.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import socket

from fabric.drivers.procfs import complain

TYPE_CHECKING = False  # as in instance.py
if TYPE_CHECKING:
    from collections.abc import Callable

    from fabric.drivers.instance import Message

MAX_LINE_BYTES = 512 * 1024
MAX_UNSENT_BYTES = 16 * 1024 * 1024
READ_BYTES = 64 * 1024


class AgentPort:
    """`answer(message)` is called with each request; ValueError, KeyError, TypeError from it mean that it was none."""

    def __init__(self, selector: selectors.BaseSelector, answer: Callable[[Message], None]) -> None:
        self._selector, self._answer = selector, answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._agent: socket.socket | None = None
        self._inbox, self._outbox = bytearray(), bytearray()
        self.connections = 0

    @property
    def connected(self) -> bool:
        return self._agent is not None

    def bind(self, name: str) -> None:
        """`name` in the current directory: a long path would not fit the 108 bytes of a socket's address."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        self._listener.setblocking(False)
        self._listener.bind(name)
        self._listener.listen(16)

    def watch(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def send(self, **message: object) -> None:
        """To the agent, if there is one."""
        if self._agent:
            self._outbox += json.dumps(message).encode() + b"\n"
            try:
                self._flush(self._agent)
            except OSError:
                self._drop()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            agent, _ = self._listener.accept()
            self._drop()
            agent.setblocking(False)
            self._agent = agent
            self.connections += 1
            self._selector.register(agent, selectors.EVENT_READ, self._ready)

    def _drop(self) -> None:
        if self._agent:
            self._selector.unregister(self._agent)
            self._agent.close()
        self._agent = None
        self._inbox.clear()
        self._outbox.clear()

    def _ready(self) -> None:
        assert self._agent
        try:
            self._flush(self._agent)
            data = self._agent.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._inbox += data
        while (end := self._inbox.find(b"\n")) >= 0:
            line = bytes(self._inbox[:end])
            del self._inbox[: end + 1]
            try:
                self._answer(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                complain(f"expected a request, found {line[:200]!r}: {error!r}")
                self._drop()
        if not data or len(self._inbox) > MAX_LINE_BYTES:
            self._drop()

    def _flush(self, agent: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._outbox:
                del self._outbox[: agent.send(self._outbox[:READ_BYTES])]
        if len(self._outbox) > MAX_UNSENT_BYTES:
            raise OSError(errno.ENOBUFS, "the agent does not read")
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outbox else 0)
        if self._selector.get_key(agent).events != events:
            self._selector.modify(agent, events, self._ready)
