"""How many seeds it takes the simulator to find each planted bug (tests/sim/mutations.py); into bench/RESULTS.md.

    python -m bench.mutations [--most N]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from datetime import UTC, datetime

from bench.results import commit, machine, write
from fabric.sim.runner import first_failure
from tests.sim.mutations import MUTATIONS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.mutations", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--most", type=int, default=1000, metavar="N", help="seeds for each, at most (1000)")
    args = parser.parse_args()
    rows: list[str] = []
    taken: list[int] = []
    for name, mutation in MUTATIONS.items():
        with mutation.planted():
            found = first_failure(range(args.most))
        told = "not found" if found is None else f"{found.seed + 1} | {found.promise}"
        taken += [found.seed + 1] if found is not None else []
        print(f"{name}: {told}", flush=True)
        rows.append(f"| {name.replace('_', ' ')} | {told if found is not None else 'not found | '} |")
    lines = [
        "## Planted bugs",
        "",
        f"{machine()}; commit {commit()}; {datetime.now(UTC):%Y-%m-%d}; `python -m bench.mutations`.",
        f"Seeds of 40 nodes from 0 on, until a promise is broken: {len(taken)} of {len(MUTATIONS)} found within "
        f"{args.most}, median {statistics.median(taken):g}, most {max(taken)}.",
        "",
        "| bug | seeds | promise |",
        "| --- | --- | --- |",
        *rows,
    ]
    write("mutations", "\n".join(lines))
    return 0 if len(taken) == len(MUTATIONS) else 1


if __name__ == "__main__":
    sys.exit(main())
