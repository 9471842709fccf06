"""Holders to test with: chunk servers in threads and in processes of their own, and some that misbehave on real
sockets.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import zmq

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

Context = zmq.Context[zmq.Socket[bytes]]
Reaction = Callable[[Request], tuple[Answer, bytes | None] | None]

_SERVE = """
import sys, threading
from pathlib import Path
from fabric.images.server import ChunkServer
from fabric.images.store import ChunkStore
server = ChunkServer(ChunkStore(Path(sys.argv[1])))
print(server.start(), flush=True)
threading.Event().wait()
"""


class Served:
    """A store and its chunk server, in this process."""

    def __init__(self, node: str, rack: str, store: ChunkStore, context: Context) -> None:
        self.store = store
        self.server = ChunkServer(store, intake=Intake(store, context), context=context)
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

    def __init__(self, directory: Path, context: Context, stack: ExitStack) -> None:
        self.context = context
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
        served = Served(node, rack or own_rack, store, self.context)
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

    def misbehave(self, react: Reaction) -> Holder:
        """A holder that answers each request as `react` says; None: not at all."""
        node, rack, _ = self._next()
        router = self.context.socket(zmq.ROUTER)
        router.linger = 0
        endpoint = f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}"
        stop = threading.Event()
        thread = threading.Thread(target=_react, args=(router, react, stop), daemon=True)
        thread.start()
        self._stack.callback(thread.join, 10)
        self._stack.callback(stop.set)
        return Holder(node, rack, endpoint)


def _react(router: zmq.Socket[bytes], react: Reaction, stop: threading.Event) -> None:
    while not stop.is_set():
        if not router.poll(20):
            continue
        peer, header, *data = router.recv_multipart()
        reaction = react(decode_request(header, len(data[0]) if data else None))
        if reaction is not None:
            answer, content = reaction
            router.send_multipart([peer, encode(answer)] if content is None else [peer, encode(answer), content])
    router.close()


@contextmanager
def peers_in(directory: Path) -> Iterator[Peers]:
    context: Context = zmq.Context()
    with ExitStack() as stack:
        stack.callback(context.term)
        yield Peers(directory, context, stack)


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
