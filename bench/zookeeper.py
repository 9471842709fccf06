"""What a session on ZooKeeper costs: zk.session_tree's beside a KazooClient's, in one run on one server.

    python -m bench.zookeeper [--sessions N] [--rounds N] [--no-write]

Theory of operation. Each measurement runs in a process of its own, so that memory and CPU are those of one client
alone; the two clients take turns for some rounds, and medians are compared. The KazooClient is used as it has to be
from code on an event loop: calls without waiting, whose completions come from its threads by `call_soon_threadsafe`.
Operations are reads of one znode, some of them in flight at a time; idle sessions do what keeps them alive. CPU is of
the process, and of the server as the kernel counts it.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from kazoo.client import KazooClient

from bench.results import commit, machine, write
from zk.client import TreeClient
from zk.server import Server, find_zookeeper
from zk.session_tree import SessionTree

SESSION_S = 10.0
PATH = "/bench/a"
IN_FLIGHT = {1: 4000, 20: 20_000, 100: 30_000}
"""How many operations are measured with so many in flight."""
OPENING = 100
"""Sessions that are opened at a time."""
SETTLE_S, IDLE_S = 5.0, 20.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Client(Protocol):
    """One session."""

    async def open(self) -> None: ...

    async def read(self) -> object: ...

    async def close(self) -> None: ...


class Ours:
    def __init__(self, hosts: str) -> None:
        self._tree = SessionTree(hosts, session_timeout_s=SESSION_S)
        self._client = TreeClient(self._tree)

    async def open(self) -> None:
        await self._tree.open(60)

    async def read(self) -> object:
        return await self._client.exists(PATH)

    async def close(self) -> None:
        await self._tree.close()


class Kazoos:
    def __init__(self, hosts: str) -> None:
        self._client: Any = KazooClient(hosts, timeout=SESSION_S)
        self._loop = asyncio.get_running_loop()

    async def open(self) -> None:
        await asyncio.to_thread(self._client.start, 60)

    async def read(self) -> object:
        answer: asyncio.Future[object] = self._loop.create_future()
        result = self._client.exists_async(PATH)
        result.rawlink(lambda _: self._loop.call_soon_threadsafe(answer.set_result, result.get_nowait()))
        return await answer

    async def close(self) -> None:
        await asyncio.to_thread(self._client.stop)


CLIENTS: dict[str, type[Ours] | type[Kazoos]] = {"ours": Ours, "kazoo": Kazoos}


@dataclass(frozen=True, slots=True)
class Operations:
    """Of one operation, in microseconds."""

    took_us: float
    cpu_us: float


@dataclass(frozen=True, slots=True)
class Idle:
    """`kib`: memory a session. CPU: in percent of one core, of all sessions together."""

    connects_per_s: float
    connect_cpu_us: float
    kib: float
    client_percent: float
    server_percent: float


# --- in a process of its own ----------------------------------------------------------------------------------------


def operations(name: str, hosts: str, in_flight: int, count: int) -> Operations:
    async def main() -> Operations:
        client: Client = CLIENTS[name](hosts)
        await client.open()

        async def work() -> None:
            for _ in range(count // in_flight):
                await client.read()

        await asyncio.gather(*(work() for _ in range(in_flight)))  # until the server's code is compiled
        cpu_s, began = time.process_time(), time.perf_counter()
        await asyncio.gather(*(work() for _ in range(in_flight)))
        took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
        await client.close()
        return Operations(took_s / count * 1e6, cpu_s / count * 1e6)

    return asyncio.run(main())


def idle(name: str, hosts: str, sessions: int, server: int) -> Idle:
    async def main() -> Idle:
        clients: list[Client] = [CLIENTS[name](hosts) for _ in range(sessions)]
        memory, cpu_s, began = _memory_kib(), time.process_time(), time.perf_counter()
        await _each(clients, lambda client: client.open())
        took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
        memory = _memory_kib() - memory
        await asyncio.sleep(SETTLE_S)
        ours, theirs, began = time.process_time(), _cpu_s(server), time.perf_counter()
        await asyncio.sleep(IDLE_S)
        idle_s = time.perf_counter() - began
        ours, theirs = time.process_time() - ours, _cpu_s(server) - theirs
        await _each(clients, lambda client: client.close())
        return Idle(
            sessions / took_s, cpu_s / sessions * 1e6, memory / sessions, ours / idle_s * 100, theirs / idle_s * 100
        )

    return asyncio.run(main())


async def _each(clients: Iterable[Client], act: Callable[[Client], Awaitable[None]]) -> None:
    some = asyncio.Semaphore(OPENING)

    async def one(client: Client) -> None:
        async with some:
            await act(client)

    await asyncio.gather(*map(one, clients))


def _memory_kib() -> int:
    """Of this process, what no other shares."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


