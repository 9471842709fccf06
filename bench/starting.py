"""From API call to processes that run (target 3), on 200 agents, each a process of its own.

Cached: every node has the image, which is small. The yardstick is Slurm's on such a machine: `srun` of 50 tasks on 50
nodes has all of them running after 0.29 to 0.45 s, seen from outside; here, likewise, the time ends when the record
says that it runs, and all its processes are there by then.

Uncached: 64 MiB of random bytes that no node has. The yardstick is what the bytes need on this machine in the same run:
through the loopback interface (one TCP connection between two processes), and through blake3 in as many threads as
there are cores. That they are also written is not in it: what that takes is told beside it, and done just before each
request (bench/pages.py says why). (Files are in memory where there is room: each uncached request leaves 3 GiB there
until the end.)
"""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import blake3

from bench import asking, pages
from bench.fabrics import Shape, up
from bench.wanted import Part, Row, at_most, say, spread, told
from fabric.cli.client import Api
from fabric.load.latency import quantile
from fabric.load.machine import cores

SLURM_S, SLURM_BEST_S = 0.45, 0.29
TIMES = 2.0
LOOPBACK_BYTES, HASH_BYTES, PIECE_BYTES = 1 << 30, 256 << 20, 1 << 20
PAGES_BYTES_S = 3 << 29


TWO_HUNDRED = Shape(5, 38, 2)


def starting(
    shape: Shape = TWO_HUNDRED, count: int = 50, rounds: int = 10, uncached: int = 2, image_bytes: int = 64 << 20
) -> Part:
    cold: list[float] = []
    needed: list[float] = []
    written: list[float] = []
    with (
        tempfile.TemporaryDirectory(prefix="fabric-bench-") as folder,
        up(shape, driver="process") as (fabric, _),
        Api(fabric.api_url) as api,
    ):
        asking.push_small(api, "starting")
        say("every node fetches the image")
        asking.prime(api, "starting", shape.racks * shape.compute)
        asking.once(api, "starting", count, seen=True, max_per_node=1)
        warm = [asking.once(api, "starting", count, seen=True, max_per_node=1) for _ in range(rounds)]
        say(f"cached: {spread([one.wall_s for one in warm])} s")
        path = Path(folder) / "image.tar"
        for number in range(uncached):
            asking.write_image(path, image_bytes)
            asking.push(api, f"starting-{number}", path)
            total = count * path.stat().st_size
            with pages.at_hand(fabric.folder.path / "written", count * image_bytes, PAGES_BYTES_S) as took_s:
                cold.append(asking.once(api, f"starting-{number}", count, seen=True, max_per_node=1).wall_s)
            written.append(took_s)
            needed.append(total / loopback_bytes_s() + total / hash_bytes_s())
            say(f"uncached: {cold[-1]:.2f} s; the bytes need {needed[-1]:.2f} s")
    walls = sorted(one.wall_s for one in warm)
    rows: list[Row] = [
        at_most(3, f"POST to {count} processes, each on its node, cached", statistics.median(walls), SLURM_S, "s"),
        told(f"median (least to most), 90 %; Slurm's {SLURM_BEST_S:g} to {SLURM_S:g}",
             f"{spread(walls)}, {quantile(walls, 0.9):.2f} s", 3),
        told("its delete, until all is gone", f"{spread([one.away_s for one in warm])} s"),
    ]  # fmt: skip
    if cold:
        ratio = statistics.median(cold) / statistics.median(needed)
        rows += [
            at_most(3, f"uncached, {image_bytes >> 20} MiB: times what the bytes need", ratio, TIMES),
            told("uncached, s", spread(cold), 3),
            told("what the bytes need: loopback and hash, s", spread(needed), 3),
            told("to write as many files, each once, a thread for each core, s", spread(written), 3),
        ]
    how = f"{shape}, each a process, driver process; {rounds} requests cached, {uncached} not, one after the other."
    return Part("starting", how, tuple(rows))


def loopback_bytes_s(total: int = LOOPBACK_BYTES) -> float:
    """One TCP connection over the loopback interface, from one process to another."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        child = os.fork()
        if not child:
            try:
                with socket.create_connection(server.getsockname()) as out:
                    piece = bytes(PIECE_BYTES)
                    for _ in range(total // PIECE_BYTES):
                        out.sendall(piece)
            finally:
                os._exit(0)
        connection, _ = server.accept()
        with connection:
            room = bytearray(PIECE_BYTES)
            began, received = time.perf_counter(), 0
            while got := connection.recv_into(room):
                received += got
            took_s = time.perf_counter() - began
        os.waitpid(child, 0)
    return received / took_s


def hash_bytes_s(size: int = HASH_BYTES) -> float:
    """blake3 in one thread for each core, all of them together."""
    content = os.urandom(PIECE_BYTES)
    pieces = size // PIECE_BYTES

    def work() -> None:
        for _ in range(pieces):
            blake3.blake3(content).digest()

    threads = cores()
    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        for one in [pool.submit(work) for _ in range(threads)]:
            one.result()
        return threads * pieces * PIECE_BYTES / (time.perf_counter() - began)

