"""Messages of the bulk protocol on a TCP connection: framing, and reading and writing without blocking.

    4 bytes    length of the header                  (big-endian, like the next)
    4 bytes    length of the data; -1: there is none
    header     `fabric.images.protocol`
    data       a chunk, a manifest, ...

Data stays with the kernel until all of it is there, as far as the kernel can hold it, and is then received in one go:
the kernel is told not to wake anybody before (SO_RCVLOWAT). So one buffer does for many connections. What is sent is
bytes, or a `Stretch` of files that the kernel sends by itself.
"""

from __future__ import annotations

import fcntl
import socket as sockets
import struct
import sys
import termios
from collections import deque
from typing import NamedTuple

from fabric.images.manifest import CHUNK_BYTES, Buffer
from fabric.images.protocol import MAX_DATA_BYTES, MAX_HEADER_BYTES, ProtocolError
from fabric.images.stretch import Stretch

_PREFIX = struct.Struct(">ii")
_NO_DATA = -1
_HEAD_BYTES = 2 * (_PREFIX.size + MAX_HEADER_BYTES)
_NOTHING = memoryview(b"")
KEEPALIVE_IDLE_S = 5
KEEPALIVE_EVERY_S = 3
KEEPALIVE_TRIES = 3
"""A peer whose machine is gone is known to be gone 14 s after it was last heard of, though nothing is to be sent."""
_USER_TIMEOUT_MS = 15_000
"""The same for what was sent and is not acknowledged."""


class Closed(Exception):
    """The peer has closed the connection."""


class Message(NamedTuple):
    """`data` is None where the message has none; it may be read until its buffer is given back."""

    header: bytes
    data: memoryview | None


class Buffers:
    """Memory for what comes over the connections of one thread: for data, at most `limit` buffers at a time, each of at
    least a chunk; and a little that all share while they look at headers."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._spare: bytearray | None = None
        self._taken = 0
        self.head = memoryview(bytearray(_HEAD_BYTES))

    def take(self, size: int) -> bytearray | None:
        """None: all are taken."""
        if self._taken >= self._limit:
            return None
        self._taken += 1
        if self._spare is None or size > len(self._spare):
            return bytearray(max(size, CHUNK_BYTES))
        spare, self._spare = self._spare, None
        return spare

    def give_back(self, buffer: bytearray) -> None:
        self._taken -= 1
        if len(buffer) == CHUNK_BYTES:
            self._spare = buffer

    def free(self) -> None:
        """Keeps none for later."""
        self._spare = None


class Incoming:
    """What comes over one connection."""

    def __init__(self, socket: sockets.socket, buffers: Buffers, max_data_bytes: int = MAX_DATA_BYTES) -> None:
        """`max_data_bytes`: of one message; 0: no message may have data."""
        self._socket, self._buffers, self._max_data_bytes = socket, buffers, max_data_bytes
        self._rest = b""
        """What came and was not looked at yet; while `next` runs, it is between these in `buffers.head`."""
        self._start, self._end = 0, 0
        self._header = b""
        self._size = _NO_DATA
        self._buffer: bytearray | None = None
        self._body = _NOTHING
        self._got = 0
        self._waits_for = 1
        self.hungry = False
        """All buffers are taken: try again when one was given back."""
        self.received = 0
        """Bytes so far."""

    def came(self) -> int:
        """Bytes so far, with those that are still with the kernel."""
        return self.received + self._unread()

    @property
    def holds_buffer(self) -> bool:
        return self._buffer is not None

    @property
    def partial(self) -> bool:
        """Whether a message has come in part."""
        return self._size != _NO_DATA or bool(self._rest)

    def next(self) -> Message | None:
        """The next message; None: not all of it is here. What it holds is valid until `done`, or the next call. Raises
        `Closed`, `ProtocolError`, `OSError`; after these, nothing more can be read."""
        self.done()
        self._start, self._end = 0, len(self._rest)
        if self._rest:
            self._buffers.head[: self._end] = self._rest
        try:
            message = self._next()
        except BlockingIOError:
            self._wait_for(self._size - self._got if self._size > 0 else 1)
            message = None
        self._rest = bytes(self._buffers.head[self._start : self._end]) if self._start < self._end else b""
        return message

    def done(self) -> None:
        """The message is not needed any more."""
        if self._buffer is not None and self._size == _NO_DATA:
            self._body.release()
            self._buffers.give_back(self._buffer)
            self._buffer, self._body = None, _NOTHING

    def close(self) -> None:
        self._size = _NO_DATA
        self.done()

    def _next(self) -> Message | None:
        while self._size == _NO_DATA:
            if self._end - self._start >= _PREFIX.size and self._read_head():
                if self._size == _NO_DATA:
                    return Message(self._header, None)
                break
            if self._start:
                self._move_up()
            self._end += self._receive(self._buffers.head[self._end :])
        if self._buffer is None and not (self._is_worth_it() and self._make_room()):
            return None
        while self._got < self._size:
            self._got += self._receive(self._body[self._got :] if self._got else self._body)
        self._wait_for(1)
        self._size = _NO_DATA
        return Message(self._header, self._body)

    def _read_head(self) -> bool:
        """Whether the next header is here whole; then it is known what data comes behind it."""
        head = self._buffers.head
        header_bytes, data_bytes = _PREFIX.unpack_from(head, self._start)
        if not 0 <= header_bytes <= MAX_HEADER_BYTES:
            raise ProtocolError(f"expected a header of at most {MAX_HEADER_BYTES} bytes, found {header_bytes}")
        if not _NO_DATA <= data_bytes <= self._max_data_bytes or (data_bytes == 0 and not self._max_data_bytes):
            raise ProtocolError(f"expected at most {self._max_data_bytes} bytes of data, found {data_bytes}")
        at = self._start + _PREFIX.size
        if self._end < at + header_bytes:
            return False
        self._header = bytes(head[at : at + header_bytes])
        self._start, self._size, self._got = at + header_bytes, data_bytes, 0
        return True

    def _move_up(self) -> None:
        here = self._end - self._start
        self._buffers.head[:here] = bytes(self._buffers.head[self._start : self._end])
        self._start, self._end = 0, here

    def _is_worth_it(self) -> bool:
        """Whether to read the data now. As long as it is with the kernel it takes no memory here; so all of it is
        waited for, once: if the kernel can't hold it, or there is no more, it says so by waking us before. (There is no
        such difference for a single byte.)"""
        missing = self._size - (self._end - self._start)
        if missing <= 1 or self._waits_for > 1 or self._unread() >= missing:
            return True
        self._wait_for(missing)
        return False

    def _unread(self) -> int:
        """Bytes that the kernel has for us."""
        return _in_kernel(self._socket, termios.FIONREAD)

    def _make_room(self) -> bool:
        self._buffer = self._buffers.take(self._size)
        self.hungry = self._buffer is None
        if self._buffer is None:
            return False
        self._body = memoryview(self._buffer)[: self._size]
        self._got = min(self._size, self._end - self._start)
        self._body[: self._got] = self._buffers.head[self._start : self._start + self._got]
        self._start += self._got
        return True

    def _receive(self, room: memoryview) -> int:
        found = self._socket.recv_into(room)
        if not found:
            raise Closed
        self.received += found
        return found

    def _wait_for(self, size: int) -> None:
        """The connection counts as readable when so many bytes are there."""
        if size != self._waits_for:
            self._waits_for = size
            self._socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVLOWAT, min(size, CHUNK_BYTES))


class Outgoing:
    """What is to be sent over one connection, in order."""

    def __init__(self, socket: sockets.socket) -> None:
        self._socket = socket
        self._queue: deque[memoryview | Stretch] = deque()
        self.sent = 0
        """Bytes so far."""

    def __len__(self) -> int:
        """Frames that are not sent whole."""
        return len(self._queue)

    def arrived(self) -> int:
        """Bytes that are with the peer's kernel, as far as it has said so."""
        return self.sent - _in_kernel(self._socket, termios.TIOCOUTQ)

    @property
    def memory_bytes(self) -> int:
        """Of these, what is not in files."""
        return sum([len(one) for one in self._queue if isinstance(one, memoryview)])

    def add(self, header: bytes, data: Buffer | Stretch | None = None) -> None:
        """`data` is not copied: leave it as it is until it is sent. A stretch is closed then."""
        size = _NO_DATA if data is None else data.size if isinstance(data, Stretch) else len(data)
        self._queue.append(memoryview(_PREFIX.pack(len(header), size) + header))
        if data is not None and size:
            self._queue.append(data if isinstance(data, Stretch) else memoryview(data))

    def flush(self) -> bool:
        """Sends what the kernel takes; True: that was all. Raises `OSError`, `EOFError`."""
        try:
            while self._queue:
                first = self._queue[0]
                if isinstance(first, Stretch):
                    while first:
                        self.sent += first.send(self._socket.fileno())
                    first.close()
                    self._queue.popleft()
                else:
                    sent = self._socket.send(first, sockets.MSG_MORE if len(self._queue) > 1 else 0)
                    self.sent += sent
                    if sent < len(first):
                        self._queue[0] = first[sent:]
                    else:
                        self._queue.popleft()
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        for one in self._queue:
            if isinstance(one, Stretch):
                one.close()
        self._queue.clear()


