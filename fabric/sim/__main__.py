"""The simulator's command line: `python -m fabric.sim`."""

from __future__ import annotations

import argparse
import datetime
import itertools
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fabric.sim.runner import Summary, run
from fabric.sim.scenarios import SCENARIOS, play
from fabric.sim.simulation import Result, simulate
from fabric.sim.world import PROMISES, Options

CLEAN, FAILED, USAGE, INTERRUPTED = 0, 1, 64, 130
SEEDS_A_DAY = 1_000_000

EXAMPLES = """\
examples:
  python -m fabric.sim --seeds 0..999                  a thousand seeds on all cores
  python -m fabric.sim --seeds 0..999 --stop-at 1      until the first failure
  python -m fabric.sim --by-date --seconds 600         ten minutes of seeds that nobody ran before today
  python -m fabric.sim --seed 4711 --transcript        what happens in one seed, as a story; the same each time
  python -m fabric.sim --scenario drain --transcript   a scenario from a script; --scenario list names them
  python -m fabric.sim --seeds 0..99 --format json     for machines

exit codes: 0 no promise was broken, 1 one was, 64 wrong arguments, 130 interrupted
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m fabric.sim",
        description="Runs the fabric's own code under virtual time, with faults drawn from a seed, and checks its "
        "promises after every event.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seeds", metavar="A..B", type=_seeds, help="all seeds from A to B (default 0..99)")
    which.add_argument("--seed", metavar="N", type=_number, help="one seed")
    which.add_argument("--by-date", action="store_true", help="from the first seed of today on; needs --seconds")
    which.add_argument("--scenario", metavar="NAME", type=_scenario, help="a script's; `list` names them all")
    parser.add_argument("--nodes", metavar="N", type=_nodes, default=40, help="about so many nodes (default 40)")
    parser.add_argument("--seconds", metavar="S", type=_seconds, help="begin no seed after so long")
    parser.add_argument("--stop-at", metavar="N", type=_positive, help="begin no seed after so many failures")
    parser.add_argument("--workers", metavar="N", type=_positive, help="processes (default: one a core)")
    parser.add_argument("--transcript", action="store_true", help="with --seed or --scenario: tell what happens")
    parser.add_argument(
        "--without",
        metavar="PROMISE,…",
        type=_promises,
        default=frozenset(),
        help=f"do not look at these: {', '.join(PROMISES)}",
    )
    parser.add_argument("--format", choices=("text", "json"), default="text")
    return parser


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if _number(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, found {text}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected seconds, above 0, found {text!r}")
    return value


def _nodes(text: str) -> int:
    if not 6 <= _number(text) <= 5000:
        raise argparse.ArgumentTypeError(f"expected 6 to 5000 nodes, found {text}")
    return int(text)


def _seeds(text: str) -> range:
    first, dots, last = text.partition("..")
    if not dots or not (first + last).isascii() or not first.isdigit() or not last.isdigit() or int(last) < int(first):
        raise argparse.ArgumentTypeError(f"expected a range such as 0..999, found {text!r}")
    return range(int(first), int(last) + 1)


def _scenario(text: str) -> str:
    if text != "list" and text not in SCENARIOS:
        raise argparse.ArgumentTypeError(f"expected list, or one of {', '.join(SCENARIOS)}, found {text!r}")
    return text


def _promises(text: str) -> frozenset[str]:
    names = frozenset(text.split(","))
    if unknown := names - set(PROMISES):
        raise argparse.ArgumentTypeError(f"expected names of {', '.join(PROMISES)}, found {', '.join(sorted(unknown))}")
    return names


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    options = Options(nodes=args.nodes, without=args.without, story=args.transcript)
    if args.transcript and args.seed is None and args.scenario is None:
        parser.error("--transcript tells of one seed, or one scenario: give --seed or --scenario")
    if args.by_date and args.seconds is None:
        parser.error("--by-date has no last seed: give --seconds")
    try:
        return _run(args, options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # who read our output has seen enough; Python's last flush must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERRUPTED


def _run(args: argparse.Namespace, options: Options) -> int:
    if args.scenario == "list":
        sys.stdout.writelines(f"{name:<18} {script.__doc__}\n" for name, script in SCENARIOS.items())
        return CLEAN
    if args.scenario is not None:
        return _one(play(args.scenario, options), args.format)
    if args.seed is not None:
        return _one(simulate(args.seed, options), args.format)
    seeds: Iterable[int] = args.seeds or range(100)
    if args.by_date:
        seeds = itertools.count(_seed_of(datetime.date.today()))
    return _many(seeds, options, args)


def _seed_of(day: datetime.date) -> int:
    """The first of a day's own seeds."""
    return day.toordinal() * SEEDS_A_DAY


def _one(result: Result, form: str) -> int:
    if form == "json":
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in result.story)
        sys.stdout.write(_told(result) + "\n")
    sys.stdout.flush()
    return FAILED if result.failure is not None else CLEAN


def _told(result: Result) -> str:
    failure = result.failure
    if failure is None:
        return (
            f"{_what(result)}: no promise was broken; {result.messages} messages, "
            f"{result.virtual_s:.0f} s of virtual time, settled after {result.settle_s:.1f} s"
        )
    return f"{_what(result)}: {failure.promise}: {failure.found}\n  {failure.command}"


def _what(result: Result) -> str:
    return f"scenario {result.scenario}" if result.scenario else f"seed {result.seed} ({result.level})"


def _many(seeds: Iterable[int], options: Options, args: argparse.Namespace) -> int:
    screen = Console(stderr=True)
    total = len(seeds) if isinstance(seeds, range) else None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]} failed"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen, transient=True, disable=args.format == "json") as progress:
        task = progress.add_task("seeds", total=total, failed=0)

        def told(summary: Summary, result: Result) -> None:
            progress.update(task, advance=1, failed=summary.failed)
            if result.failure is not None and args.format == "text":
                progress.console.print(_told(result), markup=False, highlight=False, soft_wrap=True)

        summary = run(
            seeds, options, workers=args.workers, seconds=args.seconds, stop_at=args.stop_at, told=told
        )
    sys.stdout.writelines(_summed_up(summary) if args.format == "text" else [_as_json(summary)])
    if summary.interrupted:
        return INTERRUPTED
    return FAILED if summary.failed else CLEAN


def _summed_up(summary: Summary) -> Iterator[str]:
    if not summary.seeds:
        yield f"no seed was finished in {summary.seconds:.0f} s{' (interrupted)' * summary.interrupted}\n"
        return
    levels = ", ".join(f"{count} {level}" for level, count in sorted(summary.by_level.items()))
    yield f"{summary.seeds} seeds ({levels}) in {summary.seconds:.0f} s{' (interrupted)' * summary.interrupted}\n"
    yield f"  {summary.requests} requests, {summary.virtual_s:,.0f} s of virtual time\n"
    yield f"  {summary.messages:,} messages, {summary.messages_per_s:,.0f} a second and core\n"
    yield f"  {summary.events:,} events\n"
    faults = ", ".join(f"{count} {kind}" for kind, count in summary.faults.most_common())
    yield f"  faults: {faults or 'none'}\n"
    if not summary.failed:
        yield "no promise was broken\n"
        return
    promises = ", ".join(f"{count} {promise}" for promise, count in summary.by_promise.most_common())
    yield f"{summary.failed} seeds failed: {promises}\n"
    for failure in summary.failures[:20]:
        yield f"  {failure.command}\n"


def _as_json(summary: Summary) -> str:
    return msgspec.json.encode(summary).decode() + "\n"


if __name__ == "__main__":
    sys.exit(main())
