"""Holders to test with: chunk servers in threads and in processes of their own, and some that misbehave on real
sockets.
"""

from __future__ import annotations

import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fabric.images.intake import Intake
from fabric.images.protocol import (
    Answer,
    Data,
    GetChunk,
    GetManifest,
    Holder,
    Request,
    decode_request,
    encode,
)
from fabric.images.server import ChunkServer
from fabric.images.store import ChunkStore
from tests.unit.images.content import Image, put_image

PREFIX = struct.Struct(">ii")
Reaction = Callable[[Request], tuple[Answer, bytes | None] | None]

_SERVE = """
import sys, threading
from pathlib import Path
from fabric.images.intake import Intake
from fabric.images.server import ChunkServer
from fabric.images.store import ChunkStore
store = ChunkStore(Path(sys.argv[1]))
server = ChunkServer(store, intake=Intake(store))
print(server.start(), flush=True)
threading.Event().wait()
"""


class Served:
    """A store and its chunk server, in this process."""

    def __init__(self, node: str, rack: str, store: ChunkStore) -> None:
        self.store = store
        self.server = ChunkServer(store, intake=Intake(store))
        self.holder = Holder(node, rack, self.server.start())


class ServedApart:
    """A chunk server in a process of its own, to be killed or stopped by its pid."""

    def __init__(self, node: str, rack: str, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(directory)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.holder = Holder(node, rack, self.process.stdout.readline().strip())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)


class Peers:
    """Makes holders and takes them down again."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._directory = directory
        self._stack = stack
        self._made = 0

    def _next(self) -> tuple[str, str, Path]:
        """Each holder is in a rack of its own."""
        self._made += 1
        return f"s{self._made}", f"r{self._made}", self._directory / f"store-{self._made}"

    def serve(
        self, *images: Image, max_bytes: int | None = None, push_idle_s: float = 60.0, rack: str | None = None
    ) -> Served:
        node, own_rack, directory = self._next()
        store = ChunkStore(directory, max_bytes, push_idle_s=push_idle_s)
        self._stack.callback(store.close)
        for image in images:
            put_image(store, image)
        served = Served(node, rack or own_rack, store)
        self._stack.callback(served.server.stop)
        return served

    def serve_apart(self, *images: Image) -> ServedApart:
        node, rack, directory = self._next()
        store = ChunkStore(directory)
        for image in images:
            put_image(store, image)
        store.close()
        served = ServedApart(node, rack, directory)
        self._stack.callback(served.process.stdout.close if served.process.stdout else served.kill)
        self._stack.callback(served.kill)
        return served

    def misbehave(self, react: Reaction, piece_bytes: int = 1 << 20, pause_s: float = 0.0) -> Holder:
        """A holder that answers each request as `react` says; None: not at all. After every so many bytes that it reads
        or sends it pauses."""
        node, rack, _ = self._next()
        listener = socket.create_server(("127.0.0.1", 0))
        if pause_s:  # who connects is to notice it
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, piece_bytes)
        endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        stop = threading.Event()
        thread = threading.Thread(target=_react, args=(listener, react, stop, piece_bytes, pause_s), daemon=True)
        thread.start()
        self._stack.callback(thread.join, 10)
        self._stack.callback(stop.set)
        return Holder(node, rack, endpoint)


def framed(header: bytes, data: bytes | None) -> bytes:
    """A message as it is on the wire; the tests' own, not the one that they test."""
    return PREFIX.pack(len(header), -1 if data is None else len(data)) + header + (data or b"")


def unframed(stream: bytearray) -> tuple[bytes, bytes | None] | None:
    """Takes the first message out of what has come, if it is there."""
    if len(stream) < PREFIX.size:
        return None
    header_bytes, data_bytes = PREFIX.unpack_from(stream)
    begins = PREFIX.size + header_bytes
    end = begins + max(0, data_bytes)
    if len(stream) < end:
        return None
    header, data = bytes(stream[PREFIX.size : begins]), None if data_bytes < 0 else bytes(stream[begins:end])
    del stream[:end]
    return header, data


def _react(
    listener: socket.socket, react: Reaction, stop: threading.Event, piece_bytes: int, pause_s: float
) -> None:
    """One thread for all who connect, so that `react` is called by one at a time."""
    streams: dict[socket.socket, bytearray] = {}
    while not stop.is_set():
        for ready in select.select([listener, *streams], [], [], 0.02)[0]:
            if ready is listener:
                streams[listener.accept()[0]] = bytearray()
                continue
            try:
                came = ready.recv(piece_bytes)
                stop.wait(pause_s)
                streams[ready] += came
                while came and (message := unframed(streams[ready])) is not None:
                    reaction = react(decode_request(message[0], None if message[1] is None else len(message[1])))
                    if reaction is not None:
                        answer = framed(encode(reaction[0]), reaction[1])
                        send_slowly(ready, answer, piece_bytes, pause_s, stop)
            except OSError:
                came = b""
            if not came:
                del streams[ready]
                ready.close()
    for one in (listener, *streams):
        one.close()


def send_slowly(to: socket.socket, data: bytes, piece_bytes: int, pause_s: float, stop: threading.Event) -> None:
    for at in range(0, len(data), piece_bytes):
        to.sendall(data[at : at + piece_bytes])
        stop.wait(pause_s)


@contextmanager
def peers_in(directory: Path) -> Iterator[Peers]:
    with ExitStack() as stack:
        yield Peers(directory, stack)


def answering(image: Image, chunk: Callable[[int, bytes], bytes | None]) -> Reaction:
    """Gives the manifest of `image`, and for chunk n what `chunk(n, its bytes)` says; None: nothing."""
    by_hash = {each.hash: bytes(each.data) for each in image.chunks}
    asked = 0

    def react(request: Request) -> tuple[Answer, bytes | None] | None:
        nonlocal asked
        if isinstance(request, GetManifest):
            return Data(id=request.id), image.manifest.encode()
        assert isinstance(request, GetChunk)
        content = chunk(asked, by_hash[request.hash])
        asked += 1
        return None if content is None else (Data(id=request.id), content)

    return react
