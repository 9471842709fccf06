"""`fabric chaos`: break a local fabric for real, and judge whether the promises held."""

from __future__ import annotations

import argparse
import functools
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fabric.cli import matrix
from fabric.cli.exits import Exit, Failure

MAX_SEED = (1 << 53) - 1
RATE = 5.0
LASTS = "5m"
MIN_EVERY_S = 0.1
_EPILOG = """examples:
  fabric chaos list
  fabric chaos run storm
  fabric chaos run storm --show > mine.txt    # its lines, to be changed
  fabric chaos run mine.txt
  fabric chaos run --random --seed 17 --for 3m --load 5/s
  fabric chaos run grey --dir /tmp/fabric-0/default    # against a fabric that is up
  fabric chaos matrix                                  # every role killed at every step of the flow"""


def register(subparsers: Any) -> None:
    """Nothing heavy is imported before a verb runs."""
    chaos = subparsers.add_parser(
        "chaos",
        help="break a fabric of real processes under load, and judge whether its promises hold",
        description="Break a fabric of real processes under load, and judge whether its promises hold.\n"
        "Exit code 0 only if all of them do.",
        epilog=_EPILOG,
    )
    verbs = chaos.add_subparsers(title="commands", metavar="COMMAND", required=True)
    run: ArgumentParser = verbs.add_parser(
        "run",
        help="run a scenario, by its name or from a file, or random faults",
        description="Run a scenario, by its name or from a file, or random faults. Ctrl-C heals and takes down.",
        epilog=_EPILOG,
    )
    run.set_defaults(run=_run)
    add = run.add_argument
    add("scenario", nargs="?", metavar="SCENARIO", help="a name (see: fabric chaos list) or a file")
    add("--random", action="store_true", help="random faults instead, drawn from --seed")
    add("--seed", type=_seed, metavar="N", help="of all that is random in the run (default: another one each time)")
    add("--for", dest="lasts", type=_time, metavar="TIME", help=f"how long faults and load last (random: {LASTS})")
    add("--load", type=_rate, metavar="RATE", help=f"requests a second, such as 5/s (random: {RATE:g}/s)")
    add("--every", type=_time, metavar="TIME", help="random: the mean time between two faults (4s)")
    add("--dir", type=Path, metavar="DIR", help="a fabric that is up, instead of one that is brought up for this")
    add("--show", action="store_true", help="print the scenario's lines, and leave")
    add("--history", type=Path, metavar="FILE", help="write every request and answer there, as JSON lines")
    add("--logs", type=Path, metavar="FOLDER", help="copy the fabric's logs there before it is taken down")
    add("--format", choices=("table", "json"), default=argparse.SUPPRESS, help="default: table")
    listing: ArgumentParser = verbs.add_parser(
        "list",
        help="list the scenarios that have a name",
        description="List the scenarios that have a name.",
        epilog="examples:\n  fabric chaos list",
    )
    listing.set_defaults(run=_list)
    matrix.register(verbs)
    listing.add_argument("--format", choices=("table", "json"), default=argparse.SUPPRESS, help="default: table")


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text[:18]) > MAX_SEED:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {MAX_SEED}, found {text!r}")
    return int(text)


def _time(text: str) -> float:
    from fabric.chaos.script import seconds

    try:
        return seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _rate(text: str) -> float:
    from fabric.chaos.script import number

    try:
        return number(text.removesuffix("/s"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a rate such as 5/s, found {text!r}") from None


def _told(run: Callable[[Namespace], int]) -> Callable[[Namespace], int]:
    """What is expected to go wrong becomes one line."""

    @functools.wraps(run)
    def guarded(args: Namespace) -> int:
        from fabric.chaos.script import BadScript
        from fabric.local.control import ControlError
        from fabric.local.folder import FolderError
        from fabric.local.front import UpFailed
        from fabric.local.spec import BadSpec
        from fabric.local.takedown import NotEnded

        try:
            return run(args)
        except (BadScript, BadSpec) as error:
            raise Failure(str(error), Exit.USAGE) from None
        except (ControlError, FolderError, UpFailed, NotEnded) as error:
            first, *more = str(error).splitlines()
            raise Failure(first, details=tuple(line.strip() for line in more)) from None

    return guarded


@_told
def _run(args: Namespace) -> int:
    from dataclasses import replace

    from fabric.chaos import dice, named
    from fabric.chaos.script import BadScript, seconds
    from fabric.chaos.writing import format_scenario

    seed = args.seed if args.seed is not None else time.time_ns() % 1_000_000
    if args.random == (args.scenario is not None):
        raise BadScript("expected a scenario, or --random, and not both")
    if args.random:
        lasts_s = seconds(LASTS) if args.lasts is None else args.lasts
        every_s = max(MIN_EVERY_S, dice.EVERY_S if args.every is None else args.every)
        scenario = dice.scenario(seed, lasts_s, RATE if args.load is None else args.load, every_s=every_s)
    else:
        scenario = named.find(args.scenario)
        load = scenario.load if args.load is None else replace(scenario.load, per_s=args.load)
        given = seed if args.seed is not None else scenario.seed or seed
        lasts_s = scenario.for_s if args.lasts is None else args.lasts
        scenario = replace(scenario, load=load, for_s=lasts_s, seed=given)
    if args.show:
        sys.stdout.write(format_scenario(scenario))
        return Exit.DONE
    from fabric.chaos import command

    return command.run(scenario, args.dir, args.format == "json", args.history, args.logs)


@_told
def _list(args: Namespace) -> int:
    from fabric.chaos import named
    from fabric.cli import output

    found = [named.find(name) for name in named.names()]
    if args.format == "json":
        import msgspec

        told = [{"name": one.name, "about": one.about, "lines": named.text(one.name)} for one in found]
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(told), indent=2).decode() + "\n")
        return Exit.DONE
    output.table(("NAME", "LASTS", "ABOUT"), [(one.name, f"{one.for_s:g} s", one.about) for one in found])
    return Exit.DONE