# --- the whole --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Figures:
    """By client: by how many were in flight, and of idle sessions; one of each round."""

    operations: dict[str, dict[int, list[Operations]]]
    idle: dict[str, list[Idle]]
    sessions: int
    rounds: int


def alone(measure: Callable[[], Any]) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure).result()


def measure(sessions: int, rounds: int, say: Callable[[str], None]) -> Figures:
    """Raises AssertionError when there is no ZooKeeper on this machine."""
    installation = find_zookeeper()
    assert installation is not None, "no ZooKeeper server was found on this machine: run `make setup`"
    read: dict[str, dict[int, list[Operations]]] = {name: {n: [] for n in IN_FLIGHT} for name in CLIENTS}
    slept: dict[str, list[Idle]] = {name: [] for name in CLIENTS}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-zookeeper-"))
        server = stack.enter_context(Server(installation, Path(folder), heap_mib=512))
        assert server.pid is not None
        for number in range(1, rounds + 1):
            for name in CLIENTS:
                say(f"round {number} of {rounds}: {name}")
                for in_flight, count in IN_FLIGHT.items():
                    read[name][in_flight].append(alone(partial(operations, name, server.hosts, in_flight, count)))
                slept[name].append(alone(partial(idle, name, server.hosts, sessions, server.pid)))
    return Figures(read, slept, sessions, rounds)


def report(figures: Figures, command: str) -> str:
    def row(what: str, values: Callable[[str], list[float]]) -> str:
        ours, kazoo = (statistics.median(values(name)) for name in CLIENTS)
        return f"| {what} | {_number(ours)} | {_number(kazoo)} | {kazoo / max(ours, 1e-9):.1f} |"

    rows = []
    for n in IN_FLIGHT:
        rows += [
            row(f"a read, {n} in flight: µs", lambda name, n=n: [o.took_us for o in figures.operations[name][n]]),  # type: ignore[misc]
            row("the same: CPU, µs", lambda name, n=n: [o.cpu_us for o in figures.operations[name][n]]),  # type: ignore[misc]
        ]
    count = f"{figures.sessions:,} idle sessions: "
    rows += [
        row("to connect a session: CPU, µs", lambda name: [i.connect_cpu_us for i in figures.idle[name]]),
        row("connecting, sessions a second", lambda name: [i.connects_per_s for i in figures.idle[name]]),
        row("memory a session, KiB", lambda name: [i.kib for i in figures.idle[name]]),
        row(f"{count}% of a core", lambda name: [i.client_percent for i in figures.idle[name]]),
        row("the same: % of a core at the server", lambda name: [i.server_percent for i in figures.idle[name]]),
    ]
    return "\n".join(
        (
            "## ZooKeeper: what a session costs",
            "",
            f"{machine()}; commit {commit()}; {datetime.now(UTC):%Y-%m-%d}; `{command}`.",
            f"One server as a local fabric has it, sessions of {SESSION_S:g} s, medians of {figures.rounds} rounds.",
            "Reads are of one znode, awaited on an event loop. Connecting, ours looks for the fabric's roots as well.",
            "",
            "| | ours | a KazooClient | its, by ours |",
            "| --- | --- | --- | --- |",
            *rows,
        )
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.zookeeper", description="What a session costs.")
    parser.add_argument("--sessions", type=int, default=1000, metavar="N", help="idle ones (1000)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="(3)")
    parser.add_argument("--no-write", action="store_true", help="print the figures only")
    args = parser.parse_args()
    figures = measure(args.sessions, args.rounds, partial(print, file=sys.stderr, flush=True))
    section = report(figures, " ".join(("python -m bench.zookeeper", *sys.argv[1:])))
    print(section)
    if not args.no_write:
        write("zookeeper", section)


if __name__ == "__main__":
    main()
