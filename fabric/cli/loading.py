"""bench load, bench compare: what they do and show. What they measure and how: fabric.load."""

from __future__ import annotations

import os
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from fabric.cli import output
from fabric.cli.bench import shape_given
from fabric.cli.client import address
from fabric.cli.exits import Exit, Failure
from fabric.load import comparing, plotting, results
from fabric.load.http import Connections
from fabric.load.place import Place, at, brought_up, local
from fabric.load.plan import BadPlan, Plan, Shape, checked
from fabric.load.preparing import CannotRun
from fabric.load.results import Result
from fabric.load.session import Session, Tell
from fabric.local.control import ControlError
from fabric.local.display import say
from fabric.local.folder import FolderError
from fabric.local.front import UpFailed
from fabric.local.interrupts import Interrupted, Interrupts
from fabric.local.spec import BadSpec
from fabric.local.takedown import NotEnded

LINE_EVERY_S = 2.0
"""Where progress is lines, not one that changes."""


def load(args: Namespace) -> int:
    plan, shape = _asked(args)
    with Interrupts() as interrupts:
        try:
            with _place(args, shape, interrupts) as place, output.Progress() as progress:
                session = Session(plan, shape, place, _command(), interrupts, _teller(progress))
                result = session.run()
                if place.own:
                    progress.show("taking the fabric down")
        except Interrupted as interrupted:
            say(f"{interrupted}, before anything was measured")
            return interrupted.code
        except CannotRun as error:
            raise Failure(str(error)) from None
        except BadSpec as error:
            raise Failure(str(error), Exit.USAGE) from None
        except (ControlError, FolderError, UpFailed, NotEnded) as error:
            first, *more = str(error).splitlines()
            raise Failure(first, details=tuple(line.strip() for line in more)) from None
        number = interrupts.number
    _tell(args, result)
    if number:
        return 128 + number
    if not result.holds:
        return Exit.FOUND
    return Exit.NOT_PLACED if result.failures else Exit.DONE


def _asked(args: Namespace) -> tuple[Plan, Shape | None]:
    """Raises Failure."""
    given = shape_given(args)
    named = "--api" if args.api else "--dir" if args.dir else ""
    if given and named:
        option = next(iter(given)).replace("_", "-")
        raise Failure(f"expected {named} (one that runs) or --{option} (one to bring up), found both", Exit.USAGE)
    if args.api and args.dir:
        raise Failure("expected --api or --dir, found both", Exit.USAGE)
    shape = None
    if given:
        seconds = {"session_timeout_s": given.pop("session_timeout")} if "session_timeout" in given else {}
        given.setdefault("zk", os.environ.get("FABRIC_ZK") or "")
        shape = Shape(**given, **seconds)
    plan = Plan(
        flavor=args.flavor,
        count=args.count,
        for_s=args.lasts,
        warm_s=args.warm_up,
        clients=args.clients,
        rate_s=args.rate,
        most_open=args.most_open,
        mix=args.mix,
        keep=args.keep,
        policy=args.policy,
        max_per_node=args.max_per_node,
        image=args.image,
        image_bytes=args.image_size,
        traces=args.traces,
        audit=not args.no_audit,
        cold=args.cold,
        seed=args.seed,
    )
    try:
        plan = checked(plan)
        if args.plot:
            plotting.ready(args.plot)
    except (BadPlan, plotting.CannotPlot) as error:
        raise Failure(str(error), Exit.USAGE) from None
    for path in (args.output, args.plot):
        if path is not None and path.is_dir():
            raise Failure(f"expected a file that can be written at {path}, found a folder", Exit.USAGE)
        if path is not None and not os.access(path.absolute().parent, os.W_OK):
            raise Failure(f"expected a folder that can be written at {path.absolute().parent}, found none", Exit.USAGE)
    return plan, shape


@contextmanager
def _place(args: Namespace, shape: Shape | None, interrupts: Interrupts) -> Iterator[Place]:
    if shape is not None:
        with brought_up(shape, interrupts) as place:
            yield place
    elif args.dir:
        yield local(args.dir)
    else:
        url = address(args.api)
        try:
            Connections(url)
        except ValueError as error:
            raise Failure(f"the API's address: {error}", Exit.USAGE) from None
        yield at(url)


def _command() -> str:
    return shlex.join(["fabric", *sys.argv[1:]])


def _teller(progress: output.Progress) -> Tell:
    said_at = 0.0

    def tell(text: str, done: int, total: int) -> None:
        nonlocal said_at
        now = time.monotonic()
        if not progress.live and total and now - said_at < LINE_EVERY_S:
            return
        said_at = now
        at_s = f"{done} of {total} s, " if total else ""
        progress.show(f"{at_s}{text}", done, total)

    return tell


def _tell(args: Namespace, result: Result) -> None:
    """Shown first: a disk that is full by now does not take it away. Raises Failure."""
    if output.wants_json(args):
        sys.stdout.write(results.encode(result).decode())
    else:
        show(result)
    try:
        if args.output:
            args.output.write_bytes(results.encode(result))
        if args.plot:
            plotting.plot(result, args.plot)
    except OSError as error:
        where = error.filename or args.output or args.plot
        raise Failure(f"{where}: can't be written: {error.strerror or error}") from None


