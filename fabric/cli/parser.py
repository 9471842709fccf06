"""Every sub-command over the API: its arguments, its help, its examples. The words are those of the API.

What is checked here is only what makes the command line itself wrong (a number that is none, a label without "="):
exit code 64. Whether an image, a flavor or a name is right, the API decides, so that there is one place that knows.

`--api` and `--format` are understood before and after the sub-command.
"""

from __future__ import annotations

import argparse
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from fabric.cli import bench, chaos, local
from fabric.cli.exits import Exit
from fabric.ordinals import MAX_COUNT

MAX_LOG_BYTES = 1 << 20
DEFAULT_LOG_BYTES = 64 * 1024
DEFAULT_LIMIT = 1000
MAX_WAIT_S = 7 * 86_400
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}

DESCRIPTION = """\
Deploys instances of images on a fabric of peers: agents on compute and storage nodes that find each other through
ZooKeeper and settle among themselves who runs what."""

EPILOG = """\
examples:
  fabric up                                     a fabric on this machine: 3 racks of 8 compute and 2 storage agents
  fabric image push web.tar web                 publish an image
  fabric deploy web --flavor Large --count 50 --wait
  fabric trace d-1r2k0q9x4ab                    how that went, step by step
  fabric COMMAND --help                         arguments and examples of a command

The API: --api, else $FABRIC_API, else that of the fabric started here by 'fabric up', else http://127.0.0.1:8420.
Exit codes: 0 done; 1 error; 2 not placed, or placed short, or not all managents are active; 3 an audit found something,
or a load test did, or a comparison; 4 it found and repaired it; 64 wrong usage; 130 interrupted."""

PLACED_SHORT = "Exit code 2 says: not placed, or placed short of the count; the reasons are printed."
WAITED_SHORT = f"With --wait, {PLACED_SHORT[0].lower()}{PLACED_SHORT[1:]}"


DRAINED = """\
An instance is started elsewhere first and then stopped here; those of deployments with 'exclusive' are stopped first.
What finds no other place by the deadline is stopped. Ctrl-C stops watching, not draining. Exit code 2 says, with
--monitor: something had to be stopped without another place."""

AUDITED = """\
What does not fit must be there in two looks some seconds apart, so what is under way is no finding. Exit codes:
0 clean; 3 found; 4 found and repaired; 1 an error, or something that could not be repaired."""

BRAKED = """\
When over half of a rack or over a fifth of the fabric vanishes at once, replacement waits until they are back, or until
'fabric brake release' says that those are gone for good."""


class Parser(ArgumentParser):
    """argparse, but wrong usage is one line and exit code 64, and options can't be shortened: an abbreviation that
    works today is ambiguous tomorrow."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        named.setdefault("allow_abbrev", False)
        named.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*positional, **named)

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(Exit.USAGE)


Register = Callable[[Any], None]
"""Adds sub-commands to what argparse's `add_subparsers` returned."""


