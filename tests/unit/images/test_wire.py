"""Messages on a stream: as they were sent, however it is cut; and nothing else is taken for one."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator

import pytest

from fabric.images.manifest import CHUNK_BYTES
from fabric.images.protocol import MAX_DATA_BYTES, MAX_HEADER_BYTES, ProtocolError
from fabric.images.stretch import Segment, Stretch
from fabric.images.wire import Buffers, Closed, Incoming, Outgoing, address_of
from tests.unit.images.peers import PREFIX, framed
from tests.waiting import wait_until

Pair = tuple[socket.socket, socket.socket]
Sent = list[tuple[bytes, bytes | None]]


@pytest.fixture
def pair() -> Iterator[Pair]:
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        there.setblocking(False)
        yield here, there


def taken(incoming: Incoming) -> Sent:
    """All that is here."""
    found: Sent = []
    while (message := incoming.next()) is not None:
        found.append((bytes(message.header), None if message.data is None else bytes(message.data)))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_messages_come_as_they_were_sent_however_the_stream_is_cut(pair: Pair, seed: int) -> None:
    rng = random.Random(seed)
    sent: Sent = []
    for _ in range(30):
        size = rng.choice((None, 0, 1, 700, 20_000, 200_000))
        header = rng.randbytes(rng.choice((0, 1, 30, MAX_HEADER_BYTES)))
        sent.append((header, None if size is None else rng.randbytes(size)))
    stream = b"".join(framed(*one) for one in sent)
    incoming, found = Incoming(pair[1], Buffers(1)), []
    while stream:
        stream = stream[pair[0].send(stream[: rng.choice((1, 7, 900, 30_000, 150_000))]) :]
        found += taken(incoming)
    assert found == sent
    assert not incoming.partial
    pair[0].close()
    with pytest.raises(Closed):
        incoming.next()


def test_what_is_sent_is_bytes_and_files(pair: Pair, tmp_path: os.PathLike[str]) -> None:
    data = os.urandom(2 * CHUNK_BYTES)
    path = os.path.join(tmp_path, "file")
    with open(path, "wb") as file:
        file.write(data)
    stretch = Stretch([Segment(os.open(path, os.O_RDONLY), 5, CHUNK_BYTES)])
    outgoing, incoming, found = Outgoing(pair[0]), Incoming(pair[1], Buffers(1)), []
    outgoing.add(b"one", data)
    outgoing.add(b"two")
    outgoing.add(b"three", stretch)
    outgoing.add(b"four", b"")
    assert (len(outgoing), outgoing.memory_bytes > len(data)) == (6, True)
    while not outgoing.flush():
        found += taken(incoming)
    found += taken(incoming)
    assert found == [(b"one", data), (b"two", None), (b"three", data[5 : 5 + CHUNK_BYTES]), (b"four", b"")]
    assert (len(outgoing), outgoing.memory_bytes, outgoing.sent) == (0, 0, incoming.received)
    assert not stretch


def test_what_moves_between_the_kernels_is_known() -> None:
    """In either direction, though nobody here has read or written."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        here, there = socket.create_connection(listener.getsockname()), listener.accept()[0]
    with here, there:
        here.setblocking(False)
        outgoing, incoming = Outgoing(here), Incoming(there, Buffers(1))
        outgoing.add(b"header", bytes(1 << 24))
        assert not outgoing.flush()
        wait_until(lambda: outgoing.arrived() > 0, what="the first bytes to be there")
        assert (incoming.received, incoming.came() > 0) == (0, True)
        assert outgoing.arrived() < outgoing.sent
        before = outgoing.arrived()
        wait_until(lambda: there.recv(1 << 16) and outgoing.arrived() > before, what="more to go, once it is read")


