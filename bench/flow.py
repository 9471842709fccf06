"""Measures the flow of a request on a fabric of real processes, and writes the figures into bench/RESULTS.md.

    python -m bench.flow [--repeat N] [--no-demo] [--no-write]

What is measured, from outside, as a user would see it:

- the demo: `fabric demo`, what it says of itself;
- a request: from just before its POST until the record says "running", 50 Large on 24 nodes, with an image of 64 MiB
  that no node has (each repetition pushes new random content) and with the same image in every cache;
- ZooKeeper writes a request: as the trace counts them, and by the server's own counter (its zxid grows by one a
  transaction), which also sees what others write meanwhile;
- an agent's memory: /proc/PID/smaps_rollup. Agents of a local fabric fork from a warm parent: "of its own" is what it
  shares with nobody (Private_*), Pss adds its part of what is shared;
- the latency of each step: the spans of the traces.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bench import asking
from bench.results import commit, machine, write
from fabric.cli import views
from fabric.cli.client import Api
from fabric.load import meters
from fabric.local.harness import LocalFabric
from fabric.roles.trace import STEPS, Run
from zk.server import ask_status

FABRIC = (sys.executable, "-m", "deploy.cli.main")
COUNT = 50
IMAGE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Request:
    """`wall_s`: POST to running. `zxids`: transactions that the server counted meanwhile."""

    wall_s: float
    zxids: int
    run: Run


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one agent, in MiB."""

    layer: str
    own: float
    pss: float
    rss: float


@dataclass(frozen=True, slots=True)
class Figures:
    up_s: float
    down_s: float
    push_s: tuple[float, ...]
    uncached: tuple[Request, ...]
    cached: tuple[Request, ...]
    memory: tuple[Memory, ...]
    idle_zxids_a_second: float


def zxid(port: int) -> int:
    """The server's last transaction. Raises SystemExit."""
    status = ask_status(port)
    if status is None:
        raise SystemExit(f"expected a ZooKeeper server on port {port}, found none that serves")
    return status.zxid


def request(api: Api, port: int, name: str) -> Request:
    """Deploy, wait, look from outside, delete."""
    before = zxid(port)
    with asking.deployed(api, name, COUNT) as (wall_s, ended):
        zxids = zxid(port) - before
        asking.see_processes(api, ended)
        run = asking.last_run(api, ended)
    return Request(wall_s, zxids, run)


def memory(api: Api) -> Iterator[Memory]:
    for node in api.pages("/v1/nodes", 1000).read(views.Page[views.Node]).items:
        found = meters.memory([node.pid])
        yield Memory(node.layer, found.private, found.pss, found.rss)


def measure(repeat: int, on_disk: bool = False) -> Figures:
    """On the fabric of the demo: 3 racks, each 8 compute and 2 storage agents. Its files are in memory, where there is
    room, as those of the demo; or on the disk that all nodes here share."""
    pushes: list[float] = []
    uncached: list[Request] = []
    cached: list[Request] = []
    began = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix="fabric-bench-") as folder,
        LocalFabric(racks=3, compute=8, storage=2, parent=Path(folder) if on_disk else None) as fabric,
        Api(fabric.api_url) as api,
    ):
        up_s = time.perf_counter() - began
        port = int(fabric.zk_hosts.partition("/")[0].rpartition(":")[2])
        for number in range(repeat):
            path, name = Path(folder) / "image.tar", f"bench-{number}"
            asking.write_image(path, IMAGE_BYTES)
            pushes.append(asking.push(api, name, path))
            uncached.append(request(api, port, name))
            cached.append(request(api, port, name))
            print(f"  {number + 1} of {repeat}: {uncached[-1].wall_s:.2f} s, cached {cached[-1].wall_s:.2f} s")
        found = tuple(memory(api))
        idle_from, idle_began = zxid(port), time.monotonic()
        time.sleep(5)
        idle = (zxid(port) - idle_from) / (time.monotonic() - idle_began)
        down_began = time.perf_counter()
    down_s = time.perf_counter() - down_began
    return Figures(up_s, down_s, tuple(pushes), tuple(uncached), tuple(cached), found, idle)


class Asked(msgspec.Struct, frozen=True):
    request_s: float


class Demo(msgspec.Struct, frozen=True):
    """What of `fabric demo --format json` is told here; seconds. `total_s`: from ZooKeeper's start to 50 running."""

    total_s: float
    down_s: float
    first: Asked
    second: Asked


