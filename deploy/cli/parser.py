"""`fabric managent …`: its sub-commands with their arguments, help and examples.

As in fabric.cli.parser: only what makes the command line itself wrong is checked here (exit code 64), nothing heavy is
imported, and each sub-command names the function that carries it out. `deploying` adds the options that all commands
share which speak with boot stubs or their directory.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fabric.cli.parser import Parser, bare, seconds

DEFAULT_WAIT_S = 30.0

SHARES = "a number, or a part such as 10%%"

PLACES = """\
The directory is a ZooKeeper: --directory, else $FABRIC_ZK, else that of the fabric started here by 'fabric up'. The
key that seals messages: --key-file, else $FABRIC_CLUSTER_KEY_FILE, else that of the fabric started here. The
repository: --repository, else that of the fabric started here. After 'fabric up --dir DIR' all three are found by
--dir DIR."""

PATTERNS = """\
PATTERN selects managents by their path: /site/r1 is one; in a part, * stands for any run of characters
(/site/rack*/node1); /site/r1/** is /site/r1 and everything below it; /** is all."""

NOT_ALL = """\
Exit code 2 says: not every managent is active; those that are not are listed by name, with their reasons."""

APPLIED = f"""\
Initiators look after their children; after those of the first level looks an apply with --stay: what ended is started
again, and what stood on a boot stub that is lost is placed on another one. It makes way for every other apply, and goes
on after it; of two that stay, one waits for the end of the other.
Ctrl-C leaves at once: what was told already goes on by itself; 'apply --resume' completes the rest.
{NOT_ALL}"""


def register(subparsers: Any) -> None:
    """Add `managent`."""
    managent: Parser = subparsers.add_parser(
        "managent",
        help="deploy managents over boot stubs, by description: plan, apply, status, commands to a subtree",
        description="Deploys management agents (managents) over boot stubs, as a repository describes them.",
        epilog="examples:\n"
        "  fabric managent plan --repository http://192.0.2.1:8080/ --root /region1\n"
        "  fabric managent apply --repository http://192.0.2.1:8080/ --root /region1 --wave 10% --max-failed 2%\n"
        "  fabric managent deactivate '/region1/zone3/**'",
    )
    verbs = managent.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _plan(verbs)
    _apply(verbs)
    _status(verbs)
    _explain(verbs)
    _trace(verbs)
    _commands(verbs)
    _send(verbs)


def output_format(parser: Parser) -> None:
    parser.add_argument("--format", choices=("table", "json"), default=argparse.SUPPRESS, help="default: table")


def deploying(parser: Parser) -> None:
    """The options of every command that needs the directory."""
    group = parser.add_argument_group("deployment")
    add = group.add_argument
    add("--directory", "--zk", metavar="HOSTS", help="the directory's ZooKeeper, such as 192.0.2.1:2181/site")
    add("--key-file", metavar="FILE", help="the key that seals messages, in hex")
    _local(group)
    output_format(parser)


def _local(parser: Any) -> None:
    parser.add_argument("--dir", type=Path, metavar="DIR", help="of the fabric that 'fabric up --dir DIR' started")


def _describing(parser: Parser) -> None:
    add = parser.add_argument
    add("--repository", metavar="URL", help="that holds the description (of the fabric started here)")
    add(
        "--root",
        metavar="PATH",
        action="append",
        default=[],
        help="a managent of the first level, such as /region1; may be repeated (default: those that are there)",
    )
    add("--only", action="store_true", help="remove those of the first level that are not named")
    _reading(parser)


def _reading(parser: Parser) -> None:
    parser.add_argument(
        "--allow-root",
        metavar="DIR",
        action="append",
        default=[],
        help="read file:// references below this, as boot stubs do; repeatable",
    )


def _plan(verbs: Any) -> None:
    plan = bare(
        verbs,
        "plan",
        "deploy.cli.planning:plan",
        "show what 'apply' would change: add, reconfigure, reinstall, remove; changes nothing",
        [
            "fabric managent plan --repository http://192.0.2.1:8080/ --root /region1",
            "fabric managent plan --repository http://192.0.2.1:8080/ --root /region1 --exit-code    # 2: changes",
        ],
        PLACES,
    )
    _describing(plan)
    plan.add_argument("--exit-code", action="store_true", help="end with 2 when there is something to do")
    deploying(plan)


def _apply(verbs: Any) -> None:
    apply = bare(
        verbs,
        "apply",
        "deploy.cli.applying:apply",
        "bring about what a repository describes, in waves, and say by name what came of it",
        [
            "fabric managent apply --repository http://192.0.2.1:8080/ --root /region1",
            "fabric managent apply --repository http://192.0.2.1:8080/ --root /region1 --wave 10% --max-failed 2%",
            "fabric managent apply --repository http://192.0.2.1:8080/ --root /region1 --resume",
            "fabric managent apply --repository http://192.0.2.1:8080/ --root /region1 --yes --stay",
        ],
        APPLIED,
    )
    _describing(apply)
    add = apply.add_argument
    add("--wave", type=some, metavar="N", help=f"so many changes at once: {SHARES} (default: all)")
    add("--max-failed", type=share, metavar="N", help=f"begin no further wave above so many failures: {SHARES}")
    add("--pause", action="store_true", help="ask before each further wave")
    add("--resume", action="store_true", help="look whether all is there, and try again what was refused or failed")
    add("--recheck", action="store_true", help="look also at what is up to date by its record")
    add("--keep", action="store_true", help="do not remove what is not described")
    add("--yes", action="store_true", help="do not ask before it begins")
    add("--take-over", action="store_true", help="also when another apply is under way: that one ends")
    add("--stay", action="store_true", help="then look after those of the first level, until Ctrl-C")
    deploying(apply)


def _pattern(parser: Parser, default: str = "") -> None:
    if default:
        parser.add_argument("pattern", metavar="PATTERN", nargs="?", default=default, help="(default: all)")
    else:
        parser.add_argument("pattern", metavar="PATTERN", help="which managents")
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=DEFAULT_WAIT_S,
        metavar="S",
        help=f"who has not answered then is unreachable, in seconds ({DEFAULT_WAIT_S:g})",
    )


def _status(verbs: Any) -> None:
    status = bare(
        verbs,
        "status",
        "deploy.cli.subtree:status",
        "ask managents how they are, through the tree of initiators",
        ["fabric managent status", "fabric managent status '/region1/zone3/**' --format json"],
        f"{PATTERNS}\n{NOT_ALL}",
    )
    _pattern(status, "/**")
    deploying(status)


def _commands(verbs: Any) -> None:
    for name, help in (
        ("deactivate", "have managents rest: they keep their state and go on at 'activate'"),
        ("activate", "have managents that rest go on"),
        ("shutdown", "end the programs of managents; they stay installed"),
        ("start", "start the programs of managents that are installed"),
        ("restart", "end and start the programs of managents"),
        ("uninstall", "remove managents that are shut down, and all that their installation did"),
    ):
        command = bare(
            verbs,
            name,
            f"deploy.cli.subtree:{name}",
            help,
            [f"fabric managent {name} '/region1/zone3/**'", f"fabric managent {name} /region1/zone3/dc6 --format json"],
            f"{PATTERNS}\nExit code 2 says: not every managent did it; those are listed by name, with their reasons.",
        )
        _pattern(command)
        deploying(command)


def _explain(verbs: Any) -> None:
    explain = bare(
        verbs,
        "explain",
        "deploy.cli.explaining:explain",
        "show which entry of the repository matches a managent, and which document gave which value",
        [
            "fabric managent explain /region1/zone3 --repository http://192.0.2.1:8430",
            "fabric managent explain /region1/zone3/dc6 --repository ./zone3 --scope /region1/zone3",
            "fabric managent explain /site/r1/r1c01    # of the fabric started here by 'fabric up'",
        ],
    )
    explain.add_argument("path", metavar="PATH", help="of the managent")
    explain.add_argument("--repository", metavar="URL|DIR", help="that holds the description, served or not")
    _reading(explain)
    explain.add_argument("--scope", metavar="PATH", default="", help="identifiers are cut by this path there (5.6)")
    _local(explain)
    explain.set_defaults(directory=None)
    output_format(explain)


def _trace(verbs: Any) -> None:
    trace = bare(
        verbs,
        "trace",
        "deploy.cli.tracing:trace",
        "show how a managent was deployed: the eight steps with their times",
        ["fabric managent trace /region1/zone3/dc6"],
        PLACES,
    )
    trace.add_argument("path", metavar="PATH", help="of the managent")
    deploying(trace)


def _send(verbs: Any) -> None:
    send = bare(
        verbs,
        "send",
        "deploy.cli.sending:send",
        "send one command of BIP, written as XML, to a boot stub: the way to a managent of no tree",
        [
            "fabric managent send deploy.xml --stub r1c01 --id /lab/agent1",
            "fabric managent send shutdown.xml    # which names the boot stub and the managent itself",
        ],
        "The XML is that of HPL-2001-321, Figure 9. Exit code 2: it was refused, or failed; the reason is printed.",
    )
    send.add_argument("file", metavar="FILE", help="the message; - reads standard input")
    send.add_argument("--stub", metavar="NAME", default="", help="the boot stub's name or address (else the message's)")
    send.add_argument("--id", metavar="PATH", default="", help="the managent (else the message's)")
    send.add_argument("--timeout", type=seconds, default=DEFAULT_WAIT_S, metavar="S", help="in seconds (30)")
    deploying(send)


def some(text: str) -> str:
    """A share that is more than nothing."""
    if not float(share(text).removesuffix("%")):
        raise argparse.ArgumentTypeError(f"expected more than 0, found {text!r}")
    return text


def share(text: str) -> str:
    """A number, or a part from 0% to 100%; what it means is deploy.waves'."""
    number = text.removesuffix("%")
    good = number.isascii() and number.isdecimal() and len(number) <= 7
    if text.endswith("%"):
        try:
            good = len(number) <= 7 and 0 <= float(number) <= 100
        except ValueError:
            good = False
    if not good:
        raise argparse.ArgumentTypeError(f"expected a number such as 20, or a part such as 10%, found {text!r}")
    return text
