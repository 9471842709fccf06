"""`fabric repository …`: serve a directory with a description, and check one before anybody is deployed from it.

What each sub-command does is imported when it runs; `--help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric.cli.exits import Exit, Failure
from fabric.cli.parser import Parser, bare

if TYPE_CHECKING:
    from deploy.repository.check import Checked

PORT = 8430
LAID_OUT = """\
DIR has repository.xml, which says by patterns what each managent gets, and the documents that it refers to."""


def register(subparsers: Any) -> None:
    """Add `repository`."""
    repository: Parser = subparsers.add_parser(
        "repository",
        help="serve and check descriptions of what managents are made from",
        description="Serves and checks descriptions of what managents are made from.",
        epilog="examples:\n  fabric repository check ./site --id /site/rack1/node1\n  fabric repository serve ./site",
    )
    verbs = repository.add_subparsers(title="commands", metavar="COMMAND", required=True)
    serve = bare(
        verbs,
        "serve",
        "deploy.cli.repository:serve",
        "serve a directory with a description to boot stubs, in the foreground",
        ["fabric repository serve ./site", "fabric repository serve ./site --listen 192.0.2.1:8430"],
        f"{LAID_OUT}\nChanges are noticed; where one breaks it, the log says so, and the last good one stays.",
    )
    serve.add_argument("folder", metavar="DIR", type=Path, help="the directory")
    listen = f"127.0.0.1:{PORT}"
    serve.add_argument(
        "--listen", metavar="HOST:PORT", default=listen, help=f"where it listens ({listen}); port 0: any"
    )
    serve.add_argument("--url", metavar="URL", default="", help="how others reach it, where that is not --listen")
    serve.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="(info)")
    check = bare(
        verbs,
        "check",
        "deploy.cli.repository:check",
        "say everything that is wrong with a description, and what in it is not used",
        ["fabric repository check ./site", "fabric repository check ./site --id /site/rack1 --id /site/rack1/node1"],
        f"{LAID_OUT}\nExit code 1 says that something is wrong. What is not used is only told.",
    )
    check.add_argument("folder", metavar="DIR", type=Path, help="the directory")
    check.add_argument("--id", metavar="PATH", action="append", default=[], help="what this managent gets; repeatable")
    check.add_argument("--format", choices=("table", "json"), default=argparse.SUPPRESS, help="default: table")


def serve(args: Namespace) -> int:
    import asyncio

    from deploy.repository.files import BadFolder
    from deploy.repository.process import CannotServe, run
    from fabric.config_values import HostPort
    from fabric.logs import set_up_log

    listen = HostPort()
    try:
        host, port = listen.read(args.listen, True)
    except ValueError as error:
        raise Failure(f"--listen: expected {listen.expected}, found {error}", Exit.USAGE) from None
    set_up_log(args.log_level)
    try:
        asyncio.run(run(args.folder, host, port, args.url, _ready))
    except BadFolder as error:
        raise Failure(f"{args.folder}: {error.problems[0]}", details=error.problems[1:]) from None
    except CannotServe as error:
        raise Failure(str(error)) from None
    return Exit.DONE


def _ready(url: str) -> None:
    print(url, flush=True)


def check(args: Namespace) -> int:
    from deploy.repository.check import check as look

    found = look(args.folder, tuple(args.id))
    if args.format == "json":
        import msgspec

        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        _show(found)
    return Exit.DONE if found.good else Exit.ERROR


def _show(found: Checked) -> None:
    for problem in found.problems:
        print(f"wrong: {problem}")
    for identifier, wrong in found.identifiers:
        print(f"wrong: {identifier}: {wrong}" if wrong else f"good: {identifier}")
    for path in found.unused:
        print(f"not used: {path}")
    for one in found.unmatched:
        print(f"matches none of these: {one.kind} entry {one.entry}: {one.pattern}")
    for url in found.elsewhere:
        print(f"elsewhere, not looked at: {url}")
    if found.generation and found.good:
        print(f"good: generation {found.generation}")
