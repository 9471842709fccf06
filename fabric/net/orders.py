"""How the network's process is told what holds: the rules, and whose process is which.

Theory of operation. A pair of sockets that both ends inherit from the keeper, which keeps both: so the network's
process may die and a new one goes on with the same end. Every order is the whole truth, never a change to it, so a lost
or repeated one does no harm, and the process begins with what was true when it was forked. The keeper waits, boundedly,
for new rules to be taken on: when `give` returns, they hold.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time

import msgspec

from fabric.net.rules import Rule

MAX_ORDER_BYTES = 160 * 1024
"""What fits into a socket's buffer."""
TAKEN_WAIT_S = 2.0


class NotTaken(Exception):
    """The network's process did not answer in time, or can't be told so much."""


class Order(msgspec.Struct, frozen=True):
    """`number`: answered with, when it is not 0. `pids`: endpoint -> process, for who tells them apart by that."""

    rules: tuple[Rule, ...] = ()
    pids: dict[str, int] = {}
    number: int = 0


class Giver:
    """The keeper's end, which also holds the other (`theirs`, for the child to inherit)."""

    def __init__(self) -> None:
        self._mine, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._number = 0
        self.now = Order()

    @property
    def theirs(self) -> int:
        return self._theirs.fileno()

    def know(self, pids: dict[str, int]) -> None:
        """Tell it, and do not wait. What it does not take on now it learns with the next order."""
        self.now = Order(self.now.rules, pids)
        with contextlib.suppress(BlockingIOError):
            self._mine.send(msgspec.json.encode(self.now))

    def give(self, rules: tuple[Rule, ...]) -> None:
        """These rules, and no others, hold when this returns. Raises NotTaken; they hold all the same as soon as the
        process is there again."""
        self._number += 1
        order = Order(rules, self.now.pids, self._number)
        data = msgspec.json.encode(order)
        if len(data) > MAX_ORDER_BYTES:
            raise NotTaken(f"expected rules of at most {MAX_ORDER_BYTES} bytes, found {len(data)}: name groups instead")
        self.now = order
        deadline = time.monotonic() + TAKEN_WAIT_S
        try:
            self._mine.send(data)
            while select.select([self._mine], (), (), max(0.0, deadline - time.monotonic()))[0]:
                if int(self._mine.recv(32)) == self._number:
                    return
        except BlockingIOError:
            pass
        raise NotTaken(f"the network's process did not answer within {TAKEN_WAIT_S:g} s; it is told again when it does")

    def close(self) -> None:
        self._mine.close()
        self._theirs.close()


class Taker:
    """The end of the network's process. `now`: the last order."""

    def __init__(self, fd: int, now: Order) -> None:
        self._socket = socket.socket(fileno=fd)
        self.now = now

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def take(self) -> bool:
        """Take on what has come in and answer it; whether there was anything. The caller obeys `now` before it does
        anything else."""
        last = self.now
        while True:
            try:
                data = self._socket.recv(MAX_ORDER_BYTES)
            except BlockingIOError:
                return self.now is not last
            self.now = msgspec.json.decode(data, type=Order)
            if self.now.number:
                with contextlib.suppress(BlockingIOError):
                    self._socket.send(str(self.now.number).encode())