# --- what people see -------------------------------------------------------------------------------------------------


def show(one: Result) -> None:
    plan = one.plan
    output.pairs(
        [
            ("against", f"{one.against}: {output.counted(one.agents, 'agent')}, version {one.fabric}"),
            ("load", f"{plan.loop}; {plan.way}"),
            ("each", f"{output.counted(plan.count, 'instance')} of {plan.flavor}"),
            ("measured", f"{one.ran_s:.1f} s{' (interrupted)' if one.interrupted else ''}"),
            ("requests a second", ", ".join(f"{kind} {value:.1f}" for kind, value in one.per_s.items())),
            ("machine", f"{100 * one.busy:.0f} % busy, {100 * one.generator_share:.1f} % of that the load generator"),
        ]
    )
    output.line()
    output.table(
        ("REQUEST", ">N", ">P50", ">P90", ">P99", ">P99.9", ">MAX", ">NOT ENDED"),
        [
            (name, found.count, *map(_ms, (found.p50_ms, found.p90_ms, found.p99_ms, found.p999_ms, found.max_ms)),
             found.open or "")
            for name, found in {**one.latencies, "sent late": one.late_ms}.items()
        ],
        (">NOT ENDED",),
    )  # fmt: skip
    if one.unsent:
        output.line(f"{one.unsent} of {one.due} that were due were not sent: the fabric does not keep up", "red")
    if one.skipped:
        output.line(f"{one.skipped} were not made, as there was nothing to change")
    _steps(one)
    _costs(one)
    if one.failures:
        output.line()
        output.table(
            (">TIMES", "WHAT", "WHY", "FIRST"), [(each.times, each.what, each.why, each.first) for each in one.failures]
        )
    output.line()
    for check in one.checks:
        word, style = ("holds", "") if check.holds else ("BROKEN", "red")
        output.line(f"{word}: {check.name} ({check.found})", style)


def _steps(one: Result) -> None:
    if one.traced is None:
        return
    traced = one.traced
    output.line()
    output.table(
        (">STEP", "", ">MEDIAN", ">P90"),
        [(step.step, step.name, f"{step.median_ms:g} ms", f"{step.p90_ms:g} ms") for step in traced.steps],
    )
    output.line(
        f"of {output.counted(traced.traces, 'trace')}; steps 3 to 6 together {traced.negotiation_ms:g} ms (90 %: "
        f"{traced.negotiation_p90_ms:g} ms); {traced.messages:g} messages, {traced.zookeeper_writes:g} writes and "
        f"{traced.zookeeper_reads:g} reads of ZooKeeper a create"
    )


def _costs(one: Result) -> None:
    output.line()
    output.table(
        ("ROLE", ">PROCESSES", ">CPU A REQUEST", ">CPU", ">MEMORY (PSS)", ">RSS"),
        [
            (
                each.role,
                each.processes,
                f"{each.cpu_ms_request:.2f} ms",
                f"{100 * each.cpu_s / one.ran_s:.0f} %",
                f"{each.pss_mib:.0f} MiB",
                f"{each.rss_mib:.0f} MiB",
            )
            for each in one.groups
        ],
    )
    counted = one.counted
    told = [
        (counted.zookeeper_transactions, "transactions of ZooKeeper"),
        (counted.zookeeper_packets, "packets to ZooKeeper"),
        (counted.api_messages, "messages of the API to peers"),
        *((value, f"{kind} of the API on ZooKeeper") for kind, value in sorted(counted.api_operations.items())),
    ]
    if words := [f"{value:g} {what}" for value, what in told if value is not None]:
        output.line(f"a request, as they count it: {', '.join(words)}")


def _ms(value: float) -> str:
    return output.millis(value) if value >= 10 else f"{value:.1f} ms"


# --- comparing -------------------------------------------------------------------------------------------------------


def compare(args: Namespace) -> int:
    try:
        before, after = results.read(args.before), results.read(args.after)
    except results.BadResult as error:
        raise Failure(str(error)) from None
    found = comparing.compare(before, after, (str(args.before), str(args.after)), args.worse)
    if output.wants_json(args):
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=1).decode() + "\n")
    else:
        _compared(found)
    return Exit.FOUND if found.worse else Exit.DONE


def _compared(found: comparing.Comparison) -> None:
    for one in found.differences:
        output.remark(f"not alike: {one.setting}: {one.before} / {one.after}")
    output.table(
        ("FIGURE", ">BEFORE", ">AFTER", "UNIT", ">RATIO", ""),
        [
            (
                row.figure,
                f"{row.before:g}",
                f"{row.after:g}",
                row.unit,
                "-" if row.ratio is None else f"{row.ratio:.2f}",
                output.Styled("WORSE", "red") if row.worse else "",
            )
            for row in found.rows
        ],
    )
    part = f"{100 * found.worse_part:g} %"
    if found.worse:
        output.line(f"{output.counted(len(found.worse), 'figure')} worse by more than {part}", "red")
    else:
        output.line(f"nothing is worse by more than {part}", "green")
