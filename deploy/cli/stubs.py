"""`fabric stub …`: the directory of boot stubs, its sub-commands with their arguments, help and examples.

As in deploy.cli.parser: nothing heavy is imported here; deploy.cli.stub_commands carries them out.
"""

from __future__ import annotations

from typing import Any

from deploy.cli.parser import PLACES, deploying
from fabric.cli.parser import Parser, bare, seconds

DISCOVER_WAIT_S = 3.0
PING_WAIT_S = 5.0

WAYS = """\
A boot stub comes into the directory in three ways: listed beforehand ('fabric stub add'), by itself when it boots, or
by answering a call to its network ('fabric stub discover')."""

LIST_FILE = """\
LIST has a boot stub a line: its name, then its domain and its address, as far as they are said, with blanks between
them, '-' for none; '#' begins a comment. Without an address it is listed, and found when it has reported by itself."""

DISCOVERING = """\
Boot stubs that were started with --answer-discovery answer; the call and the answers are sealed with the cluster's
key, so it takes one. With --every it goes on until Ctrl-C, and tells boot stubs that know no directory where it is.
Exit code 1 says: two boot stubs call themselves by one name, which is not registered then."""


def register(subparsers: Any) -> None:
    """Add `stub`."""
    stub: Parser = subparsers.add_parser(
        "stub",
        help="the directory of boot stubs: list, add, remove, discover, ping",
        description=f"Shows and keeps the directory of boot stubs.\n{WAYS}",
        epilog="examples:\n  fabric stub list --domain /site/r1\n  fabric stub add --file machines.txt",
    )
    verbs = stub.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _list(verbs)
    _add(verbs)
    _remove(verbs)
    _discover(verbs)
    _ping(verbs)


def _command(verbs: Any, name: str, help: str, examples: list[str], more: str, run: str = "") -> Parser:
    return bare(verbs, name, f"deploy.cli.stub_commands:{run or name}", help, examples, more)


def _list(verbs: Any) -> None:
    parser = _command(
        verbs,
        "list",
        "show the boot stubs in the directory",
        ["fabric stub list", "fabric stub list --domain /site/r1 --format json"],
        PLACES,
        run="show",
    )
    parser.add_argument("--domain", metavar="PATH", default="", help="those of this domain and below it (default: all)")
    deploying(parser)


def _add(verbs: Any) -> None:
    parser = _command(
        verbs,
        "add",
        "list boot stubs beforehand, or say to which domain they belong",
        ["fabric stub add web1 --domain /site/r1", "fabric stub add --file machines.txt"],
        LIST_FILE,
    )
    add = parser.add_argument
    add("name", metavar="NAME", nargs="?", help="of the boot stub: its host's name, unless it was given another")
    add("--domain", metavar="PATH", default="", help="the path of the domain that its machine belongs to")
    add("--address", metavar="ADDRESS", default="", help="as tcp://host:port/incarnation, if it does not say so itself")
    add("--file", metavar="LIST", help="many of them, one a line")
    deploying(parser)


def _remove(verbs: Any) -> None:
    parser = _command(
        verbs,
        "remove",
        "remove boot stubs from the directory; what runs there is left alone",
        ["fabric stub remove web1 web2"],
        "A boot stub that is started again comes back by itself.",
    )
    parser.add_argument("names", metavar="NAME", nargs="+")
    deploying(parser)


def _discover(verbs: Any) -> None:
    parser = _command(
        verbs,
        "discover",
        "call all boot stubs of a network, and register those that answer",
        [
            "fabric stub discover --group 239.255.76.1:7601 --interface 192.0.2.5 --wait 3",
            "fabric stub discover --group 192.0.2.255:7601 --interface 192.0.2.5 --every 60",
        ],
        DISCOVERING,
    )
    add = parser.add_argument
    add("--group", metavar="ADDRESS:PORT", required=True, help="a multicast group, or a broadcast address")
    add("--interface", metavar="ADDRESS", required=True, help="this machine's IPv4 address in that network")
    add("--wait", type=seconds, default=DISCOVER_WAIT_S, metavar="S", help=f"for answers ({DISCOVER_WAIT_S:g})")
    add("--every", type=seconds, metavar="S", help="call again so long after each call, until Ctrl-C")
    add("--dry-run", action="store_true", help="show who answers, and register nobody")
    deploying(parser)


def _ping(verbs: Any) -> None:
    parser = _command(
        verbs,
        "ping",
        "ask a boot stub whether it is there, and what it has of an initiator's children",
        ["fabric stub ping web1", "fabric stub ping web1 --parent /site/r1"],
        "Exit code 1 says: it did not answer.",
    )
    add = parser.add_argument
    add("name", metavar="NAME")
    add("--parent", metavar="PATH", default="", help="show this initiator's children there (default: the top's)")
    add("--wait", type=seconds, default=PING_WAIT_S, metavar="S", help=f"for the answer ({PING_WAIT_S:g})")
    deploying(parser)
