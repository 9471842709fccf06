"""Measures how images are distributed (target 6), and writes the figures into bench/RESULTS.md.

    python -m bench.images [--repeat N] [--no-write]

64 MiB to 24 nodes of 3 racks at once, and 1 GiB to 8 nodes of 2 racks, each node and each of the two holders a process
of its own. The bytes that leave the holders are counted by their servers. The yardstick in the same run is nginx with
sendfile, and as many clients, the same processes, begun in the same moment: once they write what they get to a file, as
our nodes do, and once they throw it away. Like is compared with like: nodes write files, and are held against clients
that do; that nodes also hash every chunk is their own affair.

All files are in memory (tmpfs) where there is room: it is not the disk that is measured. As many are written before
each that writes files, and removed meanwhile (bench/pages.py says why).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bench import pages
from bench.images_node import Done, Order
from bench.results import commit, machine, write
from bench.wanted import Row, at_least, at_most, say, spread, table, told
from fabric.images.protocol import Holder

MEMORY = Path("/dev/shm")
ROOM_BYTES = 12 << 30
HOLDERS = 2
SHARE = 0.7
NGINX = """
user root; worker_processes {cores}; daemon off; pid {folder}/pid; error_log {folder}/log;
events {{ worker_connections 256; }}
http {{
  access_log off; sendfile on;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{ listen 127.0.0.1:{port}; root {folder}; }}
}}
"""


@dataclass(frozen=True, slots=True)
class Shape:
    nodes: int
    racks: int
    mib: int
    repeat: int

    def __str__(self) -> str:
        size = f"{self.mib} MiB" if self.mib < 1024 else f"{self.mib // 1024} GiB"
        return f"{size} to {self.nodes} nodes of {self.racks} racks"


@dataclass(frozen=True, slots=True)
class Spread:
    """`left`: images that left the holders; GiB/s of all nodes together, by round. `cpu_s`: of one round, per GiB."""

    shape: Shape
    left: tuple[float, ...]
    ours: tuple[float, ...]
    files: tuple[float, ...]
    discarded: tuple[float, ...]
    cpu_s: tuple[float, ...]
    dropped: tuple[str, ...]


@dataclass(slots=True)
class Child:
    """A process of `bench.images_node`."""

    process: subprocess.Popen[str]

    def tell(self, order: Order) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(order).decode() + "\n")
        self.process.stdin.flush()

    def answer(self) -> Done:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("expected an answer of a process of this benchmark, found that it has ended")
        return msgspec.json.decode(line, type=Done)

    def ask(self, order: Order) -> Done:
        self.tell(order)
        return self.answer()


@dataclass(slots=True)
class Children:
    folder: Path
    made: list[Child] = field(default_factory=list)

    def start(self, kind: str, name: str, *more: str) -> Child:
        command = (sys.executable, "-m", "bench.images_node", kind, str(self.folder / name), *more)
        made = Child(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        self.made.append(made)
        return made

    def wait_ready(self) -> None:
        for child in self.made:
            assert child.process.stdout is not None
            child.process.stdout.readline()

    def close(self) -> None:
        for child in self.made:
            child.process.kill()
            child.process.wait()


@contextlib.contextmanager
def working_folder() -> Iterator[Path]:
    parent = MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM_BYTES else None
    with tempfile.TemporaryDirectory(prefix="fabric-bench-", dir=parent) as folder:
        yield Path(folder)


@contextlib.contextmanager
def nginx(folder: Path, mib: int) -> Iterator[int]:
    """Its port. It serves `/image`."""
    if shutil.which("nginx") is None:
        raise SystemExit("expected nginx, found none: install it (Debian: nginx-light), it is the yardstick here")
    folder.mkdir()
    with open(folder / "image", "wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))
    port = free_port()
    (folder / "conf").write_text(NGINX.format(cores=os.cpu_count(), folder=folder, port=port))
    process = subprocess.Popen(("nginx", "-c", str(folder / "conf"), "-p", str(folder), "-e", str(folder / "log")))
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
        yield port
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def together(children: Sequence[Child], order: Order) -> tuple[float, list[Done]]:
    """All at once; seconds until the last one is done."""
    began = time.perf_counter()
    for child in children:
        child.tell(order)
    done = [child.answer() for child in children]
    return time.perf_counter() - began, done


def measure_spread(shape: Shape) -> Spread:
    found = Spread(shape, (), (), (), (), (), ())
    with working_folder() as folder, contextlib.closing(Children(folder)) as children:
        holders = [children.start("holder", f"s{number}") for number in range(HOLDERS)]
        nodes = [
            children.start("node", f"c{number}", f"c{number}", f"r{number % shape.racks}")
            for number in range(shape.nodes)
        ]
        children.wait_ready()
        total_bytes, total_gib = shape.nodes * shape.mib << 20, shape.nodes * shape.mib / 1024
        with nginx(folder / "nginx", shape.mib) as port:
            for number in range(shape.repeat):
                order = Order("get", port=port, path="/image", mib=shape.mib)
                with pages.at_hand(folder / "written", total_bytes):
                    files_s, _ = together(nodes, order)
                discard_s, _ = together(nodes, msgspec.structs.replace(order, discard=True))
                made = [one.ask(Order("make", mib=shape.mib, number=number + 1)) for one in holders]
                refs = tuple(Holder(f"s{n}", f"s{n}", one.endpoint) for n, one in enumerate(made))
                before = [one.ask(Order("count")) for one in holders]
                order = Order("fetch", digest=made[0].digest, holders=refs)
                with pages.at_hand(folder / "written", total_bytes):
                    ours_s, done = together(nodes, order)
                after = [one.ask(Order("count")) for one in holders]
                together(nodes, Order("forget", digest=made[0].digest))
                sent = sum(late.number - early.number for early, late in zip(before, after, strict=True))
                cpu = sum(late.cpu_s - early.cpu_s for early, late in zip(before, after, strict=True))
                cpu += sum(one.cpu_s for one in done)
                found = replace(
                    found,
                    left=(*found.left, sent / (shape.mib << 20)),
                    ours=(*found.ours, total_gib / ours_s),
                    files=(*found.files, total_gib / files_s),
                    discarded=(*found.discarded, total_gib / discard_s),
                    cpu_s=(*found.cpu_s, cpu / total_gib),
                    dropped=(*found.dropped, *(drop for one in done for drop in one.dropped)),
                )
                say(
                    f"{shape}: {found.left[-1]:.2f} images left, {found.ours[-1]:.2f} GiB/s, "
                    f"nginx {found.files[-1]:.2f} to files, {found.discarded[-1]:.2f} to nothing"
                )
    return found


# --- the report ------------------------------------------------------------------------------------------------------


def rows(found: Spread) -> Iterator[Row]:
    shape = found.shape
    ours, files, nothing = (statistics.median(one) for one in (found.ours, found.files, found.discarded))
    limit = 2 * shape.racks
    yield at_most(6, f"{shape}: images that leave the holders, at most", max(found.left), limit)
    yield at_least(6, "all nodes together, as a share of nginx with clients that write files", ours / files, SHARE)
    yield told("all nodes together, GiB/s", spread(found.ours))
    yield told("nginx, clients that write files, GiB/s", spread(found.files))
    yield told("nginx, clients that throw away, GiB/s", f"{spread(found.discarded)}; we: {ours / nothing:.0%} of it")
    yield told("CPU time of nodes and holders, s a GiB", spread(found.cpu_s))


def report(spreads: Sequence[Spread]) -> str:
    dropped = [drop for one in spreads for drop in one.dropped]
    lines = [
        "## Images",
        "",
        f"{machine()}; commit {commit()}; {datetime.now(UTC):%Y-%m-%d}; `python -m bench.images`.",
        "Each node and holder is a process; files are in memory, in pages that were in use just before. Nodes verify",
        "every chunk and write it to a file;",
        "nginx (sendfile) sends to as many processes, which don't hash. Median (least to most).",
        "",
        *table([row for one in spreads for row in rows(one)]),
        "",
        f"Dropped in these fetches: {'; '.join(dropped) or 'nobody'}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.images", description="Measures the distribution of images.")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="repetitions (3)")
    parser.add_argument("--no-write", action="store_true", help="print the figures only")
    args = parser.parse_args()
    shapes = (Shape(24, 3, 64, args.repeat), Shape(8, 2, 1024, args.repeat))
    section = report([measure_spread(shape) for shape in shapes])
    print(section)
    if not args.no_write:
        write("images", section)


if __name__ == "__main__":
    main()
