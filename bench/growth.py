"""Growth (target 4): how negotiation and CPU grow with the number of real agents, from 40 to 5,000, several a process.

Fabrics of two racks of 20 (an image has holders in two racks), then of more and more racks of 40, each with the same
requests one after the other: what grows is the fabric alone.
Of each: the median of steps 3 to 6, CPU of agents, API and ZooKeeper together a request (made and deleted; what they
use idle, measured before, is taken off), messages, start-up, memory. Exponents are fitted by least squares on the
logarithms over compute agents: cost = a * agents^b. Once for the short discussion, once for the full one. (A request of
20 is spread over up to 20 racks, each a process to be woken; small fabrics have fewer, so some of the growth is that.)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench import asking
from bench.fabrics import Discussion, Shape, agent_pids, all_cpu_s, up
from bench.wanted import Part, Row, at_most, exponent, say, told
from fabric.cli.client import Api
from fabric.load import meters
from fabric.load.traces import between_ms

FULL_MOST, KNOWN_MOST = 1.0, 0.5
"""Exponents. "Clearly below" 1 is taken as at most a half."""
SHAPES: tuple[Shape, ...] = (Shape(2, 20, 2), Shape(5, 40, 2), Shape(25, 40, 2), Shape(119, 40, 2))
DISCUSSIONS: tuple[Discussion, ...] = ("known", "full")
SESSION_S = 10.0
"""As on real machines: 5,000 agents on two cores are too slow for sessions of 4 s."""


@dataclass(frozen=True, slots=True)
class Size:
    """What one fabric cost. `cpu_ms`: a request, idle taken off; `idle_percent`: of one core."""

    shape: Shape
    up_s: float
    negotiation_ms: float
    cpu_ms: float
    messages: float
    idle_percent: float
    pss_gib: float

    @property
    def compute(self) -> int:
        return self.shape.racks * self.shape.compute


def growth(
    shapes: Sequence[Shape] = SHAPES,
    count: int = 20,
    rounds: int = 20,
    idle_s: float = 8.0,
    discussions: Sequence[Discussion] = DISCUSSIONS,
) -> Part:
    found = {each: [size(shape, each, count, rounds, idle_s) for shape in shapes] for each in discussions}
    rows: list[Row] = []
    more: list[str] = []
    for discussion, sizes in found.items():
        rows += _rows(discussion, sizes)
        more += _table(discussion, sizes)
    over = ", ".join(f"{one.racks * one.compute:,}" for one in shapes)
    how = (
        f"Driver null, a rack a process, {rounds} requests of {count} on {count} nodes, one after the other; sessions "
        f"of {SESSION_S:g} s; idle over {idle_s:g} s. Exponents over {over} compute agents."
    )
    return Part("growth", how, tuple(rows), tuple(more[1:]))


def size(shape: Shape, discussion: Discussion, count: int, rounds: int, idle_s: float) -> Size:
    options = {"driver": "null", "agents_per_process": shape.compute, "discussion": discussion}
    with up(shape, session_timeout_s=SESSION_S, **options) as (fabric, up_s), Api(fabric.api_url) as api:
        state = fabric.status()
        asking.push_small(api, "growth")
        say("every node fetches the image")
        asking.prime(api, "growth", shape.racks * shape.compute)
        asking.once(api, "growth", count, max_per_node=1)
        cpu_s, began = all_cpu_s(state), time.monotonic()
        time.sleep(idle_s)
        idle = (all_cpu_s(state) - cpu_s) / (time.monotonic() - began)
        cpu_s, began = all_cpu_s(state), time.monotonic()
        runs = [asking.once(api, "growth", count, max_per_node=1).run for _ in range(rounds)]
        took_s = time.monotonic() - began
        used_s = max(0.0, all_cpu_s(state) - cpu_s - idle * took_s)
        negotiation_ms = statistics.median(between_ms(run, 3, 6) for run in runs)
        say(f"{shape.agents} agents, {discussion}: {negotiation_ms:g} ms, {1000 * used_s / rounds:.0f} ms of CPU each")
        pss = meters.memory(agent_pids(state)).pss / 1024
    messages = statistics.median(run.messages for run in runs)
    return Size(shape, up_s, negotiation_ms, 1000 * used_s / rounds, messages, 100 * idle, pss)


def _rows(discussion: Discussion, sizes: Sequence[Size]) -> list[Row]:
    agents = [float(one.compute) for one in sizes]
    most = FULL_MOST if discussion == "full" else KNOWN_MOST
    latency = exponent(agents, [max(one.negotiation_ms, 1.0) for one in sizes])
    cpu = exponent(agents, [one.cpu_ms for one in sizes])
    messages = exponent(agents, [one.messages for one in sizes])
    return [
        at_most(4, f"exponent of negotiation, discussion {discussion}", latency, most),
        at_most(4, f"exponent of CPU a request, discussion {discussion}", cpu, most),
        told(f"exponent of messages a request, discussion {discussion}", f"{messages:.2f}", 4),
        told(f"start-up of {sizes[-1].shape.agents:,} agents, several a process", f"{sizes[-1].up_s:.0f} s", 5),
    ]


def _table(discussion: Discussion, sizes: Sequence[Size]) -> list[str]:
    return [
        "",
        f"Discussion {discussion}:",
        "",
        "| agents | compute | negotiation, ms | CPU a request, ms | messages | up, s | idle, of one core | Pss, GiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {one.shape.agents:,} | {one.compute:,} | {one.negotiation_ms:g} | {one.cpu_ms:.1f} | {one.messages:g} "
            f"| {one.up_s:.1f} | {one.idle_percent:.1f} % | {one.pss_gib:.2f} |"
            for one in sizes
        ),
    ]
