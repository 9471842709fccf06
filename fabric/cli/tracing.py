"""trace: how a request went, as a person wants to read it.

First the nine steps with their times, then who was asked and who won, then where the image came from, then the nodes.
Losers are put together by their reason: forty nodes that lost for one reason are one line. `--replay` decides again
where everything goes, from the trace alone, and says whether that is what was decided then.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from fabric.cli import output
from fabric.cli.client import Api, segment
from fabric.cli.exits import Exit, Failure
from fabric.commands import FetchNote
from fabric.ordinals import parse_ordinals
from fabric.roles.replay import Outcome, outcomes, pick, replay
from fabric.roles.trace import STEPS, NodeSeen, Run, Span, Trace

NODE_ROWS = 40
NAMES_SHOWN = 6
CONFLICTS_SHOWN = 8


def trace(args: Namespace) -> int:
    if args.number and not args.replay:
        raise Failure("--run: expected together with --replay, found alone", Exit.USAGE)
    with Api.of(args) as api:
        answer = api.get(f"/v1/deployments/{segment(args.id)}/trace")
    if args.replay:
        return _replay(args, answer.read(Trace))
    if output.wants_json(args):
        output.emit(answer)
        return Exit.DONE
    runs = answer.read(Trace).runs
    if not runs:
        output.line(f"{args.id} has no trace yet: no coordinator has brought it to an end")
    for number, run in enumerate(runs):
        if number:
            output.line()
        _run(args.id, run)
    return Exit.DONE


def _replay(args: Namespace, found: Trace) -> int:
    chosen = pick(found, args.number)
    if chosen is None:
        expected = f"a run {args.number}" if args.number else "a run that placed anything"
        runs = output.counted(len(found.runs), "run")
        raise Failure(f"{args.id}: expected {expected}, found {runs} in its trace: see fabric trace")
    number, run = chosen
    done = replay(run)
    if output.wants_json(args):
        told = {
            "deployment": args.id,
            "run": number,
            "generation": run.generation,
            "rounds": done.rounds,
            "planned": done.planned,
            "same": done.same,
            "impossible": done.impossible,
            "difference": done.difference,
        }
        print(json.dumps(told))
        return Exit.DONE if done.same else Exit.ERROR
    about = f"run {number} of {args.id}, generation {run.generation}"
    rounds = output.counted(done.rounds, "round")
    if done.impossible:
        raise Failure(f"{about}: can't be replayed: {done.impossible}")
    if done.difference:
        raise Failure(f"{about}: not the same after {rounds} that were: {done.difference}")
    same = "the same plan" if done.planned else "the same, and no plan"
    output.line(f"{about}: replayed {rounds}: {same}")
    return Exit.DONE


def _run(deployment: str, run: Run) -> None:
    began = datetime.fromtimestamp(run.at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    output.line(f"{deployment}, generation {run.generation}: {run.outcome} after {output.millis(run.took_ms)}", "bold")
    output.pairs(
        [
            ("began", began),
            ("coordinator", f"{run.coordinator}, leader of {run.rack}, epoch {run.epoch}"),
            ("picked", f"among {run.considered} leaders; it had {run.load} requests then" if run.considered else ""),
            (
                "spent",
                f"{run.messages} messages; ZooKeeper: {run.zookeeper_writes} writes, {run.zookeeper_reads} reads",
            ),
        ]
    )
    for reason in run.reasons:
        output.line(f"  {reason}", "yellow")
    output.line()
    output.table(("STEP", ">AFTER", ">TOOK", "WHAT", "DETAIL"), [_span(span) for span in _ordered(run.spans)])
    _racks(run)
    _offers(run)
    _rounds(run)
    _holders(run)
    _nodes(run)


def _ordered(spans: Sequence[Span]) -> list[Span]:
    return sorted(spans, key=lambda span: (span.step, span.after_ms))


def _span(span: Span) -> tuple[object, ...]:
    what = span.name or STEPS.get(span.step, "")
    return span.step, output.millis(span.after_ms), output.millis(span.took_ms), what, span.detail


def _racks(run: Run) -> None:
    if not run.racks:
        return
    output.line("\nracks asked (steps 4 and 5)", "bold")
    output.table(
        ("RACK", "LEADER", ">ANSWERED", ">OFFERS", ">ROOM", "AGENTS THAT DID NOT ANSWER"),
        [
            (
                rack.rack,
                rack.leader,
                output.millis(rack.answered_ms) if rack.answered_ms >= 0 else output.Styled("no answer", "red"),
                rack.offers,
                rack.room,
                _names(rack.silent),
            )
            for rack in run.racks
        ],
    )


def _offers(run: Run) -> None:
    if not run.searches:
        return
    output.line("\noffers (step 6)", "bold")
    groups: dict[tuple[bool, str], list[Outcome]] = {}
    for one in outcomes(run.searches[-1]):
        groups.setdefault((one.given > 0, one.why), []).append(one)
    output.table(
        ("", ">NODES", ">OFFERED", ">TAKEN", "WHICH", "WHY NO MORE"),
        [
            (
                output.Styled("won", "green") if won else output.Styled("lost", "yellow"),
                len(same),
                sum(one.offer.count for one in same),
                sum(one.given for one in same),
                _names([one.offer.node for one in same]),
                why,
            )
            for (won, why), same in sorted(groups.items(), key=lambda group: (not group[0][0], group[0][1]))
        ],
    )
    if run.searches[-1].omitted:
        output.line(f"and {run.searches[-1].omitted} more offers or rounds that the trace did not keep")
    if len(run.searches) + run.searches_omitted > 1:
        output.line(f"the last of {len(run.searches) + run.searches_omitted} searches for places")


def _rounds(run: Run) -> None:
    if len(run.rounds) < 2 and not any(seen.conflicts for seen in run.rounds):
        return
    output.line("\nreservations, round by round (step 6)", "bold")
    output.table(
        (">ROUND", ">AFTER", ">ASKED", ">GRANTED", "CONFLICTS", "WHY"),
        [
            (
                seen.number,
                output.millis(seen.after_ms),
                seen.asked,
                seen.granted,
                _names(seen.conflicts, CONFLICTS_SHOWN),
                seen.why,
            )
            for seen in run.rounds
        ],
    )


def _fetches(run: Run) -> Iterator[FetchNote]:
    return (seen.fetch for seen in run.nodes if seen.fetch is not None)


def _holders(run: Run) -> None:
    """Each holder: how many nodes found, chose and lost it, and the bytes that came from it; and those from mates."""
    found: Counter[str] = Counter()
    chosen: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    fetches = list(_fetches(run))
    for fetch in fetches:
        found.update(fetch.found)
        chosen.update(fetch.chosen)
        dropped.update(fetch.dropped)
        sent.update(fetch.bytes_by_holder)
    cached = sum(fetch.cached for fetch in fetches)
    if not fetches:
        return
    output.line("\nimage holders (steps 7 to 9)", "bold")
    if cached:
        output.line(f"{cached} of {len(fetches)} nodes had the image already")
    mates = set(sent) - {*found, *chosen} if found or chosen else set()
    holders = sorted({*found, *chosen, *dropped, *sent} - mates)
    if holders:
        output.table(
            ("HOLDER", ">FOUND BY", ">CHOSEN BY", ">DROPPED BY", ">BYTES"),
            [
                (holder, found[holder], chosen[holder], dropped[holder] or "", output.size(sent[holder]))
                for holder in holders
            ],
        )
        leaders = sorted({fetch.storage_leader for fetch in fetches if fetch.storage_leader})
        output.line(f"storage leaders asked: {_names(leaders)}")
    if mates:
        passed_on = output.size(sum(sent[mate] for mate in mates))
        output.line(f"passed on within racks: {passed_on}, by {len(mates)} of the nodes")


def _nodes(run: Run) -> None:
    if not run.nodes:
        return
    output.line("\nnodes (step 9)", "bold")
    output.table(
        ("NODE", "RACK", ">INST", "ORDINALS", ">RUN AFTER", ">FIND", ">FETCH", ">UNPACK", ">START", "IMAGE FROM"),
        [_node(seen) for seen in run.nodes[:NODE_ROWS]],
    )
    left = len(run.nodes) - NODE_ROWS
    if left > 0:
        output.line(f"and {left} more nodes (all: --format json)")
    if run.nodes_omitted:
        output.line(f"and {run.nodes_omitted} more nodes that the trace did not keep")


def _node(seen: NodeSeen) -> tuple[object, ...]:
    fetch = seen.fetch
    if seen.failed:
        origin: object = output.Styled(seen.failed, "red")
    elif fetch is None:
        origin = ""
    elif fetch.cached:
        origin = "its cache"
    else:
        origin = ", ".join(f"{name} {output.size(count)}" for name, count in sorted(fetch.bytes_by_holder.items()))
    return (
        seen.node,
        seen.rack,
        len(parse_ordinals(seen.ordinals)),
        seen.ordinals,
        output.millis(seen.running_after_ms) if seen.running_after_ms >= 0 else "-",
        output.millis(fetch.find_ms) if fetch and not fetch.cached else "",
        output.millis(fetch.fetch_ms) if fetch and not fetch.cached else "",
        output.millis(seen.prepare_ms) if fetch and not fetch.cached else "",
        output.millis(seen.start_ms),
        origin,
    )


def _names(names: Sequence[str], shown: int = NAMES_SHOWN) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
