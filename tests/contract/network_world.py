"""A network of a local fabric with parties on it instead of agents: who listens, connects, sends and hears what a test
tells it to. Each party is a process of its own, as the proxy knows who speaks by that."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from fabric.local import nursery
from fabric.local.network import Address, Helper, network_of
from fabric.local.spec import make_spec
from fabric.net.rules import Rule

PORT = 8000
ANSWER_WAIT_S = 20.0
CONNECT_WAIT_S = 15.0
MAX_LINE_BYTES = 160 * 1024
PARTIES = ("r1c01", "r1c02", "r2c01")


class Party:
    """One process, asked over a socket. `number`s are those of its connections."""

    def __init__(self, pid: int, link: socket.socket, address: Address) -> None:
        self.pid, self.address = pid, address
        self._link = link

    def connect(self, to: Party) -> int:
        """Begin to; `send` waits for it."""
        return int(self._ask("connect", list(to.address)))

    def accept(self) -> int:
        return int(self._ask("accept"))

    def called(self, wait_s: float) -> bool:
        """Whether somebody has connected, or does within `wait_s`."""
        return bool(self._ask("called", wait_s))

    def send(self, number: int, data: str) -> None:
        self._ask("send", number, data)

    def close(self, number: int) -> None:
        self._ask("close", number)

    def hear(self, number: int, size: int, wait_s: float = 10.0) -> str:
        """The next bytes, at most `size`, of which as many as come within `wait_s`; "END" at the end of the stream."""
        return str(self._ask("hear", number, size, wait_s))

    def _ask(self, *words: Any) -> Any:
        self._link.sendall(json.dumps(words).encode())
        answer = json.loads(self._link.recv(MAX_LINE_BYTES))
        assert "trouble" not in answer, answer["trouble"]
        return answer["ok"]


class World:
    def __init__(self, kind: Literal["namespaces", "proxy"], folder: Path) -> None:
        self.network = network_of(make_spec(folder=folder, racks=2, compute=2, storage=0, network=kind))
        self.folder = folder
        self.helpers: dict[str, tuple[Helper, int]] = {}
        self.parties: dict[str, Party] = {}

    def open(self) -> None:
        self.network.prepare()
        for name in PARTIES:
            reach = self.network.open(name, PORT)
            mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            mine.settimeout(ANSWER_WAIT_S)
            with theirs, self.network.inside(name):
                fd, listen = theirs.fileno(), reach.listen
                pid = nursery.fork(
                    lambda fd=fd, listen=listen: be_party(fd, listen),  # type: ignore[misc]
                    name=name,
                    log=self.folder / f"{name}.log",
                    keep=(fd,),
                )
            self.network.forked(name, pid)
            self.parties[name] = Party(pid, mine, reach.peers)
        for helper in self.network.helpers():
            self._start(helper)

    def _start(self, helper: Helper) -> None:
        with self.network.inside(helper.name):
            pid = nursery.fork(helper.body, name=helper.name, log=self.folder / f"{helper.name}.log", keep=helper.keep)
        self.helpers[helper.name] = (helper, pid)

    def restart_helpers(self) -> None:
        """Killed and started again, as the keeper does."""
        for helper, pid in list(self.helpers.values()):
            _end(pid)
            self._start(helper)

    def close(self) -> None:
        for pid in (*(pid for _, pid in self.helpers.values()), *(party.pid for party in self.parties.values())):
            _end(pid)
        for party in self.parties.values():
            party._link.close()
        self.network.close()

    def rules(self, *rules: Rule) -> None:
        self.network.replace(rules)

    def pair(self, here: str, there: str) -> tuple[Party, int, Party, int]:
        """A connection from one to the other that has carried a byte: each party with its number of it."""
        one, other = self.parties[here], self.parties[there]
        mine = one.connect(other)
        one.send(mine, "!")
        theirs = other.accept()
        assert other.hear(theirs, 1) == "!"
        return one, mine, other, theirs


@contextlib.contextmanager
def world(kind: Literal["namespaces", "proxy"], folder: Path) -> Iterator[World]:
    made = World(kind, folder)
    try:
        made.open()
        yield made
    finally:
        made.close()


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def be_party(fd: int, listen: Address) -> int:
    """In the child: do what is asked, until nobody is there to ask."""
    link = socket.socket(fileno=fd)
    listener = socket.create_server(listen)
    listener.settimeout(ANSWER_WAIT_S / 2)
    connections: list[socket.socket] = []

    def do(what: str, *words: Any) -> Any:
        if what == "connect":
            made = socket.socket()
            made.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                made.connect(tuple(words[0]))
            made.settimeout(CONNECT_WAIT_S)
        elif what == "called":
            return bool(select.select([listener], (), (), words[0])[0])
        elif what == "accept":
            made, _ = listener.accept()
        else:
            return _with(connections[words[0]], what, *words[1:])
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connections.append(made)
        return len(connections) - 1

    while line := link.recv(MAX_LINE_BYTES):
        try:
            answer = {"ok": do(*json.loads(line))}
        except OSError as error:
            answer = {"trouble": repr(error)}
        link.sendall(json.dumps(answer).encode())
    return 0


def _with(connection: socket.socket, what: str, *words: Any) -> Any:
    if what == "close":
        return connection.close()
    if what == "send":
        return connection.sendall(words[0].encode())
    size, deadline, heard = words[0], time.monotonic() + words[1], b""
    while len(heard) < size and (left_s := deadline - time.monotonic()) > 0:
        connection.settimeout(left_s)
        try:
            data = connection.recv(size - len(heard))
        except TimeoutError:
            break
        if not data:
            return heard.decode() + "END"
        heard += data
    connection.settimeout(CONNECT_WAIT_S)
    return heard.decode()
