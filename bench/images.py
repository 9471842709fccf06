"""Measures how images are distributed, and writes the figures into bench/RESULTS.md.

    python -m bench.images [--repeat N] [--part spread deploy] [--no-write]

Two parts:

- `spread`: 64 MiB to 24 nodes of 3 racks at once, and 1 GiB to 8 nodes of 2 racks, each node and each of the two
  holders a process of its own. The bytes that leave the holders are counted by their servers. The yardstick in the same
  run is nginx with sendfile, and as many clients, the same processes, begun in the same moment: once they write what
  they get to a file, as our nodes do, and once they throw it away. Nodes hash every chunk besides; nginx's clients
  don't.
- `deploy`: from the API call to 50 processes running, on 50 of 200 agents, with an image of 64 MiB that no node has.
  The yardstick is the time that those bytes need at the speed at which one process sends chunks of 1 MiB to another
  over ZeroMQ on loopback, and that one hashes them.

All files are in memory (tmpfs) where there is room: it is not the disk that is measured.
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

from bench.flow import image, until_rest
from bench.images_node import Done, Order
from bench.results import commit, machine, write
from fabric.cli import views
from fabric.cli.client import Api
from fabric.images.protocol import Holder
from fabric.local.harness import LocalFabric

MEMORY = Path("/dev/shm")
ROOM_BYTES = 12 << 30
HOLDERS = 2
AGENTS = (5, 40)
COUNT = 50
DEPLOY_MIB = 64
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


@dataclass(frozen=True, slots=True)
class Deploy:
    """`yardstick`: GiB/s of loopback and hash. `nodes` that fetched."""

    wall_s: tuple[float, ...]
    nodes: tuple[int, ...]
    yardstick: float


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
        total_gib = shape.nodes * shape.mib / 1024
        with nginx(folder / "nginx", shape.mib) as port:
            for number in range(shape.repeat):
                order = Order("get", port=port, path="/image", mib=shape.mib)
                files_s, _ = together(nodes, order)
                discard_s, _ = together(nodes, msgspec.structs.replace(order, discard=True))
                made = [one.ask(Order("make", mib=shape.mib, number=number + 1)) for one in holders]
                refs = tuple(Holder(f"s{n}", f"s{n}", one.endpoint) for n, one in enumerate(made))
                before = [one.ask(Order("count")) for one in holders]
                order = Order("fetch", digest=made[0].digest, holders=refs)
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
                print(
                    f"  {shape}: {found.left[-1]:.2f} images left, {found.ours[-1]:.2f} GiB/s, "
                    f"nginx {found.files[-1]:.2f} to files, {found.discarded[-1]:.2f} to nothing",
                    flush=True,
                )
    return found


def loopback_and_hash(mib: int = 2048) -> float:
    """GiB/s of chunks over ZeroMQ from one process to another, which hashes them."""
    with working_folder() as folder, contextlib.closing(Children(folder)) as children:
        one, other = (children.start("node", name, name, "r1") for name in ("a", "b"))
        children.wait_ready()
        order = Order("send", mib=mib, port=free_port())
        one.tell(order)
        took = other.ask(msgspec.structs.replace(order, do="take"))
        one.answer()
        return mib / 1024 / took.seconds


def measure_deploy(repeat: int) -> Deploy:
    found = Deploy((), (), 0.0)
    yardsticks = [loopback_and_hash()]
    racks, compute = AGENTS
    with (
        tempfile.TemporaryDirectory(prefix="fabric-bench-") as folder,
        LocalFabric(racks=racks, compute=compute, storage=2) as fabric,
        Api(fabric.api_url) as api,
    ):
        for number in range(repeat):
            path, name = Path(folder) / "image.tar", f"bench-{number}"
            image(path)
            with path.open("rb") as source:
                api.upload(name, iter(lambda: source.read(1 << 20), b""), path.stat().st_size, None)
            wall_s, nodes = deploy(api, name)
            print(f"  {nodes} of {racks * compute} agents: {wall_s:.2f} s", flush=True)
            found = replace(found, wall_s=(*found.wall_s, wall_s), nodes=(*found.nodes, nodes))
    yardsticks.append(loopback_and_hash())
    return replace(found, yardstick=statistics.mean(yardsticks))


def deploy(api: Api, name: str) -> tuple[float, int]:
    """Seconds from the call to COUNT running, and on how many nodes that is."""
    began = time.perf_counter()
    accepted = api.deploy({"image": name, "flavor": "Large", "count": COUNT}, None).read(views.Deployment)
    ended = until_rest(api, accepted)
    wall_s = time.perf_counter() - began
    if ended.state != "running":
        raise SystemExit(f"expected {ended.id} to run, found {ended.state}: {ended.reason}")
    page = api.get("/v1/instances", {"deployment": ended.id, "limit": 1000}).read(views.Page[views.Instance])
    until_rest(api, api.delete(f"/v1/deployments/{ended.id}").read(views.Deployment))
    return wall_s, len({one.node for one in page.items})


# --- the report ------------------------------------------------------------------------------------------------------


def spread_rows(found: Spread) -> Iterator[tuple[str, str, str, str]]:
    shape = found.shape
    limit = 2 * shape.racks
    ours, files, nothing = (statistics.median(one) for one in (found.ours, found.files, found.discarded))
    worst = max(found.left)
    yield f"{shape}: images that leave the holders", f"at most {limit}", told(found.left), yes(worst <= limit)
    yield "GiB/s of all nodes together", f"70 % of {files:.2f}", told(found.ours), yes(ours >= 0.7 * files)
    yield "… of nginx, clients that write files", "", told(found.files), ""
    yield "… of nginx, clients that throw away", "", told(found.discarded), f"{ours / nothing:.0%} of it"
    yield "CPU, s a GiB, holders included", "", told(found.cpu_s), ""


def deploy_rows(found: Deploy) -> Iterator[tuple[str, str, str, str]]:
    gib = [nodes * DEPLOY_MIB / 1024 for nodes in found.nodes]
    limit = 2 * statistics.median(gib) / found.yardstick
    wall = statistics.median(found.wall_s)
    what = f"API call to {COUNT} running on {statistics.median(found.nodes):g} of {AGENTS[0] * AGENTS[1]} agents, s"
    yield f"{what}, image on no node", f"at most {limit:.2f}", told(found.wall_s), yes(wall <= limit)
    yield "loopback and hash, GiB/s", "", f"{found.yardstick:.2f}", ""


def told(values: Sequence[float]) -> str:
    """median (least to most)"""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def yes(holds: bool) -> str:
    return "yes" if holds else "**no**"


def report(spreads: Sequence[Spread], deploys: Sequence[Deploy]) -> str:
    rows = [row for one in spreads for row in spread_rows(one)] + [row for one in deploys for row in deploy_rows(one)]
    dropped = [drop for one in spreads for drop in one.dropped]
    lines = [
        "## Images",
        "",
        f"{machine()}; commit {commit()}; {datetime.now(UTC):%Y-%m-%d}; `python -m bench.images`.",
        "Each node and holder is a process; files are in memory. Nodes verify every chunk and write it to a file;",
        "nginx (sendfile) sends to as many processes, which don't hash. Loopback and hash: one process sends chunks of",
        "1 MiB over ZeroMQ, another one hashes them. Median (least to most).",
        "",
        "| | wanted | measured | holds |",
        "| --- | --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"Dropped in these fetches: {'; '.join(dropped) or 'nobody'}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.images", description="Measures the distribution of images.")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="repetitions of what is small (3)")
    parser.add_argument("--part", nargs="+", choices=("spread", "deploy"), default=("spread", "deploy"))
    parser.add_argument("--no-write", action="store_true", help="print the figures only")
    args = parser.parse_args()
    shapes = (Shape(24, 3, 64, args.repeat), Shape(8, 2, 1024, 1)) if "spread" in args.part else ()
    spreads = [measure_spread(shape) for shape in shapes]
    deploys = [measure_deploy(args.repeat)] if "deploy" in args.part else []
    section = report(spreads, deploys)
    print(section)
    if not args.no_write:
        write("images", section)


if __name__ == "__main__":
    main()
