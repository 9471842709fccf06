"""Requests a second (target 2), and ZooKeeper's part of a request (target 8): `fabric bench load` in a closed loop.

The yardstick is Slurm's, of the same shape on such a machine: allocations of 50 tasks on 50 nodes, 16 clients, each
freed before the next (28 a second; 39 with 1 or 4 clients). A request here is a deployment of 50 on 50 nodes, made,
seen running, deleted, seen gone: so creates a second are compared.

What this machine could do at all is told beside it: the bare tree (bench/floor.py) sends the same questions and
answers, for as many clients, over the same sockets and hops, and does nothing else, when the fabric is down.
"""

from __future__ import annotations

from bench.fabrics import Shape
from bench.floor import Tree
from bench.wanted import Part, Row, at_least, at_most, say, told
from fabric.load import place, plan, results
from fabric.load.plan import Plan, checked
from fabric.load.session import Session
from fabric.local.interrupts import Interrupts

SLURM_A_SECOND, SLURM_MOST_A_SECOND = 28.0, 39.0
TIMES = 5.0
WRITES = 4.0
READS = ("get", "children")
BARE_S = 10.0


THOUSAND = Shape(25, 40)


def throughput(
    shape: Shape = THOUSAND, clients: int = 32, count: int = 50, for_s: float = 30.0, warm_s: float = 5.0
) -> Part:
    asked = checked(Plan("Large", count, for_s, warm_s, clients=clients, max_per_node=1))
    fabric = plan.Shape(shape.racks, shape.compute, shape.storage, "null", shape.compute)
    say(f"bringing up {shape}: {shape.agents} agents")
    said = ""

    def tell(text: str, done: int, total: int) -> None:
        nonlocal said
        if text != said and (not total or done % 5 == 0):
            say(f"{done} of {total} s, {text}" if total else text)
        said = text

    with Interrupts() as interrupts, place.brought_up(fabric, interrupts) as there:
        result = Session(asked, fabric, there, "python -m bench.speed --part throughput", interrupts, tell).run()
        interrupts.check()
    say("the bare tree")
    with Tree(shape.racks, shape.compute) as tree:
        bare = tree.cycles(clients, max(1, count // shape.racks), BARE_S)
    how = f"{shape}, a rack a process, driver null; {asked.loop}; {count} Large on {count} nodes, {for_s:g} s."
    return Part("throughput", how, tuple(_rows(result, bare)), _costs(result))


def _rows(one: results.Result, bare: float) -> list[Row]:
    per_s = one.per_s.get("create", 0.0)
    broken = [check for check in one.checks if not check.holds]
    rows = [
        at_least(2, "deployments a second, made and deleted", per_s, TIMES * SLURM_A_SECOND, "/s", 1),
        told(f"times Slurm's {SLURM_A_SECOND:g}/s (16 clients), {SLURM_MOST_A_SECOND:g}/s (its best)",
             f"{per_s / SLURM_A_SECOND:.2f}, {per_s / SLURM_MOST_A_SECOND:.2f}", 2),
        told("the same messages over a bare tree, nothing else, a second", f"{bare:.0f}; we: {per_s / bare:.0%}", 2),
        Row(2, "over-committed nodes, lost requests, instances left", "0",
            "; ".join(check.found for check in broken) or "0", not broken),
    ]  # fmt: skip
    if created := one.latencies.get("create settled"):
        times = (created.p50_ms, created.p90_ms, created.p99_ms, created.max_ms)
        rows.append(told("POST to running, ms: 50 %, 90 %, 99 %, most", ", ".join(f"{one:.0f}" for one in times)))
    if one.traced is not None:
        rows += [
            at_most(8, "writes of ZooKeeper a create, by the trace", one.traced.zookeeper_writes, WRITES, digits=1),
            at_most(8, "reads of ZooKeeper a create, by the trace", one.traced.zookeeper_reads, 0, digits=1),
        ]
    if one.counted.zookeeper_transactions is not None:
        told_as = f"{one.counted.zookeeper_transactions:g} of a create or delete"
        rows.append(told("transactions a request, by ZooKeeper's own count", told_as))
    reads = sum(one.counted.api_operations.get(kind, 0.0) for kind in READS)
    rows.append(at_most(8, "get and getChildren of the API, a request", reads, 0, digits=1))
    rows.append(told("the load generator's part of the CPU that was used", f"{100 * one.generator_share:.1f} %"))
    return rows


def _costs(one: results.Result) -> tuple[str, ...]:
    return (
        "| role | processes | CPU a request, ms | of one core | Pss, MiB |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {each.role} | {each.processes} | {each.cpu_ms_request:.2f} | {100 * each.cpu_s / one.ran_s:.0f} % "
            f"| {each.pss_mib:.0f} |"
            for each in one.groups
        ),
    )
