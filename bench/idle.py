"""Start-up (target 5) and what agents cost while nothing is asked of them (target 7).

1,000 agents, each a process of its own. Start-up is from the first process to all of them registered and led, API
ready. Idle: after `settle_s`, utime + stime of every agent's and ZooKeeper's process over `over_s`, as part of one
core; the API's, keeper's and eyes' beside it, and how busy the whole machine was meanwhile, as a check that nothing is
left out. Memory: Pss of /proc/PID/smaps_rollup, added up, after that (reading it costs CPU).
"""

from __future__ import annotations

import time

from bench.fabrics import Shape, agent_pids, api_pids, up, zookeeper_pids
from bench.wanted import Part, Row, at_most, say, told
from fabric.load import meters
from fabric.load.machine import cores
from fabric.local.crew import settings_of

START_S, MEMORY_GIB, IDLE_PERCENT = 60.0, 12.0, 15.0


THOUSAND = Shape(25, 39, 1)


def idle(shape: Shape = THOUSAND, settle_s: float = 15.0, over_s: float = 30.0) -> Part:
    with up(shape, driver="null") as (fabric, took_s):
        say(f"settling for {settle_s:g} s")
        time.sleep(settle_s)
        state = fabric.status()
        groups = {
            "agents": agent_pids(state),
            "ZooKeeper": zookeeper_pids(state),
            "API": api_pids(state),
            "keeper and eyes": meters.roles(state, 0).get(meters.OURS, ()),
        }
        say(f"looking for {over_s:g} s")
        transactions = meters.ensemble(meters.servers_of(state))
        machine, began = meters.machine_now(), time.monotonic()
        before = {name: meters.cpu_s(pids) for name, pids in groups.items()}
        time.sleep(over_s)
        took = time.monotonic() - began
        used = {name: 100 * (meters.cpu_s(pids) - before[name]) / took for name, pids in groups.items()}
        busy = 100 * cores() * meters.machine_now().share_since(machine)
        later = meters.ensemble(meters.servers_of(state))
        say("reading memory")
        memory = {name: meters.memory(pids) for name, pids in groups.items()}
    if len(groups["agents"]) != shape.agents:
        raise SystemExit(f"expected {shape.agents} processes of agents, found {len(groups['agents'])}")
    settings = settings_of(fabric.up.spec)
    agents = memory["agents"]
    rows: list[Row] = [
        at_most(5, f"start-up of {shape.agents:,} agents, one process each, all led", took_s, START_S, "s", 1),
        at_most(5, "their memory (Pss)", agents.pss / 1024, MEMORY_GIB, "GiB"),
        told("of an agent: Pss, its own (private), Rss, MiB", " / ".join(
            f"{value / shape.agents:.1f}" for value in (agents.pss, agents.private, agents.rss)
        )),
        at_most(7, "idle: agents and ZooKeeper, of one core", used["agents"] + used["ZooKeeper"], IDLE_PERCENT, "%", 1),
        *(told(f"of that {name}", f"{used[name]:.1f} %") for name in ("agents", "ZooKeeper")),
        *(told(f"besides: {name}", f"{used[name]:.1f} %") for name in ("API", "keeper and eyes")),
        told("the whole machine meanwhile, of one core", f"{busy:.1f} %"),
    ]  # fmt: skip
    if transactions and later:
        writes, packets = later.zxid - transactions.zxid, later.packets - transactions.packets
        rows.append(told("transactions, packets of ZooKeeper a second", f"{writes / took:.1f}, {packets / took:.1f}"))
    how = (
        f"{shape}, each a process. Heartbeats every {settings.heartbeat_interval_s:g} s, sessions of "
        f"{settings.session_timeout_s:g} s. CPU over {over_s:g} s, {settle_s:g} s after all was up."
    )
    return Part("idle", how, tuple(rows))
