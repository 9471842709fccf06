"""The keeper's control socket: one JSON line asks, one JSON line answers.

    {"op": "status"}                             -> {"ok": LocalState}
    {"op": "kill", "who": "r1c01", "signal": 9}  -> {"ok": pid}      also STOP, CONT, TERM; `who` may be "api",
                                                                     a ZooKeeper server ("zookeeper", "zookeeper-2")
    {"op": "restart", "who": "r1c01"}            -> {"ok": old pid}  TERM, KILL after a grace time, a new process
    {"op": "start", "who": "r1c01", "argv": …, "environment": …, "cwd": …}  -> {"ok": pid}  where agents wait for it;
                                                                     it leads a process group
    {"op": "network", "rules": [{"source": ["r1"], "target": ["rest"], "verdict": {"drop": 1}}]}  -> {"ok": null}
                                                                     these rules and no others hold (fabric.net.rules)
    {"op": "slow_disk", "who": "zookeeper-2", "delay_ms": 300}  -> {"ok": null}  each write to that server's log
                                                                     takes so much longer; 0: as it was
    {"op": "stop"}                               -> {"ok": null}     take everything down
    what can't be done                           -> {"error": "why"}

The socket lies in the fabric's folder, which only its owner may enter. It is reached through the open folder, so a
long path does not meet the 108 bytes of a socket's name.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from fabric.local.folder import CONTROL, Folder
from fabric.local.state import LocalState
from fabric.net.rules import Rule

MAX_REQUEST_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 8 * 1024 * 1024
MAX_CLIENTS = 32
ANSWER_WAIT_S = 10.0


class ControlError(Exception):
    """The keeper refused, with the reason, or there is none (`gone`)."""

    def __init__(self, text: str, gone: bool = False) -> None:
        super().__init__(text)
        self.gone = gone


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`argv`, `environment` and `cwd` are start's, `rules` network's, `delay_ms` slow_disk's."""

    op: str
    who: str = ""
    signal: int = 0
    argv: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    cwd: str = ""
    rules: tuple[Rule, ...] = ()
    delay_ms: int = 0


class ControlClient:
    """Every call is a connection of its own, and bounded by ANSWER_WAIT_S."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def status(self) -> LocalState:
        """Raises ControlError."""
        return msgspec.convert(self._ask(Request("status")), type=LocalState)

    def kill(self, who: str, number: int) -> int:
        return int(self._ask(Request("kill", who, number)))

    def restart(self, who: str) -> int:
        return int(self._ask(Request("restart", who)))

    def start(self, who: str, argv: Sequence[str], environment: Mapping[str, str], cwd: str) -> int:
        """The new process's pid. Raises ControlError."""
        return int(self._ask(Request("start", who, 0, tuple(argv), dict(environment), cwd)))

    def network(self, rules: Sequence[Rule]) -> None:
        """From now on these rules hold, and no others; none: all is well. Raises ControlError."""
        self._ask(Request("network", rules=tuple(rules)))

    def slow_disk(self, who: str, delay_ms: int) -> None:
        """A ZooKeeper server's, until it ends or this is called with 0. Raises ControlError."""
        self._ask(Request("slow_disk", who, delay_ms=delay_ms))

    def stop(self) -> None:
        self._ask(Request("stop"))

    def _ask(self, request: Request) -> Any:
        gone = f"no keeper answers in {self.folder.path}"
        try:
            answer = self._exchange(msgspec.json.encode(request) + b"\n")
        except TimeoutError:
            raise ControlError(f"the keeper in {self.folder.path} did not answer within {ANSWER_WAIT_S:g} s") from None
        except OSError as error:
            raise ControlError(f"{gone}: {error.strerror}", gone=True) from None
        if not answer.endswith(b"\n"):
            raise ControlError(f"{gone}: it left in the middle of an answer", gone=True)
        found = msgspec.json.decode(answer)
        if "error" in found:
            raise ControlError(str(found["error"]))
        return found["ok"]

    def _exchange(self, line: bytes) -> bytes:
        directory = os.open(self.folder.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(ANSWER_WAIT_S)
                connection.connect(f"/proc/self/fd/{directory}/{CONTROL}")
                connection.sendall(line)
                answer = bytearray()
                while not answer.endswith(b"\n") and len(answer) < MAX_ANSWER_BYTES:
                    data = connection.recv(256 * 1024)
                    if not data:
                        break
                    answer += data
                return bytes(answer)
        finally:
            os.close(directory)


class ControlServer:
    """The keeper's end: lives in its selector, whose `data` are callables. `answer` handles one request and returns
    what "ok" shall be, or raises ControlError."""

    def __init__(self, selector: selectors.BaseSelector, answer: Callable[[Request], Any]) -> None:
        self.selector = selector
        self.answer = answer
        self.clients: dict[socket.socket, tuple[bytearray, bytearray]] = {}
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

    def open(self) -> None:
        """In the folder, which is the current directory."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(CONTROL)
        self.listener.bind(CONTROL)
        self.listener.listen(MAX_CLIENTS)
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        for client in list(self.clients):
            self._drop(client)
        self.selector.unregister(self.listener)
        self.listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self.listener.accept()
            client.setblocking(False)
            self.clients[client] = (bytearray(), bytearray())
            self.selector.register(client, selectors.EVENT_READ, lambda: self._ready(client))
            if len(self.clients) > MAX_CLIENTS:
                self._drop(next(iter(self.clients)))

    def _ready(self, client: socket.socket) -> None:
        inbox, outbox = self.clients[client]
        try:
            if not outbox:
                data = client.recv(MAX_REQUEST_BYTES)
                inbox += data
                if not data or len(inbox) > MAX_REQUEST_BYTES:
                    self._drop(client)
                    return
                if inbox.endswith(b"\n"):
                    outbox += self._answered(bytes(inbox))
                    inbox.clear()
            if outbox:  # at once: the answer to "stop" is the keeper's last
                del outbox[: client.send(outbox)]
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        self.selector.modify(
            client, selectors.EVENT_WRITE if outbox else selectors.EVENT_READ, lambda: self._ready(client)
        )

    def _answered(self, line: bytes) -> bytes:
        try:
            return msgspec.json.encode({"ok": self.answer(msgspec.json.decode(line, type=Request))}) + b"\n"
        except (ControlError, msgspec.DecodeError) as error:
            return msgspec.json.encode({"error": str(error)}) + b"\n"

    def _drop(self, client: socket.socket) -> None:
        self.selector.unregister(client)
        del self.clients[client]
        client.close()
