"""Goes on with the search for broken promises where the last one stopped, and keeps account of it.

    python -m bench.seeds --seconds 3600 [--workers N]

bench/seeds.jsonl has a line for each campaign: the seeds that were run, at which commit, and what failed. A campaign
begins after the last seed of the one before at the same number of nodes, so that no seed is run twice at one commit for
nothing; a failure is told with the command that replays it. The sums go into bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bench.results import commit, machine, write
from fabric.sim.runner import Summary, run
from fabric.sim.simulation import Result
from fabric.sim.world import Options

LEDGER = Path(__file__).parent / "seeds.jsonl"
TELL_EVERY_S = 10.0


class Campaign(msgspec.Struct, frozen=True):
    """`failures`: (seed, promise). `messages`: between agents, not those with ZooKeeper."""

    date: str
    commit: str
    nodes: int
    first: int
    last: int
    seeds: int
    failures: tuple[tuple[int, str], ...]
    requests: int
    messages: int
    events: int
    virtual_s: float
    busy_s: float
    faults: dict[str, int]


def kept() -> list[Campaign]:
    if not LEDGER.exists():
        return []
    return [msgspec.json.decode(line, type=Campaign) for line in LEDGER.read_bytes().splitlines() if line.strip()]


def search(nodes: int, seconds: float, workers: int | None) -> Campaign | None:
    """None: not one seed was run."""
    first = max((one.last + 1 for one in kept() if one.nodes == nodes), default=0)
    began = told_at = time.monotonic()
    last = first - 1

    def told(summary: Summary, result: Result) -> None:
        nonlocal told_at, last
        last = max(last, result.seed)
        if result.failure is not None:
            print(f"seed {result.seed}: {result.failure.promise}: {result.failure.found}\n  {result.failure.command}")
        if time.monotonic() - told_at >= TELL_EVERY_S:
            told_at = time.monotonic()
            print(f"{told_at - began:6.0f} s  {summary.seeds} seeds, {summary.failed} failed", file=sys.stderr)

    summary = run(itertools.count(first), Options(nodes=nodes), workers=workers, seconds=seconds, told=told)
    if not summary.seeds:
        return None
    return Campaign(
        datetime.now(UTC).date().isoformat(),
        commit(),
        nodes,
        first,
        last,
        summary.seeds,
        tuple((one.seed, one.promise) for one in summary.failures),
        summary.requests,
        summary.messages,
        summary.events,
        round(summary.virtual_s),
        round(summary.busy_s, 1),
        dict(summary.faults.most_common()),
    )


def report(campaigns: Sequence[Campaign]) -> str:
    seeds = sum(one.seeds for one in campaigns)
    failed = [f"{seed} ({promise}, at {one.commit})" for one in campaigns for seed, promise in one.failures]
    faults: dict[str, int] = {}
    for one in campaigns:
        for kind, count in one.faults.items():
            faults[kind] = faults.get(kind, 0) + count
    lines = [
        "## Seeds of the simulator",
        "",
        f"{machine()}; `python -m bench.seeds`; each campaign with its commit: bench/seeds.jsonl.",
        "",
        "| | |",
        "| --- | --- |",
        f"| seeds of {' and '.join(str(n) for n in sorted({one.nodes for one in campaigns}))} nodes | {seeds:,} |",
        f"| of them with a broken promise | {len(failed)} |",
        f"| requests of users | {sum(one.requests for one in campaigns):,} |",
        f"| messages between agents | {sum(one.messages for one in campaigns):,} |",
        f"| virtual time, hours | {sum(one.virtual_s for one in campaigns) / 3600:,.0f} |",
        f"| faults | {sum(faults.values()):,} |",
        "",
        f"Faults: {', '.join(f'{count:,} {kind}' for kind, count in Counter(faults).most_common())}.",
    ]
    if failed:
        lines += ["", "Failed: " + ", ".join(failed) + "."]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.seeds", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=600.0, metavar="S", help="begin no seed after so long (600)")
    parser.add_argument("--nodes", type=int, default=40, metavar="N", help="about so many (40)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    args = parser.parse_args()
    campaign = search(args.nodes, args.seconds, args.workers)
    if campaign is None:
        print("not one seed was run: give it more --seconds")
        return 1
    with LEDGER.open("ab") as ledger:
        ledger.write(msgspec.json.encode(campaign) + b"\n")
    section = report(kept())
    write("seeds", section)
    print(section)
    return 1 if campaign.failures else 0


if __name__ == "__main__":
    sys.exit(main())
