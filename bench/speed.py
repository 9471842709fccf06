"""Measures what must be fast, and writes it into bench/RESULTS.md, each beside what was wanted.

    python -m bench.speed [--part idle negotiation throughput starting growth] [--small] [--no-write]

| part | targets | what |
| --- | --- | --- |
| idle | 5, 7 | 1,000 agents, a process each: start-up, memory, CPU when nothing is asked (bench/idle.py) |
| negotiation | 1 | steps 3 to 6 against a bare tree of ZeroMQ sockets in the same run (bench/negotiation.py) |
| throughput | 2, 8 | requests a second with 32 clients, ZooKeeper's part of one (bench/throughput.py) |
| starting | 3 | from API call to 50 processes, image cached and not (bench/starting.py) |
| growth | 4 | exponents from 40 to 5,000 agents (bench/growth.py) |

`--small` runs the same on fabrics of four racks of five, to see that the programs work: its figures say nothing, and
are not written. The machine should have nothing else to do: how busy it was before each part is told with it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from datetime import UTC, datetime

from bench.fabrics import Shape
from bench.growth import growth
from bench.idle import idle
from bench.negotiation import negotiation
from bench.results import commit, machine, write
from bench.starting import starting
from bench.throughput import throughput
from bench.wanted import Part, say, table
from fabric.load.meters import machine_now

LOOK_S = 2.0
SMALL = Shape(4, 5)
PARTS: dict[str, tuple[Callable[[], Part], Callable[[], Part]]] = {
    "idle": (idle, lambda: idle(SMALL, 3.0, 5.0)),
    "negotiation": (negotiation, lambda: negotiation(SMALL, 10, 5)),
    "throughput": (throughput, lambda: throughput(SMALL, 4, 10, 5.0, 1.0)),
    "starting": (starting, lambda: starting(Shape(2, 5), 10, 3, 1, 4 << 20)),
    "growth": (growth, lambda: growth((Shape(2, 2), SMALL), 4, 3, 2.0)),
}
"""Name -> as it is measured, and small."""


def section(part: Part, busy: float) -> str:
    lines = [
        f"## Speed: {part.name}",
        "",
        f"{machine()}; commit {commit()}; {datetime.now(UTC):%Y-%m-%d}; `python -m bench.speed --part {part.name}`.",
        part.how,
        f"Before it the machine was {100 * busy:.0f} % busy with other work.",
        "",
        *table(part.rows),
    ]
    return "\n".join([*lines, "", *part.more] if part.more else lines)


def other_work() -> float:
    """How busy the machine is, while this program waits."""
    before = machine_now()
    time.sleep(LOOK_S)
    return machine_now().share_since(before)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description="Measures what must be fast.")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (all)")
    parser.add_argument("--small", action="store_true", help="on small fabrics, to see that the programs work")
    parser.add_argument("--no-write", action="store_true", help="print the figures only")
    args = parser.parse_args()
    for name in args.part:
        say(f"--- {name}")
        busy = other_work()
        found = section(PARTS[name][args.small](), busy)
        print(found, flush=True)
        if not args.no_write and not args.small:
            write(f"speed {name}", found)


if __name__ == "__main__":
    main()
