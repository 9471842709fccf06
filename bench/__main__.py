"""`make bench`: every program here that measures, one after the other, as far as they fit into the time.

    python -m bench [--minutes 20] [--only NAME …] [--list]

Each is a process of its own and writes its section of bench/RESULTS.md itself. The list is in the order of what matters
most; one that would not fit into what is left of the time is left out, and that is said. Ctrl-C ends the one that runs,
in order, and the whole. What takes ten minutes by itself has targets of its own: `make failures`, and the parts of
bench.deploy and bench.scale that are not here.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.results import ROOT
from bench.wanted import say

END_WAIT_S = 60.0
"""After SIGINT: to take its fabric down."""
LATE = 3.0
"""One that takes so many times its time is ended."""


@dataclass(frozen=True, slots=True)
class Program:
    """`about_s`: what it took on two cores."""

    name: str
    words: tuple[str, ...]
    about_s: float


PROGRAMS = (
    Program("idle", ("bench.speed", "--part", "idle"), 130),
    Program("negotiation", ("bench.speed", "--part", "negotiation"), 90),
    Program("throughput", ("bench.speed", "--part", "throughput"), 115),
    Program("starting", ("bench.speed", "--part", "starting"), 60),
    Program("growth", ("bench.speed", "--part", "growth"), 200),
    Program("images", ("bench.images",), 130),
    Program("flow", ("bench.flow", "--repeat", "3"), 90),
    Program("scale", ("bench.scale", "--part", "growth", "exponents"), 200),
    Program("deploy", ("bench.deploy", "--part", "growth", "failure"), 80),
    Program("mutations", ("bench.mutations",), 120),
    Program("processes", ("bench.deploy", "--part", "processes"), 90),
    Program("hundred", ("bench.scale", "--part", "hundred"), 230),
)


def fitting(programs: Sequence[Program], left_s: float) -> tuple[list[Program], list[Program]]:
    """In order: those that fit into the time, and those that do not. A long one is passed over for shorter ones."""
    taken: list[Program] = []
    for one in programs:
        if one.about_s <= left_s:
            taken.append(one)
            left_s -= one.about_s
    return taken, [one for one in programs if one not in taken]


def run(one: Program) -> str:
    """Why it failed, or ""."""
    process = subprocess.Popen([sys.executable, "-m", *one.words], cwd=ROOT)
    try:
        code = process.wait(LATE * one.about_s)
    except subprocess.TimeoutExpired:
        _end(process)
        return f"it was not done after {LATE * one.about_s:.0f} s"
    except KeyboardInterrupt:  # the terminal sent it to both
        _end(process, signals=not sys.stdin.isatty())
        raise
    return f"it ended with {code}" if code else ""


def _end(process: subprocess.Popen[bytes], signals: bool = True) -> None:
    if signals:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(END_WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> int:
    names = [one.name for one in PROGRAMS]
    parser = argparse.ArgumentParser(prog="python -m bench", description="Runs the programs that measure.")
    parser.add_argument("--minutes", type=float, default=20.0, metavar="N", help="in so much time (20)")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="only these")
    parser.add_argument("--list", action="store_true", help="list them, with how long each takes, and leave")
    args = parser.parse_args()
    if args.list:
        for one in PROGRAMS:
            print(f"{one.name:<12} about {one.about_s:4.0f} s   python -m {' '.join(one.words)}")
        return 0
    began, deadline_s = time.monotonic(), 60 * args.minutes
    left = [one for one in PROGRAMS if one.name in args.only]
    failed: list[str] = []
    number, total = 0, len(left)
    while left:
        spent_s = time.monotonic() - began
        taken, out = fitting(left, deadline_s - spent_s)
        if not taken:
            say(f"left out, for want of time: {', '.join(one.name for one in out)} (--minutes, --only)")
            break
        one = taken[0]
        left.remove(one)
        number += 1
        say(f"=== {number} of {total}: {one.name}, about {one.about_s:.0f} s")
        if why := run(one):
            failed.append(f"{one.name}: {why}")
            say(failed[-1])
    say(f"done after {(time.monotonic() - began) / 60:.1f} minutes")
    for line in failed:
        print(f"bench: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