def build(extra: Sequence[Register] = ()) -> Parser:
    """The parser of the whole command line, with `extra` sub-commands after the fabric's own. A parsed namespace has
    `run`: a function of the namespace that returns the exit code, or its name as "module:function"."""
    parser = Parser(prog="fabric", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--api", metavar="URL", default=None, help="the request API, such as http://192.0.2.5:8420")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="for people, or for programs")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _deployments(subparsers)
    _instances(subparsers)
    _images(subparsers)
    _fabric(subparsers)
    local.register(subparsers)
    chaos.register(subparsers)
    bench.register(subparsers)
    for register in extra:
        register(subparsers)
    return parser


# --- kinds of values -------------------------------------------------------------------------------------------------


def whole(low: int, high: int) -> Callable[[str], int]:
    """A whole number from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, found {text!r}")
        return number

    return parse


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"expected seconds, above 0 and at most 86400, found {text!r}")
    return value


def duration(text: str) -> int:
    """Whole seconds, or 10m, 2h, 7d; at most a week."""
    digits = text.rstrip("smhd")
    unit = text[len(digits) :]
    value = int(digits) * _UNITS_S[unit] if digits.isascii() and digits.isdecimal() and unit in _UNITS_S else -1
    if not 0 <= value <= MAX_WAIT_S:
        raise argparse.ArgumentTypeError(f"expected seconds, or a time such as 10m, at most 7d, found {text!r}")
    return value


def pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found {text!r}")
    return name, value


# --- the commands ----------------------------------------------------------------------------------------------------


def bare(subparsers: Any, name: str, run: str, help: str, examples: Sequence[str], more: str = "") -> Parser:
    """Add one sub-command that `run` ("module:function") carries out, without any option."""
    epilog = "\n".join(["examples:", *(f"  {example}" for example in examples)])
    parser: Parser = subparsers.add_parser(
        name, help=help, description=f"{help[0].upper()}{help[1:]}." + (f"\n{more}" if more else ""), epilog=epilog
    )
    parser.set_defaults(run=run)
    return parser


def command(subparsers: Any, name: str, run: str, help: str, examples: Sequence[str], more: str = "") -> Parser:
    """Add one sub-command over the API that `fabric.cli.<run>` carries out."""
    parser = bare(subparsers, name, f"fabric.cli.{run}", help, examples, more)
    common = parser.add_argument_group("the API")
    common.add_argument("--api", metavar="URL", default=argparse.SUPPRESS, help="its address")
    common.add_argument("--format", choices=("table", "json"), default=argparse.SUPPRESS, help="default: table")
    return parser


def _request(parser: Parser) -> None:
    add = parser.add_argument
    count = whole(1, MAX_COUNT)
    limit = whole(0, MAX_COUNT)
    add("image", metavar="IMAGE", help="the name of a published image")
    add("--flavor", required=True, help="the size of each instance (see: fabric flavors)")
    add("--count", required=True, type=count, metavar="N", help="how many instances")
    add("--min-count", type=count, metavar="N", help="be content with so many (default: all or nothing)")
    add("--policy", choices=("spread", "pack"), help="balanced over racks, then nodes (default); or on few nodes")
    add("--max-per-node", type=limit, metavar="N", help="at most so many on one node (default 0: no limit)")
    add("--max-per-rack", type=limit, metavar="N", help="at most so many in one rack (default 0: no limit)")
    add("--name", help="for people; need not be unique (default: the image's name)")
    add("--label", type=pair, action="append", default=[], metavar="NAME=VALUE", help="may be repeated")
    add("--env", type=pair, action="append", default=[], metavar="NAME=VALUE", help="for the instances; repeatable")
    add("--restart", choices=("always", "on-failure", "never"), help="when an instance exits by itself (always)")
    add("--lost-after", type=duration, metavar="S", help="a node that vanished is replaced so much later (10 s)")
    add("--stop-after", type=duration, metavar="S", help="a node that is cut off stops its own after this (0: never)")
    add("--exclusive", action="store_true", help="drained, an instance is stopped before it starts elsewhere")


def _waiting(parser: Parser, until: str) -> None:
    parser.add_argument("--wait", action="store_true", help=f"show progress until {until}; Ctrl-C only stops watching")
    parser.add_argument("--timeout", type=seconds, default=600.0, metavar="S", help="of --wait, in seconds (600)")


def _deployments(subparsers: Any) -> None:
    deploy = command(
        subparsers,
        "deploy",
        "deployments:deploy",
        "run a number of instances of an image",
        [
            "fabric deploy web --flavor Large --count 50 --wait",
            "fabric deploy web --flavor Large --count 50 --min-count 40 --max-per-node 3 --env PORT=0",
            "fabric deploy web --flavor Small --count 4 --key release-17    # twice: still one deployment",
        ],
        WAITED_SHORT,
    )
    _request(deploy)
    deploy.add_argument("--key", metavar="KEY", help="idempotency key: the same key and request make one deployment")
    _waiting(deploy, "all run, or it has failed")

    plan = command(
        subparsers,
        "plan",
        "deployments:plan",
        "show the placement that 'deploy' would make now, or why it can't be; reserves nothing",
        ["fabric plan web --flavor Large --count 50 --policy pack"],
        PLACED_SHORT,
    )
    _request(plan)

    listing = command(
        subparsers, "list", "deployments:listing", "list deployments", ["fabric list", "fabric list --format json"]
    )
    _limit(listing)

    show = command(
        subparsers,
        "show",
        "deployments:show",
        "show one deployment: its state, its plan, its reasons",
        ["fabric show d-1r2k0q9x4ab", "fabric show d-1r2k0q9x4ab --wait --timeout 30"],
        WAITED_SHORT,
    )
    _deployment(show)
    _waiting(show, "it is at rest")

    trace = command(
        subparsers,
        "trace",
        "tracing:trace",
        "show how a request went: the nine steps with times, offers and losers, conflicts, image holders",
        ["fabric trace d-1r2k0q9x4ab", "fabric trace d-1r2k0q9x4ab --replay"],
    )
    _deployment(trace)
    trace.add_argument("--replay", action="store_true", help="place it again from the recorded offers, and compare")
    trace.add_argument(
        "--run",
        metavar="N",
        dest="number",
        type=whole(1, 100),
        default=0,
        help="with --replay: which of its runs, 1 the oldest; default: the last that placed anything",
    )

    scale = command(
        subparsers,
        "scale",
        "deployments:scale",
        "change how many instances a deployment has",
        ["fabric scale d-1r2k0q9x4ab 60 --wait"],
        WAITED_SHORT,
    )
    _deployment(scale)
    scale.add_argument("count", metavar="COUNT", type=whole(1, MAX_COUNT), help="how many instances from now on")
    _waiting(scale, "it is at rest")

    delete = command(
        subparsers,
        "delete",
        "deployments:delete",
        "stop all instances of a deployment and forget it",
        ["fabric delete d-1r2k0q9x4ab --wait"],
    )
    _deployment(delete)
    _waiting(delete, "nothing of it runs")


def _instances(subparsers: Any) -> None:
    instances = command(
        subparsers,
        "instances",
        "deployments:instances",
        "list instances, as their nodes see them now",
        ["fabric instances --deployment d-1r2k0q9x4ab"],
    )
    instances.add_argument("--deployment", metavar="ID", help="of this one only")
    _limit(instances)

    logs = command(
        subparsers,
        "logs",
        "deployments:logs",
        "print the end of an instance's output",
        ["fabric logs d-1r2k0q9x4ab.17", "fabric logs d-1r2k0q9x4ab.17 --bytes 1000"],
    )
    logs.add_argument("instance", metavar="INSTANCE", help="its id: that of the deployment, a dot, the ordinal")
    logs.add_argument(
        "--bytes",
        type=whole(1, MAX_LOG_BYTES),
        default=DEFAULT_LOG_BYTES,
        metavar="N",
        help=f"the last so many (at most {MAX_LOG_BYTES}; default {DEFAULT_LOG_BYTES})",
    )


def _images(subparsers: Any) -> None:
    image = subparsers.add_parser(
        "image",
        help="publish, list, show and remove images",
        description="Publish, list, show and remove images.",
        epilog="examples:\n  fabric image push web.tar web\n  fabric image show web",
    )
    verbs = image.add_subparsers(title="commands", metavar="COMMAND", required=True)
    push = command(
        verbs,
        "push",
        "images:push",
        "publish an image: a tar archive with an executable 'entrypoint' at its root, or one executable",
        ["fabric image push web.tar web", "tar -c -C rootfs . | fabric image push - web"],
        "Done when two storage agents in different racks have all of it.",
    )
    push.add_argument("file", metavar="FILE", help="what to publish; - reads standard input")
    push.add_argument("name", metavar="NAME", help="under this name")
    push.add_argument("--digest", metavar="sha256:HEX", help="(or b3:HEX) refuse content that has not this digest")
    listing = command(verbs, "list", "images:listing", "list images", ["fabric image list"])
    _limit(listing)
    show = command(verbs, "show", "images:show", "show an image and who holds it now", ["fabric image show web"])
    show.add_argument("name", metavar="NAME")
    remove = command(
        verbs, "rm", "images:remove", "remove an image; what no other image uses is freed", ["fabric image rm web"]
    )
    remove.add_argument("name", metavar="NAME")
    remove.add_argument("--force", action="store_true", help="also when a deployment uses it")


def _fabric(subparsers: Any) -> None:
    nodes = command(subparsers, "nodes", "nodes:nodes", "list nodes, as their rack leaders see them", ["fabric nodes"])
    _limit(nodes)
    racks = command(subparsers, "racks", "nodes:racks", "list racks with what is free in them", ["fabric racks"])
    _limit(racks)
    leaders = command(
        subparsers, "leaders", "nodes:leaders", "list the rack leaders, from ZooKeeper", ["fabric leaders"]
    )
    _limit(leaders)
    command(subparsers, "flavors", "nodes:flavors", "list flavors: the sizes an instance can have", ["fabric flavors"])
    capacity = command(
        subparsers,
        "capacity",
        "nodes:capacity",
        "show how many more instances fit, by rack",
        ["fabric capacity", "fabric capacity --flavor Large"],
    )
    capacity.add_argument("--flavor", help="of this one only (default: of each)")
    for name, help in (
        ("cordon", "give a node nothing new; what runs there runs on"),
        ("uncordon", "give a node new instances again, and end its drain"),
    ):
        cordon = command(subparsers, name, f"nodes:{name}", help, [f"fabric {name} r1c03"])
        cordon.add_argument("node", metavar="NODE")
    _operating(subparsers)
    command(
        subparsers, "version", "nodes:version", "print the version of this command and of the API", ["fabric version"]
    )


def _operating(subparsers: Any) -> None:
    drain = command(
        subparsers,
        "drain",
        "draining:drain",
        "move off a node what runs there, and give it nothing new",
        ["fabric drain r1c03 --monitor", "fabric drain r1c03 --deadline 10m", "fabric uncordon r1c03    # ends it"],
        DRAINED,
    )
    drain.add_argument("node", metavar="NODE")
    deadline = "seconds, or 10m, 2h (default 1h; a drain that runs keeps its own)"
    drain.add_argument("--deadline", type=duration, metavar="S", help=deadline)
    drain.add_argument("--monitor", action="store_true", help="show progress until the node is empty")
    drain.add_argument("--timeout", type=seconds, metavar="S", help="of --monitor, in seconds (default: none)")
    brake = command(
        subparsers,
        "brake",
        "operating:brake",
        "show whether so many nodes vanished at once that none is replaced; or release that",
        ["fabric brake", "fabric brake release"],
        BRAKED,
    )
    brake.add_argument("action", nargs="?", choices=("release",), help="replace the nodes that are lost now")
    audit = command(
        subparsers,
        "audit",
        "operating:audit",
        "compare records, nodes, reservations and image holders over the whole fabric",
        ["fabric audit", "fabric audit --repair", "fabric audit --format json"],
        AUDITED,
    )
    audit.add_argument("--repair", action="store_true", help="set right what is found, and look again")


def _deployment(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="of the deployment")


def _limit(parser: Parser) -> None:
    parser.add_argument(
        "--limit",
        type=whole(1, 1_000_000),
        default=DEFAULT_LIMIT,
        metavar="N",
        help=f"list at most so many (default {DEFAULT_LIMIT})",
    )