def test_files_that_were_not_sent_are_closed(pair: Pair, tmp_path: os.PathLike[str]) -> None:
    fd = os.open(os.path.join(tmp_path, "file"), os.O_RDWR | os.O_CREAT)
    outgoing = Outgoing(pair[0])
    outgoing.add(b"", Stretch([Segment(fd, 0, 5)]))
    outgoing.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize(
    ("header_bytes", "data_bytes"),
    [(MAX_HEADER_BYTES + 1, -1), (-1, -1), (3, -2), (3, MAX_DATA_BYTES + 1), (int.from_bytes(b"GET "), -1)],
)
def test_what_is_out_of_bounds_is_no_message(pair: Pair, header_bytes: int, data_bytes: int) -> None:
    pair[0].send(PREFIX.pack(header_bytes, data_bytes))
    with pytest.raises(ProtocolError, match="expected"):
        Incoming(pair[1], Buffers(1)).next()


@pytest.mark.parametrize("data", [b"", b"x"])
def test_where_no_data_is_expected_none_is_taken(pair: Pair, data: bytes) -> None:
    incoming = Incoming(pair[1], Buffers(1), max_data_bytes=0)
    pair[0].send(framed(b"header", None))
    assert taken(incoming) == [(b"header", None)]
    pair[0].send(framed(b"header", data))
    with pytest.raises(ProtocolError, match="expected at most 0 bytes"):
        incoming.next()


def test_memory_is_bounded_and_who_gets_none_goes_on_when_there_is_some(pair: Pair) -> None:
    buffers = Buffers(1)
    other = buffers.take(1)
    assert other is not None
    incoming = Incoming(pair[1], buffers)
    pair[0].send(framed(b"header", b"data"))
    assert (incoming.next(), incoming.hungry, incoming.partial) == (None, True, True)
    buffers.give_back(other)
    assert taken(incoming) == [(b"header", b"data")]
    assert not incoming.hungry


def test_what_the_kernel_can_hold_takes_no_memory_before_it_is_there_whole(pair: Pair) -> None:
    buffers, data = Buffers(1), os.urandom(100_000)
    incoming, stream = Incoming(pair[1], buffers), framed(b"header", data)
    pair[0].send(stream[:60_000])
    assert (incoming.next(), incoming.holds_buffer, incoming.partial) == (None, False, True)
    pair[0].send(stream[60_000:90_000])
    assert incoming.next() is None
    assert incoming.holds_buffer, "woken before all of it is there: the kernel can't hold more"
    assert (buffers.take(1), incoming.received) == (None, 90_000)
    pair[0].send(stream[90_000:])
    assert taken(incoming) == [(b"header", data)]
    pair[0].send(stream[:-1])
    assert incoming.next() is None
    incoming.close()
    assert buffers.take(1) is not None


def test_a_message_that_was_dealt_with_lets_its_memory_go(pair: Pair) -> None:
    buffers = Buffers(1)
    incoming = Incoming(pair[1], buffers)
    pair[0].send(framed(b"", b"one"))
    message = incoming.next()
    assert message is not None
    assert buffers.take(1) is None
    incoming.done()
    assert message.data is not None
    with pytest.raises(ValueError, match="released"):
        bytes(message.data)
    assert buffers.take(1) is not None


@pytest.mark.parametrize(
    "endpoint",
    ["", "tcp://", "tcp://host", "tcp://:1", "tcp://1.2.3.4:x", "tcp://1.2.3.4:70000", "ipc://a:1", "tcp://h:²"],
)
def test_what_is_no_endpoint_is_told(endpoint: str) -> None:
    with pytest.raises(ValueError, match="expected an endpoint tcp://host:port, found"):
        address_of(endpoint)


def test_of_the_addresses_of_a_name_ipv4_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the bus; a server at 0.0.0.0 is not to be found at the other one."""
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 80, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80)),
    ]
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **kind: found)
    assert address_of("tcp://node:80") == (socket.AF_INET, ("127.0.0.1", 80))


def test_endpoints() -> None:
    assert address_of("tcp://127.0.0.1:80") == (socket.AF_INET, ("127.0.0.1", 80))
    assert address_of("tcp://[::1]:80") == (socket.AF_INET6, ("::1", 80))
    assert address_of("tcp://0.0.0.0:*", listen=True) == (socket.AF_INET, ("0.0.0.0", 0))
