"""One process of `bench.images`: a holder, a node, or a client of nginx. Not to be called by hand.

    python -m bench.images_node holder FOLDER
    python -m bench.images_node node FOLDER NAME RACK

It does what lines of JSON on its standard input say, one after the other, and answers each with one line. It ends with
its input.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from fabric.images.cache import ImageCache
from fabric.images.fetch import fetch
from fabric.images.manifest import CHUNK_BYTES, Chunker
from fabric.images.protocol import Holder
from fabric.images.server import ChunkServer
from fabric.images.store import ChunkStore
from fabric.resources import Resources
from fabric.runtime.settings import AgentConfig
from fabric.runtime.sharing import Sharing


class Order(msgspec.Struct, frozen=True):
    """`make`: an image of `mib`, from the seed `number`. `count`: bytes served so far. `fetch` the image `digest`.
    `forget` it. `get` the file `path` from nginx at `port`, into a file or (`discard`) into nothing."""

    do: str
    digest: str = ""
    holders: tuple[Holder, ...] = ()
    mib: int = 0
    number: int = 0
    port: int = 0
    path: str = ""
    discard: bool = False


class Done(msgspec.Struct, frozen=True):
    digest: str = ""
    endpoint: str = ""
    number: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    dropped: tuple[str, ...] = ()


class HolderNode:
    def __init__(self, folder: Path) -> None:
        self._store = ChunkStore(folder)
        self._server = ChunkServer(self._store)
        self._endpoint = self._server.start()

    def obey(self, order: Order) -> Done:
        if order.do == "make":
            return Done(digest=self._make(order), endpoint=self._endpoint)
        return Done(number=self._server.counters().bytes_out, cpu_s=cpu_s())

    def _make(self, order: Order) -> str:
        for image in self._store.held():
            self._store.drop(image.digest)
        rng, chunker = random.Random(order.number), Chunker()
        self._store.begin("push")
        for _ in range(order.mib):
            for chunk in chunker.feed(rng.randbytes(1 << 20)):
                self._store.put("push", chunk.hash, chunk.data)
        return self._store.commit("push", chunker.finish()[1].encode())


class FetchingNode:
    def __init__(self, folder: Path, name: str, rack: str) -> None:
        self._folder = folder
        total = Resources(1, 1, 1)
        config = AgentConfig(name, rack, "compute", "", folder, total)
        self._sharing = Sharing(config, ImageCache(folder / "cache", 1 << 40))

    def obey(self, order: Order) -> Done:
        calls: dict[str, Callable[[Order], Done]] = {
            "fetch": self._fetch,
            "forget": self._forget,
            "get": self._get,
        }
        return calls[order.do](order)

    def _fetch(self, order: Order) -> Done:
        before = cpu_s()
        report = fetch(
            order.digest,
            order.holders,
            self._folder / "image",
            neighbours=self._sharing.neighbours,
        )
        dropped = tuple(f"{drop.node}: {drop.reason}" for drop in report.dropped)
        return Done(seconds=report.seconds, cpu_s=cpu_s() - before, dropped=dropped)

    def _forget(self, order: Order) -> Done:
        self._sharing.pieces.end(order.digest)
        (self._folder / "image").unlink()
        return Done()

    def _get(self, order: Order) -> Done:
        began = time.perf_counter()
        into = self._folder / "got"
        fd = os.open("/dev/null" if order.discard else into, os.O_WRONLY | os.O_CREAT)
        buffer, left = memoryview(bytearray(CHUNK_BYTES)), order.mib << 20
        with socket.create_connection(("127.0.0.1", order.port)) as connection:
            connection.sendall(f"GET {order.path} HTTP/1.0\r\n\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096)
            body = head.partition(b"\r\n\r\n")[2]
            left -= os.write(fd, body)
            while left:
                taken = connection.recv_into(buffer)
                if not taken:
                    raise SystemExit(f"expected {left} more bytes of nginx, found the end: {head[:200]!r}")
                left -= taken if order.discard else os.write(fd, buffer[:taken])
        os.close(fd)
        seconds = time.perf_counter() - began
        into.unlink(missing_ok=True)
        return Done(seconds=seconds)


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def made(kind: str, folder: Path, *names: str) -> HolderNode | FetchingNode:
    folder.mkdir(parents=True, exist_ok=True)
    return HolderNode(folder) if kind == "holder" else FetchingNode(folder, *names)


async def main() -> None:
    kind, folder, *names = sys.argv[1:]
    me = made(kind, Path(folder), *names)
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        done = await asyncio.to_thread(me.obey, msgspec.json.decode(line, type=Order))
        print(msgspec.json.encode(done).decode(), flush=True)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