def _in_kernel(socket: sockets.socket, which: int) -> int:
    """Bytes that came and were not read (FIONREAD), or are to be sent and not acknowledged (TIOCOUTQ)."""
    return int.from_bytes(fcntl.ioctl(socket, which, bytes(4)), sys.byteorder)


def set_up(socket: sockets.socket) -> None:
    """As connections of this protocol are: without blocking or delay, and not open for ever when nobody is there."""
    socket.setblocking(False)
    socket.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
    socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_KEEPALIVE, 1)
    socket.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    socket.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_KEEPINTVL, KEEPALIVE_EVERY_S)
    socket.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_KEEPCNT, KEEPALIVE_TRIES)
    socket.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)


def address_of(endpoint: str, listen: bool = False) -> tuple[sockets.AddressFamily, tuple[str, int]]:
    """Of "tcp://host:port"; port `*`: any. Of the addresses of a name, one of IPv4 goes first, as on the bus. Raises
    `ValueError` if it is no endpoint, `OSError` if the host has no address."""
    if not endpoint.startswith("tcp://"):
        raise ValueError(f"expected an endpoint tcp://host:port, found {endpoint!r}")
    host, colon, port = endpoint.removeprefix("tcp://").rpartition(":")
    number = "0" if listen and port == "*" else port
    if not colon or not host or not (number.isascii() and number.isdecimal()) or int(number) > 65535:
        raise ValueError(f"expected an endpoint tcp://host:port, found {endpoint!r}")
    flags = sockets.AI_PASSIVE if listen else 0
    found = sockets.getaddrinfo(host.strip("[]"), int(number), type=sockets.SOCK_STREAM, flags=flags)
    family, _, _, _, address = min(found, key=lambda one: one[0] != sockets.AF_INET)
    return family, (str(address[0]), int(address[1]))
