"""bench load, bench compare: their arguments, help and examples. What they do: loading.py."""

from __future__ import annotations

import argparse
import math
import re
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from fabric.cli.local import number

RATE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)/s")
PART = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,6})?)%")
MAX_CLIENTS = 1000
MAX_OPEN = 2000
MAX_RATE = 10_000.0
KINDS = ("create", "scale", "delete")

LOAD = """\
Loads a fabric with requests as users make them, and measures: requests a second, how long they take, each step of the
flow, CPU and memory by role, messages and ZooKeeper operations a request; and checks that none is lost and no node
runs more than it has.

Against which fabric: one that is brought up for it and taken down again, with --racks, --compute or another option of
its shape; else the one of --dir or --api, or that all commands find (fabric --help).

Closed loop (--clients N): each client sends its next request when its last has ended. A fabric that is slow gets fewer
requests, so times say what a request takes with N at a time, not what users wait who come when they like.
Open loop (--rate N/s): requests become due at a rate, whatever became of those before, and their times count from when
they were due. What was due and could not be sent, as --most-open were open, is late for its user all the same. With a
rate above what the fabric can do, times grow as long as the run lasts: that is so, and no fault of the measurement.

Ctrl-C ends a run, shows what was measured so far, and takes the fabric down if it was brought up for it. Exit codes:
0 done; 2 some requests were refused, failed, or placed short; 3 a promise does not hold (a request lost, a node
over-committed, something left); 130 interrupted."""
LOAD_EXAMPLES = """\
examples:
  fabric bench load --racks 25 --compute 40 --agents-per-process 40 --driver null --clients 32 --for 30s \\
      --flavor Large --count 50
  fabric bench load --rate 20/s --for 1m --flavor Small --count 4          against the fabric that is up here
  fabric bench load --clients 8 --mix create=1,scale=2,delete=1 --keep 40 --for 30s --flavor Small --count 4
  fabric bench load --api http://192.0.2.5:8420 --clients 16 --for 1m --flavor Large --count 50 --output A.json
  fabric bench compare A.json B.json --worse 10%"""
COMPARE = """\
Compares two results of 'fabric bench load --output', figure by figure: the ratio of the second to the first, with a
mark where it is worse by more than --worse. Settings and machines that are not alike are named. Exit codes: 0 nothing
is worse; 3 something is; 1 a file is no result."""


def register(subparsers: Any) -> None:
    """Nothing heavy is imported before a verb runs."""
    bench = subparsers.add_parser(
        "bench",
        help="load a fabric and measure it; compare two results",
        description="Load a fabric and measure it; compare two results.",
        epilog=LOAD_EXAMPLES,
    )
    verbs = bench.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _load(verbs)
    compare = verbs.add_parser(
        "compare",
        help="compare two results, and say what got worse",
        description=COMPARE,
        epilog="examples:\n  fabric bench compare before.json after.json\n"
        "  fabric bench compare before.json after.json --worse 25% --format json".replace("%", "%%"),
    )
    compare.add_argument("before", type=Path, metavar="A.json", help="a result")
    compare.add_argument("after", type=Path, metavar="B.json", help="another one, compared with the first")
    compare.add_argument("--worse", type=part, default=0.1, metavar="PART", help="what is too much: 10%% (10%%)")
    _format(compare)
    compare.set_defaults(run="fabric.cli.loading:compare")


def _load(verbs: Any) -> None:
    load: ArgumentParser = verbs.add_parser(
        "load",
        help="make requests at a rate or by a number of clients, and measure",
        description=LOAD,
        epilog=LOAD_EXAMPLES,
    )
    load.set_defaults(run="fabric.cli.loading:load")
    _what(load.add_argument_group("what is asked for"))
    _when(load.add_argument_group("when"))
    _where(load.add_argument_group("against which fabric"))
    out = load.add_argument_group("what is told")
    out.add_argument("--output", type=Path, metavar="FILE", help="write the result there, as JSON")
    out.add_argument("--plot", type=Path, metavar="FILE", help="draw it there (.png or .svg; needs matplotlib)")
    out.add_argument("--traces", type=number(0, 1000), default=100, metavar="N", help="sample so many at most (100)")
    out.add_argument("--no-audit", action="store_true", help="leave the audit in the end out")
    _format(out)


