"""Negotiation (target 1): steps 3 to 6 of a request, against the bare tree of ZeroMQ sockets (bench/floor.py).

The same run has both, one after the other, round by round: a request on the fabric, then gathers over the bare tree
while the fabric is up and idle; and once more over the tree when the fabric is gone, as its processes take some of the
machine. A rack's agents share a process in both. The floor is the median of the first; ratios to both are told.
"""

from __future__ import annotations

import statistics

from bench import asking
from bench.fabrics import Discussion, Shape, up
from bench.floor import Tree
from bench.wanted import Part, Row, at_most, say, spread, told
from fabric.cli.client import Api
from fabric.load.latency import quantile
from fabric.load.traces import between_ms, steps
from fabric.roles.trace import Run

RATIO = 1.5
GATHERS = 3


THOUSAND = Shape(25, 40)


def negotiation(shape: Shape = THOUSAND, count: int = 50, rounds: int = 30, discussion: Discussion = "known") -> Part:
    runs: list[Run] = []
    beside: list[float] = []
    with Tree(shape.racks, shape.compute) as tree:
        options = {"driver": "null", "agents_per_process": shape.compute, "discussion": discussion}
        with up(shape, **options) as (fabric, _), Api(fabric.api_url) as api:
            asking.push_small(api, "negotiation")
            say("every node fetches the image")
            asking.prime(api, "negotiation", shape.racks * shape.compute)
            for number in range(rounds + 1):
                run = asking.once(api, "negotiation", count, max_per_node=1).run
                took = tree.ask(GATHERS)
                if number:  # the first is to warm up
                    runs.append(run)
                    beside += [1000 * one for one in took]
                if number % 10 == 0:
                    say(f"{number} of {rounds}: {between_ms(run, 3, 6):.0f} ms, bare tree {1000 * took[0]:.1f} ms")
        say("the bare tree alone")
        alone = [1000 * one for one in tree.ask(GATHERS * rounds)]
    rows = _rows(shape, runs, beside, alone)
    return Part("negotiation", _how(shape, count, rounds, discussion), tuple(rows), _steps(runs))


def _how(shape: Shape, count: int, rounds: int, discussion: Discussion) -> str:
    return (
        f"{shape}, a rack a process, driver null, discussion {discussion}; {rounds} requests of {count} on {count} "
        f"nodes, each followed by {GATHERS} gathers over a bare tree of {shape.racks} times {shape.compute}. Traces "
        "count whole milliseconds, rounded down."
    )


def _rows(shape: Shape, runs: list[Run], beside: list[float], alone: list[float]) -> list[Row]:
    took = sorted(between_ms(run, 3, 6) for run in runs)
    median, floor, bare = statistics.median(took), statistics.median(beside), statistics.median(alone)
    return [
        at_most(1, "negotiation (steps 3 to 6), times the bare tree beside it", median / floor, RATIO),
        told("the same, times the bare tree with the fabric stopped", f"{median / bare:.2f}", 1),
        told("negotiation, ms: median (least to most), 90 %", f"{spread(took, 0)}, {quantile(took, 0.9):.0f}"),
        told(f"bare tree over {shape.racks * shape.compute:,} agents, ms, fabric up", spread(beside, 1)),
        told("the same, fabric stopped", spread(alone, 1)),
        told("messages a request", f"{statistics.median(run.messages for run in runs):g}"),
    ]


def _steps(runs: list[Run]) -> tuple[str, ...]:
    return (
        "| step | | median, ms | 90 %, ms |",
        "| --- | --- | --- | --- |",
        *(f"| {one.step} | {one.name} | {one.median_ms:g} | {one.p90_ms:g} |" for one in steps(runs)),
    )