def demos(repeat: int) -> Iterator[Demo]:
    for _ in range(repeat):
        done = subprocess.run((*FABRIC, "demo", "--format", "json"), stdout=subprocess.PIPE, check=True, timeout=300)
        yield msgspec.json.decode(done.stdout, type=Demo)


# --- the report ------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float], digits: int = 2) -> str:
    """median (least to most)"""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def steps(requests: Iterable[Request]) -> dict[int, float]:
    """Median milliseconds of each step."""
    took: dict[int, list[int]] = defaultdict(list)
    for one in requests:
        for span in one.run.spans:
            took[span.step].append(span.took_ms)
    return {step: statistics.median(found) for step, found in sorted(took.items())}


def report(repeat: int, figures: Figures, on_disk: Figures, shown: Sequence[Demo]) -> str:
    uncached, cached = [one.wall_s for one in figures.uncached], [one.wall_s for one in figures.cached]
    both = (*figures.uncached, *figures.cached)
    writes = [one.run.zookeeper_writes for one in both]
    own = [one.own for one in figures.memory]
    slow, fast = steps(figures.uncached), steps(figures.cached)
    rows = [
        *(
            [
                (
                    "`make demo`, ZooKeeper's start to 50 running, s",
                    "at most 20",
                    spread([one.total_s for one in shown]),
                ),
                ("its request, image on no node, s", "at most 5", spread([one.first.request_s for one in shown])),
                ("its request, image cached, s", "at most 1.5", spread([one.second.request_s for one in shown])),
                ("its taking down, s", "", spread([one.down_s for one in shown])),
            ]
            if shown
            else []
        ),
        ("`fabric up` of 30 agents, s", "", f"{figures.up_s:.1f}"),
        ("`fabric down`, s", "", f"{figures.down_s:.1f}"),
        ("push of 64 MiB to two holders, s", "", spread(figures.push_s)),
        ("request, POST to 50 running, image on no node, s", "at most 5", spread(uncached)),
        ("request, image cached, s", "at most 1.5", spread(cached)),
        ("request, image on no node, all files on one disk, s", "", spread([one.wall_s for one in on_disk.uncached])),
        ("request, image cached, all files on one disk, s", "", spread([one.wall_s for one in on_disk.cached])),
        (
            "ZooKeeper writes a request, by the trace",
            "at most 6",
            f"{statistics.median(writes):g} (most {max(writes)})",
        ),
        ("transactions of the server meanwhile", "", spread([one.zxids for one in both], 0)),
        ("transactions a second when nothing is asked", "", f"{figures.idle_zxids_a_second:.1f}"),
        ("messages a request", "", spread([one.run.messages for one in both], 0)),
        ("memory of an agent: its own, MiB", "at most 60", spread(own, 1)),
        ("the same with its part of what is shared (Pss)", "", spread([one.pss for one in figures.memory], 1)),
        ("the same with all that is shared (Rss)", "", spread([one.rss for one in figures.memory], 1)),
    ]
    lines = [
        "## The flow of a request",
        "",
        f"{machine()}; commit {commit()}; {datetime.now(UTC):%Y-%m-%d}; `python -m bench.flow --repeat {repeat}`.",
        f"3 racks of 8 compute and 2 storage agents, each a process; {COUNT} Large; an image of 64 MiB, random bytes.",
        "The files of all nodes are in memory (tmpfs), where not said otherwise.",
        f"Median (least to most) of {repeat} repetitions; memory: of all {len(own)} agents, after the requests.",
        "",
        "| | wanted | measured |",
        "| --- | --- | --- |",
        *(f"| {what} | {wanted} | {found} |" for what, wanted, found in rows),
        "",
        "| step | | image on no node, ms | cached, ms |",
        "| --- | --- | --- | --- |",
        *(f"| {step} | {STEPS[step]} | {slow.get(step, 0):.0f} | {fast.get(step, 0):.0f} |" for step in STEPS),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.flow", description="Measures the flow of a request.")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="repetitions of each measurement (5)")
    parser.add_argument("--no-demo", action="store_true", help="leave the demo out")
    parser.add_argument("--no-write", action="store_true", help="print the figures only")
    args = parser.parse_args()
    print("requests:")
    figures = measure(args.repeat)
    print("requests, on disk:")
    on_disk = measure(args.repeat, on_disk=True)
    shown = [] if args.no_demo else list(demos(args.repeat))
    section = report(args.repeat, figures, on_disk, shown)
    print(section)
    if not args.no_write:
        write("flow", section)


if __name__ == "__main__":
    main()