def _what(group: Any) -> None:
    add = group.add_argument
    add("--flavor", default="Small", help="the size of each instance (Small)")
    add("--count", type=number(1, 10_000), default=10, metavar="N", help="instances of each deployment (10)")
    add("--policy", choices=("spread", "pack"), default="", help="as 'fabric deploy' has it")
    add("--max-per-node", type=number(0, 10_000), default=0, metavar="N", help="likewise; 1: each on its own node")
    add(
        "--mix",
        type=mix,
        metavar="KIND=N,…",
        help="weights of create, scale and delete, such as create=1,scale=2,delete=1; without it, each cycle creates, "
        "waits until all run, deletes, and waits until all is gone",
    )
    add("--keep", type=number(1, 100_000), default=0, metavar="N", help="with --mix: so many deployments stand (10)")
    add("--image", default="", metavar="NAME", help="deploy this one (one is pushed for the run, and removed)")
    add("--image-size", type=_size, default=64 << 10, metavar="SIZE", help="of that one: 64KiB, 64MiB (64KiB)")
    add("--cold", action="store_true", help="do not give every node the image before it begins")
    add("--seed", type=number(0, 1 << 53), default=1, metavar="N", help="of what --mix draws (1)")


def _when(group: Any) -> None:
    add = group.add_argument
    add("--clients", type=number(1, MAX_CLIENTS), default=0, metavar="N", help="closed loop: so many at a time")
    add("--rate", type=rate, default=0.0, metavar="N/s", help="open loop: so many become due a second, such as 20/s")
    add("--most-open", type=number(1, MAX_OPEN), default=200, metavar="N", help="with --rate: open at a time (200)")
    add("--for", dest="lasts", type=_time, default=30.0, metavar="TIME", help="how long is measured (30s)")
    add("--warm-up", type=_time, default=3.0, metavar="TIME", help="before that, not measured (3s)")


def _where(group: Any) -> None:
    add = group.add_argument
    add("--api", metavar="URL", default=argparse.SUPPRESS, help="the API of one that runs, here or elsewhere")
    add("--dir", type=Path, metavar="DIR", help="the one that 'fabric up --dir DIR' started")
    add("--racks", type=number(2, 200), metavar="R", help="bring one up: so many racks (3); images are held in two")
    add("--compute", type=number(1, 1000), metavar="C", help="bring one up: compute agents in each rack (8)")
    add("--storage", type=number(1, 1000), metavar="S", help="bring one up: storage agents in each rack (2)")
    add("--zk", metavar="HOSTS", help="bring one up: on this ensemble ($FABRIC_ZK) instead of a server of its own")
    add("--driver", choices=("process", "null"), help="bring one up: null starts no instance (process)")
    add("--agents-per-process", type=number(1, 1000), metavar="K", help="bring one up: several in one process (1)")
    add("--discussion", choices=("known", "full"), help="bring one up: whom a request asks (known)")
    add("--session-timeout", type=float, metavar="S", help="bring one up: ZooKeeper sessions of so many seconds (4)")
    add("--vcpus", type=number(1, 65536), metavar="N", help="bring one up: what each node declares (64)")


def _format(parser: Any) -> None:
    parser.add_argument("--format", choices=("table", "json"), default=argparse.SUPPRESS, help="default: table")


# --- kinds of values -------------------------------------------------------------------------------------------------


def _time(text: str) -> float:
    from fabric.chaos.script import seconds

    try:
        return seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _size(text: str) -> int:
    from fabric.chaos.script import size

    try:
        return size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def rate(text: str) -> float:
    found = RATE.fullmatch(text)
    value = float(found[1]) if found else 0.0
    if not 0 < value <= MAX_RATE:
        raise argparse.ArgumentTypeError(f"expected a rate such as 20/s, at most {MAX_RATE:g}/s, found {text!r}")
    return value


def part(text: str) -> float:
    found = PART.fullmatch(text)
    if not found:
        raise argparse.ArgumentTypeError(f"expected a part such as 10%, found {text!r}")
    return float(found[1]) / 100


def mix(text: str) -> tuple[float, float, float]:
    """Weights of create, scale, delete."""
    weights = dict.fromkeys(KINDS, 0.0)
    expected = "expected weights such as create=1,scale=2,delete=1"
    for one in text.split(","):
        name, equals, value = one.partition("=")
        try:
            weight = float(value)
        except ValueError:
            weight = math.nan
        if not equals or name not in weights or not 0 <= weight <= 1e6:
            raise argparse.ArgumentTypeError(f"{expected}, found {one!r}")
        weights[name] = weight
    if not sum(weights.values()):
        raise argparse.ArgumentTypeError(f"{expected}, not all of them 0, found {text!r}")
    return weights["create"], weights["scale"], weights["delete"]


SHAPE_OPTIONS = (
    "racks", "compute", "storage", "zk", "driver", "agents_per_process", "discussion", "session_timeout", "vcpus",
)  # fmt: skip


def shape_given(args: Namespace) -> dict[str, Any]:
    """What was said of a fabric that is to be brought up."""
    return {name: value for name in SHAPE_OPTIONS if (value := getattr(args, name)) is not None}
