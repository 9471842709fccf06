"""brake: whether lost nodes are replaced. audit: whether all fits together."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter

import msgspec

from fabric.cli import output, views
from fabric.cli.client import Answer, Api
from fabric.cli.exits import Exit, Failure

_BY_HAND = {
    "unreadable": "look at the znode with a client of ZooKeeper, restore or delete it, and audit again",
    "unreachable": "look at its process and log; audit again when it answers",
}
"""What an operator does about a kind that the fabric has no remedy for."""


def brake(args: Namespace) -> int:
    with Api.of(args) as api:
        if args.action == "release":
            return _release(args, api)
        answer = api.get("/v1/brake")
    if output.wants_json(args):
        output.emit(answer)
        return Exit.DONE
    found = answer.read(views.Brake)
    output.line(found.detail, "red" if found.on else "")
    if found.since:
        output.line(f"since {found.since}, {output.age(found.since)} ago")
    if found.lost:
        counted = set(found.nodes)
        output.table(
            ("LOST NODE", "RACK", "SINCE", "FOR", "REPLACED", "BY", "COUNTED"),
            [
                (
                    one.node,
                    one.rack,
                    one.since,
                    output.age(one.since),
                    f"{output.age(one.accepted)} ago" if one.accepted else "not yet",
                    one.by,
                    "yes" if one.node in counted else "",
                )
                for one in found.lost
            ],
        )
    return Exit.DONE


def _release(args: Namespace, api: Api) -> int:
    answer = api.post("/v1/brake/release")
    if output.wants_json(args):
        output.emit(answer)
        return Exit.DONE
    done = answer.read(views.Released)
    if done.released:
        output.line(f"replaced from now on: {', '.join(done.released)}")
    else:
        output.line("no lost node waits for a release")
    if done.brake.on:
        output.line(f"{done.brake.detail} (nodes that vanished just now)", "red")
    return Exit.DONE


class _Step(msgspec.Struct, frozen=True):
    """A line of the API's while it audits; `report` is left as it came."""

    stage: str
    done: int = 0
    total: int = 0
    report: msgspec.Raw = msgspec.Raw(b"null")
    problem: str = ""


def audit(args: Namespace) -> int:
    with Api.of(args) as api:
        answer = _audit(api, args.repair)
    found = answer.read(views.Audit)
    if output.wants_json(args):
        output.emit(answer)
    else:
        _report(found, args.repair)
    if not found.findings:
        return Exit.DONE
    if not args.repair:
        return Exit.FOUND
    return Exit.ERROR if found.left else Exit.REPAIRED


def _audit(api: Api, repair: bool) -> Answer:
    """The report; progress is shown until it comes."""
    with output.Progress() as progress:
        for line in api.lines("POST" if repair else "GET", "/v1/audit", {"progress": "true"}):
            step = Answer(line.encode()).read(_Step)
            if step.problem:
                raise Failure(f"the audit was not finished: {step.problem}")
            if bytes(step.report) != b"null":
                return Answer(bytes(step.report))
            part = f" ({step.done} of {step.total})" if step.total and not progress.live else ""
            progress.show(f"{step.stage}{part}", step.done, step.total)
    raise Failure("the API ended the audit without a report; its log says more")


def _report(found: views.Audit, repair: bool) -> None:
    output.line(
        f"compared {output.counted(found.deployments, 'deployment')}, {output.counted(found.nodes, 'node')}, "
        f"{output.counted(found.instances, 'instance')} and {output.counted(found.images, 'image')} "
        f"in {output.millis(found.took_ms)}"
    )
    if found.findings:
        output.table(
            ("FOUND", "WHAT", "WHERE", "WHY", "REPAIR"),
            [
                (
                    one.kind,
                    one.subject,
                    one.where if one.where != one.subject else "",
                    one.detail.removeprefix(f"{one.subject}: "),
                    _repair(one, repair),
                )
                for one in found.findings
            ],
        )
    if found.omitted:
        output.line(f"and {found.omitted} more")
    if not found.complete:
        output.line("this is not the whole fabric: what did not answer was not compared", "yellow")
    if found.brake:
        output.line(f"what ran on lost nodes is not compared: {found.brake}", "red")
    kinds = Counter(one.kind for one in found.findings)
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    if not found.findings:
        output.line("all else fits together" if found.brake else "all fits together", "green")
    elif not repair:
        output.line(f"found: {told}")
        if any(one.repair for one in found.findings):
            output.remark("repair it: fabric audit --repair")
    elif found.left:
        output.line(f"{found.left} of {len(found.findings) + found.omitted} are not repaired ({told})", "red")
    else:
        output.line(f"repaired: {told}", "green")


def _repair(one: views.Finding, repair: bool) -> object:
    by_hand = f"by hand: {_BY_HAND[one.kind]}" if one.kind in _BY_HAND else "by hand"
    if one.repaired:
        return output.Styled("done: " + one.repair, "green")
    if repair:
        return output.Styled(f"not done: {one.repair}" if one.repair else by_hand, "red")
    return one.repair or by_hand
