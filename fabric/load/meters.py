"""CPU and memory of a local fabric's processes by role, from /proc; ZooKeeper's own counters.

Roles share processes: an agent that leads its rack is one process with its leader, and so are agents that were started
several a process. So processes are put in groups by the heaviest of their roles, as it was at the first look: whoever
leads a rack by then, is counted as a leader to the end.

CPU is utime + stime of /proc/PID/stat, all threads together, in ticks of 10 ms: rounding both ends of a difference the
same way leaves an error of at most one tick a process, to either side. Memory: Rss counts what is shared with others
in full; Pss shares it out, so Pss may be added up. Reading Pss takes a millisecond or more a process: not while
something is measured.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fabric.local.folder import NODES
from fabric.local.state import LocalState
from zk import connect
from zk.server import ask_status

TICKS = os.sysconf("SC_CLK_TCK")
GENERATOR = "load generator"
OURS = "keeper and eyes"
STARTERS = "instance starters"
"""A process beside each agent that has started an instance, which starts them. The keeper adopts it."""
ROLES = (
    "compute agents", "compute rack leaders", STARTERS, "storage agents", "storage leaders", "API", "ZooKeeper", OURS,
    GENERATOR,
)  # fmt: skip


def roles(state: LocalState | None, generator: int) -> dict[str, tuple[int, ...]]:
    """Role -> pids, in the order of ROLES; roles without a process are left out. `state`: of a local fabric.
    `generator`: this process's pid."""
    if state is None:
        return {GENERATOR: (generator,)}
    leaders = {node for by_rack in state.leaders.values() for node in by_rack.values()}
    leading = {view.process.pid for view in state.nodes if view.process and view.node.name in leaders}
    found: dict[str, dict[int, None]] = {role: {} for role in ROLES}
    for view in state.nodes:
        if view.process is None or view.ended:
            continue
        layer, leads = view.node.layer, view.process.pid in leading
        role = {
            ("compute", False): "compute agents",
            ("compute", True): "compute rack leaders",
            ("storage", False): "storage agents",
            ("storage", True): "storage leaders",
        }[layer, leads]
        found[role][view.process.pid] = None
    if state.api.process:
        found["API"][state.api.process.pid] = None
    found["ZooKeeper"] = {one.process.pid: None for one in state.zookeepers.values() if one.process}
    companions = [one.process.pid for one in state.companions.values() if one.process]
    found[OURS] = dict.fromkeys((state.keeper.pid, *children(state.keeper.pid), *companions))
    known = {pid for role, pids in found.items() if role != OURS for pid in pids}
    found[OURS] = {pid: None for pid in found[OURS] if pid not in known}
    nodes = Path(state.folder) / NODES
    found[STARTERS] = {pid: None for pid in found[OURS] if _works_in(pid, nodes)}
    found[OURS] = {pid: None for pid in found[OURS] if pid not in found[STARTERS]}
    found[GENERATOR][generator] = None
    return {role: tuple(pids) for role, pids in found.items() if pids}


def children(pid: int) -> tuple[int, ...]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return tuple(map(int, file.read().split()))
    except OSError:
        return ()


def _works_in(pid: int, folder: Path) -> bool:
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd")).is_relative_to(folder)
    except OSError:
        return False


def cpu_s(pids: Iterable[int]) -> float:
    """Of processes that live: what they used since they began."""
    ticks = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS


@dataclass(frozen=True, slots=True)
class Memory:
    """MiB. `private`: what is shared with nobody."""

    pss: float
    rss: float
    private: float


def memory(pids: Iterable[int]) -> Memory:
    """Of all of them together."""
    totals = {"Pss": 0, "Rss": 0, "Private_Clean": 0, "Private_Dirty": 0}
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
                text = file.read()
        except OSError:
            continue
        for name, kib in re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE):
            if name in totals:
                totals[name] += int(kib)
    private = totals["Private_Clean"] + totals["Private_Dirty"]
    return Memory(totals["Pss"] / 1024, totals["Rss"] / 1024, private / 1024)


@dataclass(frozen=True, slots=True)
class Machine:
    """CPU seconds of all cores together since the machine began."""

    busy_s: float
    all_s: float

    def share_since(self, before: Machine) -> float:
        """Of what the machine had, how much was in use."""
        return (self.busy_s - before.busy_s) / max(self.all_s - before.all_s, 1e-9)


def machine_now() -> Machine:
    """idle and iowait are not busy; time that a hypervisor took (steal) is."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    total = sum(ticks)
    return Machine((total - ticks[3] - ticks[4]) / TICKS, total / TICKS)


@dataclass(frozen=True, slots=True)
class Ensemble:
    """`zxid`: of the last transaction; `packets`: received by all servers together."""

    zxid: int
    packets: int


def ensemble(servers: Sequence[tuple[str, int]]) -> Ensemble | None:
    """By the servers' own word; None when none answers."""
    found = []
    for host, port in servers:
        if (status := ask_status(port, host)) is not None:
            found.append(status)
    if not found:
        return None
    return Ensemble(max(one.zxid for one in found), sum(one.received for one in found))


def servers_of(state: LocalState) -> tuple[tuple[str, int], ...]:
    """Those of a fabric's own, or of the connect string it was given."""
    own = ",".join(one.where for one in state.zookeepers.values())
    return connect.parse(own or state.zookeeper.where).servers


_SENT = re.compile(r"^fabric_api_bus_sent_total\{[^}]*\} ([0-9.e+]+)$", re.MULTILINE)
_OPERATIONS = re.compile(r'^fabric_api_zookeeper_operations_total\{kind="(\w+)"\} ([0-9.e+]+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ApiCounters:
    """Of one API process since it began: messages to peers, and operations on ZooKeeper by kind."""

    messages: float
    operations: Mapping[str, float]


def api_counters(text: str) -> ApiCounters | None:
    """From its /metrics; None: they are not there."""
    messages = [float(value) for value in _SENT.findall(text)]
    operations = {kind: float(value) for kind, value in _OPERATIONS.findall(text)}
    return ApiCounters(sum(messages), operations) if messages or operations else None
